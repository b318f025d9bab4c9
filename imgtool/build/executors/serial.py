"""Over the first serial port, where the guest has a root shell: no agent, no network, no login server. It needs a
POSIX shell, stty and head there; base64 or od to get files, and sha256sum or cksum to see that files come whole."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import socket
import time
import zlib
from collections.abc import Callable, Sequence
from typing import IO, Final

from msgspec.structs import replace

from imgtool.build.executor import ExecutorError, GuestLost, Kind, StepTimeout
from imgtool.build.executors import shell
from imgtool.build.executors.base import SHORT, Answer, Step, Way, killed
from imgtool.build.executors.cksum import Cksum, cksum
from imgtool.build.executors.console import Console
from imgtool.build.executors.stream import Frame, redact
from imgtool.errors import ConfigError
from imgtool.image.names import printable
from imgtool.machine.config import Machine
from imgtool.machine.control import console_is_free
from imgtool.machine.values.devices import CharDevice
from imgtool.machine.vm import State, Vm

_CHUNK: Final = 3 << 14
"""Bytes in one piece: less than the 64 KiB that Linux holds for a terminal nobody reads."""
_OCTAL_CHUNK: Final = 1 << 12
_ALL_BYTES: Final = bytes(range(256))
_PATIENCE: Final = 2.0
"""After so many seconds without output it is asked whether the step still runs."""
_CONNECT_SECONDS: Final = 10.0
_DISTURBED: Final = "did a step end this shell, or restart the guest? `reboot = true` in a layer restarts it"
_LEVEL: Final = 6
_TRIES: Final = 3
_LOG_PIECE: Final = 1 << 20

_APPEND = 'f $i 0 data >&4; h "$2" <&5 >>"$1"'
_UNPACK = 'f $i 0 data >&4; h "$2" <&5 | gzip -dc >>"$1"'
_ECHO_TEST = "f $i 0 data >&4; h 256 <&5 | cksum"
_TOOLS = "for t in base64 cksum gzip od sha256sum; do command -v $t; done"
_PIECE = 'dd if="$1" bs="$2" skip="$3" count=1 2>/dev/null'
_RUNS = 'kill -0 "$(cat "$1/run")" 2>/dev/null'


def equip(machine: Machine, folder: str) -> Machine:
    """The first serial port is a socket in the VM's own directory."""
    ports = (CharDevice(type="unix"),) if machine.serial is None else machine.serial
    if not ports or ports[0].type != "unix" or ports[0].path is not None:
        raise ConfigError("the serial executor needs the first serial port for itself", hint="leave out `serial`")
    return replace(machine, serial=ports)


def connect(vm: Vm, state: State, folder: str) -> SerialWay:
    return SerialWay(vm.name, lambda: vm.running, lambda: _dial(vm), log=vm.serial_log)


def _dial(vm: Vm) -> socket.socket:
    if not console_is_free(vm, "serial0"):
        raise ExecutorError(f"someone is at the console of {vm.name}", hint="Ctrl-A X leaves it")
    port = socket.socket(socket.AF_UNIX)
    try:
        port.settimeout(_CONNECT_SECONDS)
        port.connect(vm.file("serial0.sock"))
    except OSError as error:
        port.close()
        raise GuestLost(f"the serial port of {vm.name} cannot be reached: {error.strerror or error}") from None
    return port


