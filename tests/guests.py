"""Guests for the tests: a runtime directory of their own, terminals, and one booted Alpine that tests share."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from fixtures.alpine import SHELL, Alpine
from fixtures.alpine import alpine as alpine_files
from imgtool.machine import runtime
from imgtool.machine.process import ProcessId
from imgtool.machine.vm import Vm

PROMPT = "~ # "
SHARED = "shared"
"""The name of the VM that tests share."""

BOOT_SECONDS = 240
"""How long a guest may take under TCG on a busy machine: a bound for what hangs, not for what is slow."""


class Machines:
    """`imgtool` in a runtime directory of its own, with what is needed to boot Alpine quickly."""

    def __init__(self, folder: str, alpine: Alpine) -> None:
        self.folder = folder
        self.alpine = alpine
        self.env = {**os.environ, "XDG_RUNTIME_DIR": folder, "TMPDIR": folder, "COLUMNS": "200"}
        self.env["XDG_DATA_HOME"] = os.path.join(folder, "data")

    @property
    def root(self) -> str:
        return os.path.join(self.folder, "imgtool", "vm")

    def overlay(self, path: Path) -> Path:
        """An overlay of Alpine's disk."""
        self("overlay", "new", self.alpine.disk, path)
        return path

    def __call__(self, *words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs imgtool to its end. With `check` it has to succeed."""
        return self.slowly(*words, check=check, seconds=BOOT_SECONDS)

    def slowly(self, *words: str | Path, seconds: float, check: bool = True) -> subprocess.CompletedProcess[str]:
        """The same for what may take longer than the boot of a small guest."""
        done = subprocess.run(
            [sys.executable, "-m", "imgtool", *map(str, words)],
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stderr
        return done

    def shell_words(self, *, network: str = "none") -> list[str]:
        """The options with which Alpine boots into a root shell on its serial console."""
        return [
            *("--accel", "tcg"),
            *("--memory", "256M"),
            *("--kernel", str(self.alpine.kernel)),
            *("--initrd", str(self.alpine.initrd)),
            *("--append", SHELL),
            *("--network", network),
        ]

    def terminal(self, *words: str | Path) -> pexpect.spawn[str]:
        """imgtool on a terminal of its own."""
        return pexpect.spawn(
            sys.executable,
            ["-m", "imgtool", *map(str, words)],
            env=self.env,
            timeout=BOOT_SECONDS,
            encoding="utf-8",
            codec_errors="replace",
            dimensions=(40, 200),
        )

    def vms(self) -> list[str]:
        """The names of the running VMs, apart from the one that tests share."""
        found = [vm.name for vm, _ in runtime.vms(self.root)] if os.path.isdir(self.root) else []
        return [name for name in found if name != SHARED]

    def qemu(self, name: str) -> ProcessId:
        process = Vm(self.root, name).qemu()
        assert process is not None
        return process

    def end_all(self) -> None:
        for name in [*self.vms(), SHARED]:
            self("vm", "kill", name, check=False)


class Shell:
    """The root shell on the serial console of a VM in the background."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._count = 0

    def __call__(self, command: str, *, seconds: float = BOOT_SECONDS) -> str:
        """What `command` prints in the guest."""
        self._count += 1
        begin, end = (f"--{self._count}{letter}--" for letter in "ab")
        # The marks are typed in another spelling than they are printed: the terminal echoes what is typed.
        words = (f"echo {mark[:3]}''{mark[3:]}" for mark in (begin, end))
        self._socket.sendall(f"{next(words)}; {command}; echo; {next(words)}\n".encode())
        said = self._read_until(f"\n{end}\n", seconds)
        return said.partition(f"\n{begin}\n")[2].rpartition(f"\n{end}\n")[0].strip()

    def _read_until(self, end: str, seconds: float) -> str:
        said = b""
        deadline = time.monotonic() + seconds
        while True:
            self._socket.settimeout(max(0.1, deadline - time.monotonic()))
            piece = self._socket.recv(65536)
            assert piece, "the guest ended"
            said += piece
            text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", said.decode(errors="replace"))
            if end in text:
                return text

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(scope="session")
def alpine() -> Alpine:
    """The Alpine guest's files, downloaded at first."""
    return alpine_files()


@pytest.fixture(scope="session")
def machines(alpine: Alpine) -> Iterator[Machines]:
    """imgtool with a runtime directory of the tests' own; whatever still runs there afterwards is ended."""
    folder = tempfile.mkdtemp(prefix="it-", dir="/tmp")  # short: paths of sockets have room for 107 bytes
    made = Machines(folder, alpine)
    yield made
    made.end_all()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def shared_guest(machines: Machines) -> Iterator[tuple[str, Shell]]:
    """(name, shell) of one Alpine in the background that all tests of a session share: look, change nothing that
    another test would see. Its memory is 256 MiB of at most 1 GiB, it has 1 CPU of at most 4, and its writes are
    thrown away.

    It takes itself for a VMware guest: Linux lets CPUs be plugged in only under a hypervisor it knows
    (`acpi_is_processor_usable` in newer kernels), which TCG is not, and QEMU has VMware's port on every PC."""
    words: list[str | Path] = ["boot", "-d", machines.alpine.disk, "--ephemeral", *machines.shell_words()]
    words += ["--name", SHARED, "--smp", "1,maxcpus=4", "--cpu", "max,-hypervisor"]
    words += ["--memory", "256M,slots=1,maxmem=1G"]
    words += ["--wait", f"serial:{PROMPT}$", "--wait-timeout", str(BOOT_SECONDS)]
    words += ["--", "-smbios", "type=1,serial=VMware-0"]
    assert machines(*words).stdout == f"{SHARED}\n"
    shell = Shell(os.path.join(machines.root, SHARED, "serial0.sock"))
    shell("mount -t proc proc /proc; mount -t sysfs sys /sys")
    yield SHARED, shell
    shell.close()
    machines("vm", "kill", SHARED)
