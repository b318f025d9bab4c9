"""A hundred boots, and kill -9 of imgtool, of QEMU, or of both, at random moments."""

from __future__ import annotations

import glob
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgtool.image.locks import holders
from imgtool.machine import runtime
from imgtool.machine.process import ProcessId
from tests.guests import Machines

ROUNDS = 100
SEED = 20240


@pytest.fixture
def own(machines: Machines) -> Iterator[Machines]:
    """A runtime directory that no other test uses."""
    folder = tempfile.mkdtemp(prefix="it-", dir="/tmp")
    made = Machines(folder, machines.alpine)
    os.makedirs(made.root, mode=0o700)
    yield made
    made.end_all()
    shutil.rmtree(folder)


def processes_of(folder: str) -> list[int]:
    """The living processes that name the runtime directory on their command line: QEMU and its helpers."""
    found = []
    for place in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(place, "rb") as file:
                named = folder.encode() in file.read()
        except OSError:
            continue
        pid = int(place.split("/")[2])
        if named and pid != os.getpid() and ProcessId.of(pid) is not None:
            found.append(pid)
    return found


def start(own: Machines, image: Path, words: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "imgtool", "boot", str(image), "--name", "victim", *words, "--", "-S"],
        env=own.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill(child: subprocess.Popen[bytes], own: Machines, whom: str) -> None:
    qemu = runtime.Vm(own.root, "victim").qemu()
    if qemu is not None and whom in ("qemu", "both"):
        qemu.send(signal.SIGKILL)
    if whom in ("imgtool", "both"):
        child.kill()


@pytest.mark.slow
def test_a_hundred_kills_leave_nothing_that_the_next_command_minds(own: Machines, tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    own("create", "-q", "-f", "qcow2", image, "1M")
    chance = random.Random(SEED)
    tpm = ["--tpm"]
    for number in range(ROUNDS):
        whom = chance.choice(["imgtool", "qemu", "both"])
        words = ["--accel", "tcg", "--memory", "16M", "--network", "none"]
        words += chance.choice([[], ["-d"]]) + chance.choice([[], ["--ephemeral"]]) + chance.choice([[], tpm])
        where = f"round {number}: {whom} with {words}"
        child = start(own, image, words)
        time.sleep(chance.uniform(0, 0.7))
        kill(child, own, whom)
        assert child.stdin is not None
        child.stdin.close()
        if whom == "qemu" and "-d" not in words:
            # killed before there was a QEMU: then there is one now, and it is asked to end
            child.terminate()
        child.wait(60)
        for vm, _ in runtime.vms(own.root):
            process = vm.qemu()
            assert process is not None, where
            process.send(signal.SIGKILL)
            assert process.wait(30), where
        assert runtime.vms(own.root) == [], where
        left = processes_of(own.folder)
        deadline = time.monotonic() + 30
        while left and time.monotonic() < deadline:
            time.sleep(0.02)
            left = processes_of(own.folder)
        assert left == [], where
        assert holders(str(image)) == [], where
        names = (
            os.listdir(os.path.join(own.root, "victim")) if os.path.isdir(os.path.join(own.root, "victim")) else []
        )
        assert [name for name in names if not name.endswith(".log")] == [], where
        assert [name for name in os.listdir(own.folder) if name.endswith("-victim")] == [], where
    done = own("boot", "-d", image, "--name", "victim", "--accel", "tcg", "--network", "none", "--", "-S")
    assert done.stdout == "victim\n"
    own("vm", "kill", "victim")
    assert own("check", image).returncode == 0
