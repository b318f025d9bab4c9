"""What the three ways into a guest have in common: everything that is made of running a shell program there, writing
to a file and reading from one. Each way says how it does these three and how it sees a step through."""

from __future__ import annotations

import contextlib
import io
import os
import secrets as random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import IO, NamedTuple, Self

from imgtool.build.executor import SHELL, ExecutorError, GuestLost, Kind, Output, StepTimeout, has_ended
from imgtool.build.executors import shell
from imgtool.build.executors.stream import Frame, Redactor, new_token
from imgtool.image.names import printable

SHORT = 60.0
"""Seconds for what a guest does at once, however busy its host is."""

_POLL = 0.5
_SYNC_SECONDS = 600.0
_BOOT_ID_SECONDS = 10.0
_DRAFT = "imgtool-"
_SHORT_SCRIPT = 8192
"""Bytes; what is shorter needs no file of its own to be sent as."""
_LAST_ANSWER = "0.2"
"""Seconds for the answer of a guest that powers off to come."""


class Answer(NamedTuple):
    """What a shell program in the guest said, stdout and stderr in one, and how it ended."""

    status: int
    output: bytes


class Step(NamedTuple):
    """A step that is about to run."""

    folder: str
    """In the guest: its staging folder, with the file `script` in it."""
    interpreter: tuple[str, ...]
    exports: bytes
    """The shell program that makes its environment, secrets and all."""
    token: str
    deadline: float | None
    write: Callable[[bytes], None]
    """Where its output goes."""

    def command(self, runner: str = shell.RUN) -> list[str]:
        """The argv that runs it in the guest, with `exports` on its stdin."""
        return [*shell.PLAIN, "/bin/sh", "-c", runner, "imgtool", self.folder, self.token, *self.interpreter]

    def take(self, events: Sequence[bytes | Frame]) -> int | None:
        """Writes the output among `events`; the exit status once its end is among them."""
        for event in events:
            if isinstance(event, bytes):
                self.write(event)
            elif event.id == "end":
                return event.status
        return None

    def left(self) -> float | None:
        """Seconds until it is late."""
        return None if self.deadline is None else self.deadline - time.monotonic()


