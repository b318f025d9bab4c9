"""The QEMU guest agent, at the host's end of its virtio-serial port.

Source: QEMU's qga/qapi-schema.json. The channel is a stream that no one resets: answers to a client that gave up may
still lie in it, so each session begins with guest-sync-delimited, which says where its own answers start.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import msgspec

from imgtool.errors import MachineError
from imgtool.image.names import printable, printable_lines

_DELIMITER = b"\xff"
_POLL = 0.1
_LONGEST = 1 << 27
"""Bytes of an answer: a file's largest piece is 48 MiB of base64, a command's output two times 16 MiB."""

_Answer = TypeVar("_Answer")

SYNC_SECONDS = 5.0
CALL_SECONDS = 20.0


class AgentUnavailable(MachineError):  # noqa: N818 - says what is so
    """The agent does not answer: not installed, not started yet, or no channel to it."""

    code = "agent-unavailable"


class AgentError(MachineError):
    """The agent refused a command, in its own words."""

    code = "agent"


class NoSuchProgramError(AgentError):
    """The guest has no program of that name. The exit status is a shell's for this."""

    code = "agent-no-program"
    exit_status = 127


class Executed(NamedTuple):
    """A command that ended in the guest."""

    status: int
    """Its exit status, or 128 + N when signal N ended it, as a shell says it."""
    stdout: bytes
    stderr: bytes
    truncated: bool
    """The agent keeps 16 MiB of each stream and drops the rest."""


class Started(msgspec.Struct):
    """The answer to guest-exec."""

    pid: int


class Run(msgspec.Struct, rename="kebab"):
    """The answer to guest-exec-status."""

    exited: bool
    exitcode: int | None = None
    signal: int = 0
    out_data: bytes = b""
    err_data: bytes = b""
    out_truncated: bool = False
    err_truncated: bool = False


