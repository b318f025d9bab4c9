"""Through the QEMU guest agent: a virtio-serial port, no network, no login.

Source: QEMU's qga/qapi-schema.json. The agent can hand back a command's output when it has ended, 16 MiB of it, which
is neither live nor all: so a step's output goes into files of bounded size in the guest's memory (`shell.SPOOL`)
that are read as they grow.
"""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import msgspec
from msgspec.structs import replace

from imgtool.build.executor import ExecutorError, GuestLost, Kind, StepTimeout
from imgtool.build.executors import shell
from imgtool.build.executors.base import SHORT, Answer, Step, Way, killed
from imgtool.build.executors.stream import Frames
from imgtool.image.names import printable
from imgtool.machine.agent import Agent, AgentError, AgentUnavailable, Run, Started, session
from imgtool.machine.config import Machine
from imgtool.machine.host import AGENT_SOCKET
from imgtool.machine.vm import State, Vm

_CHUNK = 1 << 18
_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 0.4
_CONNECT_SECONDS = 30.0
_PROBE_SECONDS = 5.0
_LOOK_EVERY = 10
"""At each so many looks that found no output, it is asked whether the step's shell still runs."""

_PIPELINE = "d=$1\n{\n" + shell.RUN + "} | {\n" + shell.SPOOL + "}\n"


class _Written(msgspec.Struct):
    count: int


class _Piece(msgspec.Struct):
    content: bytes = msgspec.field(name="buf-b64")


def equip(machine: Machine, folder: str) -> Machine:
    return replace(machine, agent=True)


def connect(vm: Vm, state: State, folder: str) -> AgentWay:
    return AgentWay(vm)