class Way(ABC):
    """An Executor but for how its guest is reached. `alive` says whether the VM still runs."""

    kind: Kind

    def __init__(self, name: str, alive: Callable[[], bool]) -> None:
        self._name = name
        self._alive = alive

    @abstractmethod
    def wait_ready(self, *, seconds: float) -> None: ...

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def _shell(self, program: bytes, *, seconds: float = SHORT) -> Answer:
        """Runs a shell program without stdin. GuestLost or ExecutorError when its end is not seen in time."""

    @abstractmethod
    def _write(self, content: IO[bytes], target: str) -> None:
        """Writes all of `content` to the guest's file `target`, which is there and empty."""

    @abstractmethod
    def _read(self, source: str, sink: IO[bytes]) -> None:
        """Writes the content of the guest's file `source` into `sink`."""

    @abstractmethod
    def _see_through(self, step: Step) -> int:
        """Runs the step to its end and returns its exit status. StepTimeout at its deadline: `run` then ends it."""

    @abstractmethod
    def _lose(self) -> None:
        """Forgets connections into a system that is about to be gone."""

    def _forget(self, secrets: Sequence[str]) -> None:  # noqa: B027 - most leave nothing
        """Removes from what this way leaves on the host what a step may have printed of its secrets."""

    def run(
        self,
        script: bytes,
        *,
        interpreter: Sequence[str] = SHELL,
        env: Mapping[str, str] = {},
        secrets: Mapping[str, str] = {},
        timeout: float | None = None,
        on_output: Output = lambda _: None,
    ) -> int:
        exports = shell.exports(env, secrets)
        output = Redactor(secrets.values(), on_output)
        folder = self._stage(script)
        deadline = None if timeout is None else time.monotonic() + timeout
        step = Step(folder, tuple(interpreter), exports, new_token(), deadline, output)
        try:
            return self._see_through(step)
        except StepTimeout:
            self._end(folder)
            raise StepTimeout(f"the command took longer than {timeout:g} s and was ended") from None
        except GuestLost:
            raise
        except BaseException:  # Ctrl-C: what was started here does not go on there
            with contextlib.suppress(ExecutorError):
                self._end(folder)
            raise
        finally:
            output.close()
            if secrets:
                self._forget(list(secrets.values()))
            self._clear(folder)

    def put(self, source: str, target: str, *, mode: int = 0o644, owner: str | None = None) -> None:
        _check_path(target)
        draft = shell.draft_of(target, _DRAFT + random.token_hex(6))
        try:
            content = open(source, "rb")  # noqa: SIM115 - closed below
        except OSError as error:
            raise ExecutorError(f"{printable(source)} cannot be read: {error.strerror}", path=source) from error
        with content:
            size = os.fstat(content.fileno()).st_size
            self._do(f"{printable(target)} cannot be written", shell.program(shell.PUT_BEGIN, target, draft))
            try:
                self._write(content, draft)
            except ExecutorError:
                with contextlib.suppress(ExecutorError):
                    self._shell(shell.program('rm -f -- "$1"', draft))
                raise
        end = shell.program(shell.PUT_END, target, draft, str(size), owner or "0:0", f"{mode:o}")
        self._do(f"{printable(target)} cannot be written", end)

    def get(self, source: str, target: str) -> None:
        _check_path(source)
        self._do(f"{printable(source)} cannot be read", shell.program(shell.GET, source))
        draft = f"{target}.{_DRAFT}{random.token_hex(6)}"
        try:
            with open(draft, "xb") as sink:
                self._read(source, sink)
            os.replace(draft, target)
        except OSError as error:
            raise ExecutorError(f"{printable(target)} cannot be written: {error.strerror}", path=target) from error
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft)

    def sync(self) -> None:
        self._do("the guest cannot sync", b"sync", seconds=_SYNC_SECONDS)

    def freeze(self) -> bool:
        # A shell that froze the root file system may be stopped by its own next write, and then nobody thaws.
        return False

    def thaw(self) -> None:  # noqa: B027 - nothing is frozen
        pass

    def reboot(self, *, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        before = self._boot_id()
        self._do("the guest cannot reboot", shell.program(shell.LEAVE, "reboot", "1"))
        self._lose()
        while (left := deadline - time.monotonic()) > 0:
            try:
                self.wait_ready(seconds=left)
                if self._boot_id() != before:
                    return
            except ExecutorError:
                if not self._alive():
                    raise GuestLost(f"{self._name} ended while it was to reboot") from None
            self._lose()
            time.sleep(_POLL)
        raise ExecutorError(f"{self._name} was not back {seconds:g} s after it was told to reboot")

    def power_off(self) -> None:
        try:
            answer = self._shell(shell.program(shell.LEAVE, "poweroff", _LAST_ANSWER))
        except ExecutorError:
            return  # it may have gone before its answer came: who waits for its end sees whether it has
        if answer.status != 0:
            raise ExecutorError(f"the guest cannot power off: {shell.words_of(answer.output)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _do(self, failure: str, program: bytes, *, seconds: float = SHORT) -> bytes:
        """What the program prints. ExecutorError, with its words, when it fails."""
        answer = self._shell(program, seconds=seconds)
        if answer.status != 0:
            raise ExecutorError(f"{failure}: {shell.words_of(answer.output)}")
        return answer.output

    def _stage(self, script: bytes) -> str:
        """A folder in the guest with the file `script` in it."""
        name = _DRAFT + random.token_hex(8)
        # A short one goes with the program that makes its folder: most steps are a line, and each answer takes time.
        short = script if len(script) <= _SHORT_SCRIPT and b"\0" not in script else b""
        said = self._do("the guest has no room for a script", shell.program(shell.STAGE, name, short))
        folder = os.fsdecode(said.strip().rpartition(b"\n")[2])
        if short == script:
            return folder
        try:
            self._write(io.BytesIO(script), f"{folder}/script")
        except BaseException:
            self._clear(folder)
            raise
        return folder

    def _clear(self, folder: str) -> None:
        with contextlib.suppress(ExecutorError):
            self._shell(shell.program('rm -rf -- "$1"', folder))

    def _end(self, folder: str) -> None:
        self._shell(shell.program(shell.END, folder))

    def _boot_id(self) -> bytes:
        return self._do("the guest does not say its boot", shell.BOOT_ID.encode(), seconds=_BOOT_ID_SECONDS)

    def _gone(self, how: str) -> ExecutorError:
        """The error for a way that broke off."""
        return GuestLost(f"the way into {self._name} is lost: {how}") if self._alive() else has_ended(self._name)


def killed() -> ExecutorError:
    """The error for a step whose end nobody tells."""
    return ExecutorError(
        "the command's end was not seen: the shell that waited for it is gone",
        hint="does it end processes that it did not start?",
    )


def _check_path(path: str) -> None:
    if not path.startswith("/") or path.endswith("/"):
        raise ExecutorError(f"{printable(path)!r} is not the absolute path of a file in the guest")