class Agent:
    """A session with a guest agent. Only one at a time makes sense: see `session`. The guest is a stranger: whatever
    it answers ends in an answer of the asked shape or in one of the errors of this module."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._received = bytearray()

    def sync(self, *, seconds: float = SYNC_SECONDS) -> None:
        """Makes sure that the agent listens and that the next answer is the answer to the next question."""
        mark = int.from_bytes(os.urandom(4), "big")
        request = {"execute": "guest-sync-delimited", "arguments": {"id": mark}}
        deadline = time.monotonic() + seconds
        # The leading 0xFF makes the agent's parser forget half a request that someone left there.
        self._send(_DELIMITER + _encode(request), deadline)
        while True:
            self._read_until(_DELIMITER, deadline)
            answer = self._read_line(deadline)
            if answer.get("return") == mark:
                return

    def call(self, command: str, arguments: Mapping[str, Any] | None = None, *, seconds: float = CALL_SECONDS) -> Any:
        """What the agent returns. AgentError when it refuses, AgentUnavailable when it does not answer in time."""
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = dict(arguments)
        deadline = time.monotonic() + seconds
        self._send(_encode(request), deadline)
        answer = self._read_line(deadline)
        if "error" in answer:
            error = answer["error"]
            words = printable_lines(str(error.get("desc", "?") if isinstance(error, dict) else error))
            raise AgentError(f"the guest agent refused {command}: {words}")
        return answer.get("return")

    def ask(
        self,
        answer: type[_Answer],
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        seconds: float = CALL_SECONDS,
    ) -> _Answer:
        """Like `call`, for an answer of that type: bytes are base64 on the way. AgentUnavailable for any other."""
        try:
            return msgspec.convert(self.call(command, arguments, seconds=seconds), answer)
        except msgspec.ValidationError:
            raise _no_agent() from None

    def tell(self, command: str, arguments: Mapping[str, Any]) -> None:
        """Sends a command that is answered by nothing when it works (`guest-shutdown`)."""
        self._send(_encode({"execute": command, "arguments": dict(arguments)}), time.monotonic() + CALL_SECONDS)

    def execute(self, argv: Sequence[str], *, stdin: bytes = b"", seconds: float | None = None) -> Executed:
        """Runs `argv` in the guest and waits for its end. NoSuchProgramError when there is nothing of that name;
        with `seconds`, AgentError when it takes longer: the agent cannot end what it started, and it runs on."""
        arguments: dict[str, Any] = {"path": argv[0], "arg": list(argv[1:]), "capture-output": True}
        if stdin:
            arguments["input-data"] = base64.b64encode(stdin).decode()
        try:
            pid = self.ask(Started, "guest-exec", arguments).pid
        except AgentError as error:
            if "No such file or directory" not in error.message:
                raise
            raise NoSuchProgramError(
                f"the guest has no program {printable(argv[0])}",
                hint="the agent's PATH counts, and no shell is involved: give its whole path, or run it by `sh -c`",
            ) from error
        deadline = None if seconds is None else time.monotonic() + seconds
        pause = 0.01
        while True:
            answer = self.ask(Run, "guest-exec-status", {"pid": pid})
            if answer.exited:
                return _executed(answer)
            if deadline is not None and time.monotonic() >= deadline:
                raise AgentError(
                    f"{printable(argv[0])} still runs in the guest after {seconds:g} s, as process {pid}"
                )
            time.sleep(pause)
            pause = min(2 * pause, _POLL)

    def _send(self, data: bytes, deadline: float) -> None:
        try:
            self._socket.settimeout(max(0.01, deadline - time.monotonic()))
            self._socket.sendall(data)
        except OSError as error:
            raise AgentUnavailable(f"the guest agent cannot be reached: {error.strerror or error}") from None

    def _read_until(self, end: bytes, deadline: float) -> bytes:
        seen = 0
        while (place := self._received.find(end, seen)) < 0:
            seen = len(self._received)
            if seen > _LONGEST:
                raise _no_agent()
            self._received += self._receive(deadline)
        found = bytes(self._received[:place])
        del self._received[: place + len(end)]
        return found

    def _receive(self, deadline: float) -> bytes:
        left = deadline - time.monotonic()
        if left <= 0:
            raise _silent()
        self._socket.settimeout(left)
        try:
            piece = self._socket.recv(1 << 16)
        except TimeoutError:
            raise _silent() from None
        except OSError as error:
            raise AgentUnavailable(f"the guest agent was lost: {error.strerror}") from None
        if not piece:
            raise AgentUnavailable("the guest agent's channel was closed")
        return piece

    def _read_line(self, deadline: float) -> dict[str, Any]:
        line = self._read_until(b"\n", deadline)
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise _no_agent()
        return answer


@contextmanager
def session(path: str, *, seconds: float = SYNC_SECONDS) -> Iterator[Agent]:
    """A synchronised session on the unix socket `path`, while no other imgtool has one (QEMU would let it wait in
    silence). AgentUnavailable when the agent does not answer within `seconds`."""
    deadline = time.monotonic() + seconds
    with _alone(path, deadline), socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.settimeout(seconds)
            connection.connect(path)
        except OSError as error:
            raise _no_channel(error) from None
        agent = Agent(connection)
        agent.sync(seconds=max(0.05, deadline - time.monotonic()))
        yield agent


def _no_channel(error: OSError) -> AgentUnavailable:
    why = "" if isinstance(error, FileNotFoundError) else f": {error.strerror or error}"
    return AgentUnavailable(
        f"there is no channel to a guest agent{why}",
        hint="boot it with --agent, and with qemu-guest-agent running in the guest",
    )


@contextmanager
def _alone(path: str, deadline: float) -> Iterator[None]:
    import fcntl

    try:
        fd = os.open(path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _no_channel(error) from None
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise AgentUnavailable("another imgtool is talking to the guest agent") from None
                time.sleep(_POLL / 2)
        yield
    finally:
        os.close(fd)


def _encode(request: Mapping[str, Any]) -> bytes:
    return json.dumps(request).encode() + b"\n"


def _silent() -> AgentUnavailable:
    return AgentUnavailable(
        "the guest agent does not answer",
        hint="is qemu-guest-agent installed and running in the guest, and has the guest come so far?",
    )


def _no_agent() -> AgentUnavailable:
    return AgentUnavailable("what answers on the guest agent's channel is not a guest agent")


def _executed(answer: Run) -> Executed:
    return Executed(
        status=answer.exitcode if answer.exitcode is not None else 128 + answer.signal,
        stdout=answer.out_data,
        stderr=answer.err_data,
        truncated=answer.out_truncated or answer.err_truncated,
    )
