"""What a build tells while it goes on. The command line prints it; a program overrides what it wants to know."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Progress = Callable[[float], None]
Task = Callable[[str], AbstractContextManager[Progress | None]]
"""Called with what begins, in words. Within, what takes its percents (0 to 100), or None where nobody looks."""


def title(step: str) -> str:
    """What a step is called on one line: of several lines the first that says something."""
    lines = [line.strip() for line in step.splitlines() if line.strip()]
    return step if len(lines) < 2 else f"{lines[0]} … ({len(lines)} lines)"


class Watcher:
    """What a build reports to. Override the methods for what you want to know: here, they do nothing. They are called
    from one thread, in the order in which things happen; percents may come from others, one after the other."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def hit(self, number: int, total: int, name: str, key: str) -> None:
        """The layer was found in the store."""

    def start(self, number: int, total: int, name: str, key: str, why: str) -> None:
        """The layer is going to be built; `why` says why none in the store will do."""

    def booting(self, name: str) -> None:
        """A VM is being started."""

    def task(self, text: str) -> AbstractContextManager[Progress | None]:
        """Something that says how far it is begins: a `Task`."""
        return nullcontext()

    def step(self, text: str) -> None:
        """A step of the layer begins. `text` is the command as the recipe has it, or says what is done."""

    def output(self, piece: bytes) -> None:
        """A piece of what a step prints, with secrets masked."""

    def done(self, name: str, seconds: float, size: int) -> None:
        """The layer is sealed. It took `seconds`; `size` is in bytes."""

    def result(self, text: str) -> None:
        """One more thing is done that turns the last layer into the finished image; `text` says what."""

    def end(self) -> None:
        """The build has ended, well or not. Nothing is called after this."""


UNSEEN: Task = Watcher().task
"""For who looks at none."""
