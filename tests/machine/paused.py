"""Machines that QEMU has made and not let run, to be asked over QMP what they are: as the pure parts compile them
(`Paused` around a process), or as a user types them (`Typed`)."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imgtool.cli.main import main
from imgtool.machine import runtime
from imgtool.machine.process import read_pid_file
from imgtool.machine.vm import Vm
from imgtool.qemu.qemu_img import QemuImg
from imgtool.qemu.qmp import Monitor


class Paused:
    """A machine that waits for its first instruction."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor

    def ask(self, command: str, **arguments: Any) -> Any:
        return self.monitor.execute(command, arguments)

    def get(self, path: str, name: str) -> Any:
        return self.ask("qom-get", path=path, property=name)

    def device(self, name: str, *properties: str) -> list[Any]:
        """Properties of the device with this id."""
        return [self.get(f"/machine/peripheral/{name}", item) for item in properties]

    def told(self, command: str) -> str:
        """What the human monitor says, where QMP has no query."""
        answer: str = self.ask("human-monitor-command", **{"command-line": command})
        return answer

    @property
    def drives(self) -> dict[str, dict[str, Any]]:
        """query-block by the id of the device."""
        return {_device(item): item for item in self.ask("query-block")}

    @property
    def nodes(self) -> dict[str, dict[str, Any]]:
        return {item["node-name"]: item for item in self.ask("query-named-block-nodes", flat=True)}

    @property
    def pci(self) -> dict[str, dict[str, Any]]:
        """query-pci by id; what the board has by itself is left out."""
        return {item["qdev_id"]: item for bus in self.ask("query-pci") for item in bus["devices"] if item["qdev_id"]}

    @property
    def chardevs(self) -> dict[str, str]:
        """The file or address of each character device."""
        return {item["label"]: item["filename"] for item in self.ask("query-chardev")}

    @property
    def cpus(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("query-hotpluggable-cpus")
        return found

    def read_port(self, port: int, size: int = 1) -> bytes:
        """`size` bytes from an I/O port, one after the other, as a guest would read them."""
        words = [self.told(f"i /b {port:#x}") for _ in range(size)]
        return bytes(int(word.partition("=")[2], 16) for word in words)

    def cmos(self, index: int) -> int:
        self.told(f"o /b 0x70 {index:#x}")
        return self.read_port(0x71)[0]

    def firmware_item(self, key: int, size: int) -> bytes:
        """What QEMU hands to the firmware under a number of its fw_cfg device. QEMU docs: specs/fw_cfg."""
        self.told(f"o /h 0x510 {key:#x}")
        return self.read_port(0x511, size)

    def firmware_files(self) -> dict[str, tuple[int, int]]:
        """The (key, size) of each file that QEMU hands to the firmware."""
        count = int.from_bytes(self.firmware_item(0x19, 4), "big")
        entries = self.read_port(0x511, 64 * count)
        found = {}
        for at in range(0, len(entries), 64):
            name = entries[at + 8 : at + 64].partition(b"\0")[0].decode()
            found[name] = (
                int.from_bytes(entries[at + 4 : at + 6], "big"),
                int.from_bytes(entries[at : at + 4], "big"),
            )
        return found


def _device(item: dict[str, Any]) -> str:
    parts: list[str] = item["qdev"].split("/")
    if parts[:3] == ["", "machine", "peripheral"]:
        return parts[3]
    return next((part for part in parts[::-1] if part != "virtio-backend" and not part.startswith("fdc")), "")


class Files(dict[str, str]):
    """Files by the names that stand in a typed line, made when they are first named. The beginning of the name says
    what it is: `disk` (qcow2), `raw`, `floppy`, `folder`; anything else is a path where nothing is."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def __missing__(self, name: str) -> str:
        place = self[name] = os.path.join(self.folder, name)
        if name.startswith("disk"):
            QemuImg().create(place, 8 << 20, format="qcow2")
        elif name.startswith(("raw", "floppy")):
            Path(place).touch()
            os.truncate(place, 1440 << 10 if name.startswith("floppy") else 8 << 20)
        elif name.startswith("folder"):
            os.mkdir(place)
        return place


class Typed:
    """`typed("--smp 4 {disk}")` boots what a user would type, paused, and returns the machine, which ends with
    the test."""

    def __init__(self, folder: str) -> None:
        self.files = Files(folder)
        self.root = os.path.join(folder, "imgtool", "vm")
        self._monitors: list[Monitor] = []

    def __call__(self, line: str, *, base: str = "--memory 64M --network none") -> Paused:
        """`base` are options that keep the machine small where the line is not about them."""
        status, stderr = self.run(line, base=base)
        assert status == 0, stderr
        return self.connect(self.names()[-1])

    def run(self, line: str, *, base: str = "--memory 64M --network none") -> tuple[int, str]:
        """Exit status and stderr of `imgtool boot` in this process."""
        name = f"vm{len(self._monitors)}"
        given = shlex.split(line.format_map(self.files))
        words = ["boot", "-d", "--accel", "tcg"]
        for option, value in zip(*[iter(base.split())] * 2, strict=True):
            words += [] if option in given else [option, value]
        words += [] if "--name" in given else ["--name", name]
        return imgtool(*words, *given, *([] if "--" in given else ["--"]), "-S")

    def imgtool(self, *words: str) -> tuple[int, str]:
        """Exit status and stderr of another command."""
        return imgtool(*words)

    def refused(self, line: str) -> str:
        """What is said of a machine that is not started."""
        status, stderr = self.run(line)
        assert status in (1, 2), stderr
        assert stderr.startswith("imgtool: error: "), stderr
        assert self.names() == [], stderr
        return stderr

    def connect(self, name: str) -> Paused:
        monitor = Monitor.connect(self.vm(name).qmp_socket)
        self._monitors.append(monitor)
        return Paused(monitor)

    def vm(self, name: str) -> Vm:
        return Vm(self.root, name)

    def names(self) -> list[str]:
        """Running VMs, the latest last."""
        found = runtime.vms(self.root) if os.path.isdir(self.root) else []
        return [vm.name for vm, state in sorted(found, key=lambda item: item[1].created)]

    def status(self, name: str = "vm0") -> dict[str, str]:
        """/proc/PID/status of the VM's QEMU."""
        process = self.vm(name).qemu()
        assert process is not None
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        return dict(line.split(":\t", 1) for line in lines if ":\t" in line)

    def close(self) -> None:
        for monitor in self._monitors:
            monitor.close()
        if not os.path.isdir(self.root):
            return
        for entry in os.scandir(self.root):
            if not entry.is_dir():
                continue
            vm = self.vm(entry.name)
            pids = [read_pid_file(vm.file(name)) for name in os.listdir(vm.path) if name.endswith(".pid")]
            runtime.release(vm)
            for process in pids:
                # They are children of ours as long as we live; a process of its own would have left them to init.
                if process is not None:
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(process.pid, 0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def imgtool(*words: str) -> tuple[int, str]:
    """Exit status and stderr of the command, run in this process."""
    stdout, stderr = (io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape", write_through=True) for _ in "12")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr), pytest.raises(SystemExit) as end:
            main(list(words))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    said = stderr.buffer.getvalue() if isinstance(stderr.buffer, io.BytesIO) else b""
    assert isinstance(end.value.code, int)
    return end.value.code, said.decode(errors="surrogateescape")


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Typed]:
    """See `Typed`. The folder's name is short: paths of sockets have room for 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="it-", dir="/tmp") as folder:
        for name in ("XDG_RUNTIME_DIR", "XDG_DATA_HOME", "TMPDIR"):
            monkeypatch.setenv(name, folder)
        made = Typed(folder)
        yield made
        made.close()
