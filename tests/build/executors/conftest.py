"""Every way into a guest that there is here, each guest booted once a session; and shells on pseudo-terminals in the
place of a guest."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from msgspec.structs import replace

from fixtures.alpine import SHELL, alpine
from fixtures.debian import debian
from imgtool.build.executor import Executor, Kind, connect, equip
from imgtool.build.executors.serial import SerialWay
from imgtool.machine.config import Machine
from imgtool.machine.launch import launch
from imgtool.machine.plan import prepare
from imgtool.machine.runtime import Vm, release
from imgtool.machine.values.processor import Memory
from imgtool.machine.values.storage import Drive
from imgtool.qemu.programs import Programs
from imgtool.qemu.qemu_img import QemuImg
from imgtool.qemu.system import Process
from tests.build.executors.terminals import Terminal

READY_SECONDS = 900.0
"""A bound for a guest that hangs, not for one that is slow on a busy machine."""


class Booted(NamedTuple):
    vm: Vm
    process: Process
    folder: str

    def connect(self, kind: Kind) -> Executor:
        state = self.vm.state()
        assert state is not None
        way = connect(self.vm, state, kind, self.folder)
        way.wait_ready(seconds=READY_SECONDS)
        return way


class Guests:
    """The guests, booted when first asked for, with what every way needs that they allow."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="it-", dir="/tmp")  # short: paths of sockets have room for 107 bytes
        self._booted: dict[str, Booted] = {}
        self._disk: Path | None = None
        self._ways: dict[tuple[str, Kind], Executor] = {}

    def __call__(self, name: str) -> Booted:
        if name not in self._booted:
            self._booted[name] = self._boot(name)
        return self._booted[name]

    def way(self, name: str, kind: Kind) -> Executor:
        """This way into this guest, ready."""
        if (name, kind) not in self._ways:
            self._ways[name, kind] = self(name).connect(kind)
        way = self._ways[name, kind]
        way.wait_ready(seconds=READY_SECONDS)
        return way

    def forget(self, name: str, kind: Kind) -> None:
        """For a way that the test has closed: the next to ask gets a new one."""
        self._ways.pop((name, kind), None)

    def overlay(self, disk: Path) -> None:
        """Debian's next boot writes to `disk`, a new overlay, instead of throwing its writes away."""
        QemuImg().create(str(disk), None, format="qcow2", backing=str(debian().disk), backing_format="qcow2")
        self._disk = disk

    def _boot(self, name: str) -> Booted:
        folder = os.path.join(self.folder, f"{name}.access")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        machine = MACHINES[name]()
        if name == "debian" and self._disk is not None:
            drive = replace(machine.drives[0], file=str(self._disk))
            machine, self._disk = replace(machine, drives=(drive,), ephemeral=None), None
        for kind in KINDS[name]:
            machine = equip(machine, kind, folder)
        before = os.environ.get("XDG_RUNTIME_DIR")
        os.environ["XDG_RUNTIME_DIR"] = self.folder
        try:
            started = launch(prepare(machine, Programs(), detached=True), Programs())
        finally:
            if before is None:
                del os.environ["XDG_RUNTIME_DIR"]
            else:
                os.environ["XDG_RUNTIME_DIR"] = before
        return Booted(started.vm, started.process, folder)

    def end(self, name: str) -> None:
        """Ends the guest, if it runs."""
        for key in [key for key in self._ways if key[0] == name]:
            self._ways.pop(key).close()
        booted = self._booted.pop(name, None)
        if booted is not None:
            booted.process.end()
            booted.process.close()
            release(booted.vm)

    def close(self) -> None:
        for name in list(self._booted):
            self.end(name)
        shutil.rmtree(self.folder)


def _debian() -> Machine:
    disk = Drive(file=str(debian().disk), format="qcow2", interface="virtio", cache="unsafe")
    return Machine(name="debian", accel="tcg", drives=(disk,), ephemeral=True, memory=Memory(size=1 << 30))


def _alpine() -> Machine:
    found = alpine()
    return Machine(
        name="alpine",
        accel="tcg",
        drives=(Drive(file=str(found.disk), format="qcow2", interface="virtio", cache="unsafe"),),
        ephemeral=True,
        kernel=str(found.kernel),
        initrd=str(found.initrd),
        append=SHELL,
        memory=Memory(size=256 << 20),
        networks=(),
    )


MACHINES = {"alpine": _alpine, "debian": _debian}
KINDS: dict[str, tuple[Kind, ...]] = {"alpine": ("serial",), "debian": ("agent", "ssh", "serial")}

CONTRACT_SHELLS = ("bash", "ash")
GUEST_WAYS = [(name, kind) for name, kinds in KINDS.items() for kind in kinds]
WAYS = [
    *(pytest.param(("terminal", shell), id=f"serial-{shell}") for shell in CONTRACT_SHELLS),
    *(pytest.param(way, id="-".join(way), marks=pytest.mark.guest) for way in GUEST_WAYS),
]


@pytest.fixture(scope="session")
def guests() -> Iterator[Guests]:
    made = Guests()
    yield made
    made.close()


@pytest.fixture(scope="session")
def terminals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, SerialWay]]:
    """The serial executor at shells of this machine. They are no console, on which a kernel prints."""
    opened: dict[str, Terminal] = {}
    ways: dict[str, SerialWay] = {}
    for shell in CONTRACT_SHELLS:
        terminal = Terminal(shell, tmp_path_factory.mktemp(shell))
        opened[shell] = terminal
        ways[shell] = SerialWay(shell, terminal.running, lambda port=terminal.socket: port, shared=False)  # type: ignore[misc]
    yield ways
    for way in ways.values():
        way.close()
    for terminal in opened.values():
        terminal.close()


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Executor:
    """Each way into each guest, ready."""
    name, kind = request.param
    if name == "terminal":
        found: SerialWay = request.getfixturevalue("terminals")[kind]
        found.wait_ready(seconds=READY_SECONDS)
        return found
    guests: Guests = request.getfixturevalue("guests")
    return guests.way(name, kind)


@pytest.fixture
def place(way: Executor, tmp_path: Path) -> Iterator[str]:
    """A folder in the guest for the test's own files; at a shell of this machine, where it need not be root's."""
    folder = f"/tmp/imgtool-test-{os.getpid()}-{tmp_path.name}"
    assert way.run(b'mkdir -p -- "$FOLDER"', env={"FOLDER": folder}) == 0
    yield folder
    way.run(b'rm -rf -- "$FOLDER"', env={"FOLDER": folder})