class SerialWay(Way):
    """`dial` opens the host's end of the port; what the guest writes there is kept in the file `log`. `shared` says
    that the port is the guest's console, too, on which its kernel and its init may print."""

    kind: Kind = "serial"

    def __init__(
        self,
        name: str,
        alive: Callable[[], bool],
        dial: Callable[[], socket.socket],
        *,
        log: str | None = None,
        shared: bool = True,
    ) -> None:
        super().__init__(name, alive)
        self._dial = dial
        self._log = log
        self._shared = shared
        self._port: socket.socket | None = None
        self._console: Console | None = None
        self._eight_bits = True
        self._tools: frozenset[str] = frozenset()

    def wait_ready(self, *, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        if self._console is not None:
            with contextlib.suppress(ExecutorError):
                if self._console.resync():
                    return
        if self._port is None:
            self._port = self._dial()
        console = Console(self._port, self._name)
        console.enter(deadline=deadline)
        self._console = console
        self._learn()

    def close(self) -> None:
        if self._console is not None:
            with contextlib.suppress(ExecutorError):
                self._console.leave()
        self._lose()
        if self._port is not None:
            self._port.close()
            self._port = None

    def _lose(self) -> None:
        self._console = None

    def _shell(self, program: bytes, *, seconds: float = SHORT) -> Answer:
        return self._ask(program, seconds=seconds)

    def _write(self, content: IO[bytes], target: str) -> None:
        expected = self._new_sum()
        while piece := content.read(_CHUNK if self._eight_bits else _OCTAL_CHUNK):
            expected.update(piece)
            answer = self._ask(*self._appending(piece, target))
            if answer.status != 0:
                raise ExecutorError(f"the guest cannot write: {shell.words_of(answer.output)}")
        self._compare(expected, target)

    def _read(self, source: str, sink: IO[bytes]) -> None:
        found = self._new_sum()
        number = 0
        while True:
            piece = self._get_piece(source, number)
            sink.write(piece)
            found.update(piece)
            number += 1
            if len(piece) < _CHUNK:
                break
        self._compare(found, source)

    def _see_through(self, step: Step) -> int:
        console = self._use()
        step = step._replace(token=console.token)
        ended: list[int] = []

        def take(frame: Frame) -> None:
            if frame.id == "end":
                ended.append(frame.status)

        exports = shell.quote(step.exports + b":\n")
        command = shell.join(step.command())
        # Through cat, or the step would see a terminal and, say, draw progress bars on it.
        job = b"{ printf %s " + exports + b" | " + command + b" | cat; } >&4 2>/dev/null 4>&- 5<&- &"
        console.on_output, console.on_frame = step.write, take
        try:
            self._ask(job)
            while not ended:
                left = step.left()
                if left is not None and left <= 0:
                    raise StepTimeout("late")
                if console.listen(_PATIENCE if left is None else min(left, _PATIENCE)):
                    continue
                if not self._runs(console, step) and not ended:
                    raise killed()
            return ended[0]
        finally:
            console.on_output = console.on_frame = _drop

    def _runs(self, console: Console, step: Step) -> bool:
        """Whether the step still runs. Where nobody is there to say so, what came meanwhile is an echo of the
        question, and no output."""
        held: list[bytes] = []
        console.on_output = held.append
        status = self._ask(shell.program(_RUNS, step.folder)).status
        console.on_output = step.write
        for piece in held:
            step.write(piece)
        return status == 0

    def _forget(self, secrets: Sequence[str]) -> None:
        """QEMU keeps a log of the port; what a step printed of its secrets is overwritten there."""
        if self._log is None:
            return
        with contextlib.suppress(FileNotFoundError), open(self._log, "r+b", buffering=0) as log:
            longest = max(len(secret.encode(errors="surrogateescape")) for secret in secrets)
            at = 0
            while piece := log.read(_LOG_PIECE):
                clean = redact(piece, secrets)
                if clean != piece:
                    log.seek(at)
                    log.write(clean)
                # The next piece overlaps this one by what may be the beginning of a secret.
                at += len(piece) if len(piece) < _LOG_PIECE else len(piece) - longest
                log.seek(at)

    def _use(self) -> Console:
        if self._console is None:
            raise self._gone("it was not ready yet")
        return self._console

    def _ask(self, program: bytes, data: bytes = b"", *, seconds: float = SHORT) -> Answer:
        console = self._use()
        if not self._eight_bits and not program.isascii():
            program = b'eval "$(printf ' + shell.quote(_octal(program)) + b')"'
        try:
            return console.ask(program, data, seconds=seconds)
        except GuestLost as error:
            if not self._alive():
                raise self._gone(error.message) from None
            # The shell may have been ended by what it ran; a getty gives another.
            self._console = None
            with contextlib.suppress(ExecutorError):
                self.wait_ready(seconds=SHORT)
            raise ExecutorError(error.message, hint=_DISTURBED) from None

    def _learn(self) -> None:
        """What the line and the guest are capable of."""
        if self._shared:
            self._use().quieten()
        self._eight_bits = True
        said = self._ask(_ECHO_TEST.encode(), _ALL_BYTES).output.split()
        self._eight_bits = said[:1] == [str(cksum(_ALL_BYTES)).encode()]
        said = self._ask(_TOOLS.encode()).output.split()
        self._tools = frozenset(line.rpartition(b"/")[2].decode() for line in said)
        if not self._tools & {"base64", "od"}:
            raise ExecutorError(f"{self._name} has neither base64 nor od, to get files with")

    def _appending(self, piece: bytes, target: str) -> tuple[bytes, bytes]:
        """The program that appends `piece` to the guest's file `target`, and what it is to be sent."""
        if not self._eight_bits:
            return shell.program('printf "$2" >>"$1"', target, _octal(piece)), b""
        packed = gzip.compress(piece, _LEVEL, mtime=0) if "gzip" in self._tools else piece
        if len(packed) < len(piece):
            return shell.program(_UNPACK, target, str(len(packed))), packed
        return shell.program(_APPEND, target, str(len(piece))), piece

    def _get_piece(self, source: str, number: int) -> bytes:
        packer = " | gzip -c" if "gzip" in self._tools else ""
        encoder = " | base64" if "base64" in self._tools else " | od -An -v -tx1"
        program = shell.program(_PIECE + packer + encoder, source, str(_CHUNK), str(number))
        for _ in range(_TRIES):
            said = b"".join(self._ask(program).output.split())
            with contextlib.suppress(ValueError, EOFError, zlib.error):
                piece = base64.b64decode(said, validate=True) if "base64" in self._tools else _from_hex(said)
                return gzip.decompress(piece) if packer else piece
        raise ExecutorError(f"{printable(source)} does not come whole over the serial port")

    def _new_sum(self) -> _Sum:
        return _Sum("sha256sum" if "sha256sum" in self._tools else "cksum")

    def _compare(self, expected: _Sum, path: str) -> None:
        said = self._do("the guest cannot sum up a file", shell.program(f'{expected.name} <"$1"', path))
        if said.split()[:1] != [expected.text()]:
            raise ExecutorError(f"{printable(path)} did not come over the serial port as it is")


class _Sum:
    """A checksum as the guest's program `name` says it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._sum = hashlib.sha256() if name == "sha256sum" else Cksum()

    def update(self, piece: bytes) -> None:
        self._sum.update(piece)

    def text(self) -> bytes:
        found = self._sum.value() if isinstance(self._sum, Cksum) else self._sum.hexdigest()
        return str(found).encode()


def _drop(_: object) -> None:
    return None


def _octal(data: bytes) -> str:
    return "".join(f"\\{byte:03o}" for byte in data)


def _from_hex(text: bytes) -> bytes:
    return bytes.fromhex(text.decode("ascii"))
