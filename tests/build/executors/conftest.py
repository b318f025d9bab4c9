"""Every way into a guest that there is here, each guest booted once a session; and shells on pseudo-terminals in the
place of a guest."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.alpine import SHELL, alpine
from fixtures.debian import COMMAND_LINE, debian
from imgtool.build.executor import Executor, Kind
from imgtool.build.executors.serial import SerialWay
from imgtool.machine.config import Machine
from imgtool.machine.values.processor import Memory, Smp
from imgtool.machine.values.storage import Drive
from imgtool.qemu.qemu_img import QemuImg
from tests.build.booting import READY_SECONDS, Booted, boot
from tests.build.executors.terminals import Terminal


class Guests:
    """The guests, booted when first asked for, with what every way needs that they allow."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="it-", dir="/tmp")  # short: paths of sockets have room for 107 bytes
        self._booted: dict[str, Booted] = {}
        self._ways: dict[tuple[str, Kind], Executor] = {}

    def __call__(self, name: str) -> Booted:
        if name not in self._booted:
            self._booted[name] = self._boot(name)
        return self._booted[name]

    def way(self, name: str, kind: Kind) -> Executor:
        """This way into this guest, ready."""
        if (name, kind) not in self._ways:
            if (name, kind) == ("debian", "serial"):
                # What cloud-init says on the console until it has ended would be in the output of steps there.
                end = b"cloud-init status --wait; journalctl --sync; ls /run/cloud-init/result.json"
                assert self.way(name, "agent").run(end) == 0
            self._ways[name, kind] = self(name).connect(kind)
        way = self._ways[name, kind]
        way.wait_ready(seconds=READY_SECONDS)
        return way

    def forget(self, name: str, kind: Kind) -> None:
        """For a way that the test has closed: the next to ask gets a new one."""
        self._ways.pop((name, kind), None)

    def _boot(self, name: str) -> Booted:
        return boot(MACHINES[name](self.disk(name)), KINDS[name], self.folder)

    def disk(self, name: str) -> Path:
        """What the guest writes to, once it was booted."""
        return Path(self.folder, f"{name}.qcow2")

    def end(self, name: str) -> None:
        """Ends the guest, if it runs."""
        for key in [key for key in self._ways if key[0] == name]:
            self._ways.pop(key).close()
        booted = self._booted.pop(name, None)
        if booted is not None:
            booted.end()

    def close(self) -> None:
        for name in list(self._booted):
            self.end(name)
        shutil.rmtree(self.folder)


def _debian(disk: Path) -> Machine:
    found = debian()
    return Machine(
        name="debian",
        accel="tcg",
        drives=(_overlay(disk, found.disk),),
        # Without the boot loader, which reads both through the BIOS, it is there some seconds earlier.
        kernel=str(found.kernel),
        initrd=str(found.initrd),
        append=COMMAND_LINE,
        smp=Smp(cpus=2),
        memory=Memory(size=1 << 30),
    )


def _alpine(disk: Path) -> Machine:
    found = alpine()
    return Machine(
        name="alpine",
        accel="tcg",
        drives=(_overlay(disk, found.disk),),
        kernel=str(found.kernel),
        initrd=str(found.initrd),
        append=SHELL,
        memory=Memory(size=256 << 20),
        networks=(),
    )


def _overlay(disk: Path, base: Path) -> Drive:
    QemuImg().create(str(disk), None, format="qcow2", backing=str(base), backing_format="qcow2")
    return Drive(file=str(disk), format="qcow2", interface="virtio", cache="unsafe")


MACHINES = {"alpine": _alpine, "debian": _debian}
KINDS: dict[str, tuple[Kind, ...]] = {"alpine": ("serial",), "debian": ("agent", "ssh", "serial")}

CONTRACT_SHELLS = ("bash", "ash")
GUEST_WAYS = [(name, kind) for name, kinds in KINDS.items() for kind in kinds]
HERE = [pytest.param(("terminal", shell), id=f"serial-{shell}") for shell in CONTRACT_SHELLS]
IN_GUESTS = [pytest.param(way, id="-".join(way), marks=pytest.mark.guest) for way in GUEST_WAYS]

at_terminals = pytest.mark.parametrize("way", HERE, indirect=True)
"""For what all ways do by the same shell program: a guest adds nothing but its time."""
at_a_terminal = pytest.mark.parametrize("way", HERE[:1], indirect=True)
"""For what is decided on this side."""
in_all_guests = pytest.mark.parametrize("way", [*HERE, *IN_GUESTS], indirect=True)
"""For what a guest's kind may change. The others leave out Debian's serial port, where Alpine's and the terminals
say the same."""
WAYS = [*HERE, *(way for way in IN_GUESTS if way.id != "debian-serial")]


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
    """Where a test may put its files, a folder that is not there yet: in a guest, or on this machine where its shell
    is the way."""
    folder = f"/tmp/imgtool-test-{os.getpid()}-{tmp_path.name}"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