class AgentWay(Way):
    kind: Kind = "agent"

    def __init__(self, vm: Vm) -> None:
        super().__init__(vm.name, lambda: vm.running)
        self._path = vm.file(AGENT_SOCKET)

    def wait_ready(self, *, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                with session(self._path, seconds=_PROBE_SECONDS) as agent:
                    agent.execute(["true"], seconds=_CONNECT_SECONDS)
                return
            except AgentError as error:
                raise ExecutorError(
                    f"the guest agent of {self._name} runs no commands: {error.message}",
                    hint="does its configuration block guest-exec (BLACKLIST_RPC, --block-rpcs)?",
                ) from None
            except AgentUnavailable as error:
                if not self._alive():
                    raise GuestLost(f"{self._name} ended before its guest agent answered") from None
                if time.monotonic() >= deadline:
                    raise ExecutorError(
                        f"{self._name} cannot be reached within {seconds:g} s: {error.message}", hint=error.hint
                    ) from None
            time.sleep(_LONGEST_PAUSE)

    def close(self) -> None:
        pass

    def freeze(self) -> bool:
        with self._session() as agent:
            try:
                return bool(agent.call("guest-fsfreeze-freeze", seconds=SHORT))
            except AgentError:
                # It may have frozen some before it came to the one that it could not.
                with contextlib.suppress(AgentError):
                    agent.call("guest-fsfreeze-thaw", seconds=SHORT)
                return False

    def thaw(self) -> None:
        with self._session() as agent:
            agent.call("guest-fsfreeze-thaw", seconds=SHORT)

    def _lose(self) -> None:
        pass  # each session is a new one

    def _shell(self, program: bytes, *, seconds: float = SHORT) -> Answer:
        with self._session() as agent:
            done = agent.execute(shell.PROGRAM, stdin=program + b"\n", seconds=seconds)
        return Answer(done.status, done.stdout + done.stderr)

    def _write(self, content: IO[bytes], target: str) -> None:
        with self._named(target) as name, self._session() as agent, _opened(agent, name, "w") as handle:
            while piece := content.read(_CHUNK):
                given = {"handle": handle, "buf-b64": base64.b64encode(piece).decode()}
                if agent.ask(_Written, "guest-file-write", given, seconds=SHORT).count != len(piece):
                    raise ExecutorError(f"{printable(target)} cannot be written: the guest took only a part")

    def _read(self, source: str, sink: IO[bytes]) -> None:
        with self._named(source) as name, self._session() as agent, _opened(agent, name, "r") as handle:
            while piece := _read(agent, handle):
                sink.write(piece)

    def _see_through(self, step: Step) -> int:
        argv = step.command(_PIPELINE)
        given = {"path": argv[0], "arg": argv[1:], "input-data": base64.b64encode(step.exports + b":\n").decode()}
        with self._session() as agent:
            pid = agent.ask(Started, "guest-exec", given, seconds=SHORT).pid
            status = _follow(agent, pid, step)
            # Asked once more, the agent forgets it.
            agent.call("guest-exec-status", {"pid": pid}, seconds=SHORT)
            return status

    @contextmanager
    def _session(self) -> Iterator[Agent]:
        """A session, its errors as an executor's."""
        try:
            with session(self._path, seconds=_CONNECT_SECONDS) as agent:
                yield agent
        except AgentUnavailable as error:
            raise self._gone(error.message) from None
        except AgentError as error:
            raise ExecutorError(error.message) from None

    @contextmanager
    def _named(self, path: str) -> Iterator[str]:
        """A name for the guest's file `path` that the agent can be told: JSON has no bytes that are not UTF-8."""
        try:
            path.encode()
        except UnicodeEncodeError:
            folder = self._stage(b"")
        else:
            yield path
            return
        try:
            self._do("the guest makes no links", shell.program('ln -s -- "$1" "$2"', path, f"{folder}/link"))
            yield f"{folder}/link"
        finally:
            self._shell(shell.program('rm -rf -- "$1"', folder))


def _follow(agent: Agent, pid: int, step: Step) -> int:
    spool, frames = _Spool(agent, step.folder), Frames(step.token)
    pause, empty, ended = _FIRST_PAUSE, 0, False
    try:
        while True:
            piece = spool.read()
            if piece:
                status = step.take(frames.feed(piece))
                if status is not None:
                    return status
                pause, empty = _FIRST_PAUSE, 0
            elif ended:
                raise killed()
            left = step.left()
            if left is not None and left <= 0:
                raise StepTimeout("late")
            if piece:
                continue
            empty += 1
            if empty % _LOOK_EVERY == 0:
                ended = agent.ask(Run, "guest-exec-status", {"pid": pid}, seconds=SHORT).exited
            time.sleep(pause if left is None else min(pause, left))
            pause = min(1.5 * pause, _LONGEST_PAUSE)
    finally:
        with contextlib.suppress(AgentError, AgentUnavailable):
            spool.close()


class _Spool:
    """Reads what `shell.SPOOL` writes, and empties each file that was read to its end."""

    def __init__(self, agent: Agent, folder: str) -> None:
        self._agent = agent
        self._folder = folder
        self._number = 0
        self._handle: int | None = None
        self._next: int | None = None

    def read(self) -> bytes:
        """What has come; nothing when there is nothing yet."""
        if self._handle is None:
            self._handle = self._open(0)
            if self._handle is None:
                return b""
        piece = _read(self._agent, self._handle)
        if piece:
            return piece
        if self._next is None:
            self._next = self._open(self._number + 1)
            # Whoever began the next file has ended this one, perhaps after it was read just now.
            return _read(self._agent, self._handle) if self._next is not None else b""
        self._agent.call("guest-file-close", {"handle": self._handle}, seconds=SHORT)
        with _opened(self._agent, self._name(self._number), "w"):
            pass
        self._number, self._handle, self._next = self._number + 1, self._next, None
        return _read(self._agent, self._handle)

    def close(self) -> None:
        for handle in (self._handle, self._next):
            if handle is not None:
                self._agent.call("guest-file-close", {"handle": handle}, seconds=SHORT)
        self._handle = self._next = None

    def _open(self, number: int) -> int | None:
        try:
            return _open(self._agent, self._name(number), "r")
        except AgentError:
            return None  # not begun yet

    def _name(self, number: int) -> str:
        return f"{self._folder}/out.{number}"


@contextmanager
def _opened(agent: Agent, path: str, mode: str) -> Iterator[int]:
    handle = _open(agent, path, mode)
    try:
        yield handle
    except BaseException:
        with contextlib.suppress(AgentError, AgentUnavailable):
            agent.call("guest-file-close", {"handle": handle}, seconds=SHORT)
        raise
    agent.call("guest-file-close", {"handle": handle}, seconds=SHORT)  # says what became of the last bytes


def _open(agent: Agent, path: str, mode: str) -> int:
    return agent.ask(int, "guest-file-open", {"path": path, "mode": mode}, seconds=SHORT)


def _read(agent: Agent, handle: int) -> bytes:
    return agent.ask(_Piece, "guest-file-read", {"handle": handle, "count": _CHUNK}, seconds=SHORT).content
