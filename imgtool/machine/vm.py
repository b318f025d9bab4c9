"""One VM, running or ended, as its directory tells of it (`imgtool.machine.runtime` says what lies in there)."""

from __future__ import annotations

import os
from typing import Literal

import msgspec

from imgtool.errors import MachineError
from imgtool.image.whole import write_whole
from imgtool.machine.config import Machine
from imgtool.machine.process import ProcessId, boot_identity, read_pid_file

STATE_FILE = "vm.json"
PID_FILE = "qemu.pid"
QEMU_LOG = "qemu.log"


class HeldImage(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """A file that a VM has open, under whatever name another finds it."""

    path: str
    device: int
    inode: int
    writable: bool


def hold(path: str, *, writable: bool) -> HeldImage:
    status = os.stat(path)
    return HeldImage(path=path, device=status.st_dev, inode=status.st_ino, writable=writable)


class State(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What is known of a VM beside what QEMU itself answers."""

    name: str
    phase: Literal["starting", "running"]
    launcher: ProcessId
    """The imgtool that starts it, and in the foreground waits for it."""
    boot: str | None
    """The host's boot, for pids and start times count from there."""
    created: float
    """Seconds since the epoch."""
    detached: bool
    machine: Machine
    argv: tuple[str, ...] = ()
    images: tuple[HeldImage, ...] = ()
    leftovers: tuple[str, ...] = ()
    """Files and folders outside the directory that are to go with the VM."""


def _encoded(state: State) -> bytes:
    """`state` as JSON. Names that are not UTF-8 have lone surrogates, which Python's `json` can write and read."""
    try:
        return msgspec.json.encode(state)
    except UnicodeEncodeError:
        import json

        return json.dumps(msgspec.to_builtins(state)).encode()


def _decoded(text: bytes) -> State:
    try:
        return msgspec.json.decode(text, type=State)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        import json

        return msgspec.convert(json.loads(text), State)


class Vm:
    """The directory of one VM, running or ended. Once a later VM has the name, this one has ended."""

    def __init__(self, root: str, name: str) -> None:
        self.name = name
        self.root = root
        self.path = os.path.join(root, name)
        self.created: float | None = None
        """As in its State, by which a later VM of the name is told from it; None stands for whichever has it now."""

    def file(self, name: str) -> str:
        return os.path.join(self.path, name)

    @property
    def qmp_socket(self) -> str:
        return self.file("qmp.sock")

    @property
    def serial_log(self) -> str:
        return self.file("serial0.log")

    def state(self) -> State | None:
        """None when there is none, or none that this imgtool can read."""
        found = self._read()
        return found if found is not None and self.created in (None, found.created) else None

    @property
    def replaced(self) -> bool:
        """Whether the directory is that of a later VM."""
        found = self._read()
        return found is not None and self.created not in (None, found.created)

    def _read(self) -> State | None:
        try:
            with open(self.file(STATE_FILE), "rb") as file:
                return _decoded(file.read())
        except (OSError, ValueError):  # of which msgspec's are
            return None

    def qemu(self) -> ProcessId | None:
        """QEMU's process, alive or not."""
        return read_pid_file(self.file(PID_FILE))

    @property
    def unknown(self) -> bool:
        """Whether QEMU runs and nothing that this imgtool understands says what it runs: it was started by another
        version, or somebody has cleared up in the runtime directory."""
        qemu = self.qemu()
        return qemu is not None and qemu.alive and self._read() is None

    @property
    def running(self) -> bool:
        """Whether QEMU runs, or its imgtool is about to start it."""
        state = self.state()
        return state is not None and self.lives(state)

    def lives(self, state: State) -> bool:
        """Whether that is so of a VM in this `state`."""
        if state.boot != boot_identity():
            return False
        qemu = self.qemu()
        if state.phase == "starting":
            # A launcher that died half-way leaves nothing that counts as a VM, QEMU or not.
            return state.launcher.alive
        return qemu is not None and qemu.alive

    def write(self, state: State) -> None:
        """Replaces the state, whole."""
        try:
            write_whole(self.file(STATE_FILE), _encoded(state))
        except OSError as error:
            raise MachineError(
                f"{self.path} cannot be written: {error.strerror}",
                hint="make room there, or set XDG_RUNTIME_DIR to another folder",
                path=self.path,
            ) from error

    def update(self, **changes: object) -> State:
        state = self.state()
        if state is None:
            raise MachineError(f"{self.name} was cleared away while it started")
        changed = msgspec.structs.replace(state, **changes)
        self.write(changed)
        return changed
