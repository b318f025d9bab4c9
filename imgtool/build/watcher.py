"""What a build tells while it goes on. The command line prints it; a program overrides what it wants to know."""

from __future__ import annotations


def title(step: str) -> str:
    """What a step is called on one line: of several lines the first that says something."""
    lines = [line.strip() for line in step.splitlines() if line.strip()]
    return step if len(lines) < 2 else f"{lines[0]} … ({len(lines)} lines)"


class Watcher:
    """Every method does nothing. They are called from one thread, in the order things happen."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def hit(self, number: int, total: int, name: str, key: str) -> None:
        """The layer is in the store."""

    def start(self, number: int, total: int, name: str, key: str, why: str) -> None:
        """The layer is going to be built; `why` says what it missed by."""

    def booting(self, name: str) -> None:
        """A VM is being started."""

    def step(self, text: str) -> None:
        """A step of the layer begins: a command as the recipe has it, or what is done."""

    def output(self, piece: bytes) -> None:
        """What a step says, secrets masked."""

    def done(self, name: str, seconds: float, size: int) -> None:
        """The layer is sealed; `size` is in bytes."""

    def result(self, text: str) -> None:
        """The next thing is done on the way from the last layer to the finished image."""

    def end(self) -> None:
        """The build has ended, well or not: nothing more comes."""
