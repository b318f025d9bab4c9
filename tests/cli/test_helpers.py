"""Programs beside QEMU: there before it, joined to it, and gone with it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from imgtool.machine.process import ProcessId, parse_stat
from imgtool.machine.vm import Vm
from imgtool.qemu.qmp import Monitor
from tests.guests import Machines


@pytest.fixture
def image(machines: Machines, tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    machines("create", "-q", "-f", "qcow2", path, "1M")
    return path


def helper(vm: Vm, name: str) -> ProcessId:
    process = parse_stat(Path(vm.file(name)).read_bytes())
    assert process is not None
    return process


def start(machines: Machines, image: Path, name: str, *words: str) -> Vm:
    machines("boot", "-d", image, "--name", name, "--accel", "tcg", "--memory", "64M", *words, "--", "-S")
    return Vm(machines.root, name)


def gone(process: ProcessId) -> bool:
    return process.wait(30)


def test_a_tpm_is_seen_by_qemu_and_its_state_is_kept(machines: Machines, image: Path) -> None:
    vm = start(machines, image, "tpm", "--tpm", "--network", "none")
    swtpm = helper(vm, "tpm.pid")
    with Monitor.connect(vm.qmp_socket) as monitor:
        assert monitor.execute("query-tpm")[0]["options"]["type"] == "emulator"
    assert swtpm.alive
    machines("vm", "kill", "tpm")
    assert gone(swtpm)
    assert os.listdir(os.path.join(machines.folder, "data", "imgtool", "vm", "tpm", "tpm"))


def test_passt_is_joined_and_ends_with_the_vm(machines: Machines, image: Path) -> None:
    vm = start(machines, image, "passt", "--network", "passt")
    passt = helper(vm, "net0.pid")
    with Monitor.connect(vm.qmp_socket) as monitor:
        said = monitor.execute("human-monitor-command", {"command-line": "info network"})
    assert "net0" in said
    assert "net0.sock" in said
    machines("vm", "kill", "passt")
    assert gone(passt)


def test_a_helper_ends_when_qemu_is_killed_and_someone_looks(machines: Machines, image: Path) -> None:
    vm = start(machines, image, "orphan", "--network", "passt")
    passt = helper(vm, "net0.pid")
    passt.send(signal.SIGSTOP)  # so that it does not see by itself that QEMU is gone
    machines.qemu("orphan").send(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while "orphan" in machines.vms() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(passt)
    assert [name for name in os.listdir(vm.path) if not name.endswith(".log")] == []


def test_a_helper_that_fails_is_the_error_and_leaves_nothing(machines: Machines, image: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.write_bytes(b"")  # a file where swtpm wants a folder
    done = machines("boot", "-d", image, "--name", "broken", "--tpm", f"state={state}/tpm", check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "imgtool itself failed" not in done.stderr
    assert "broken" not in machines.vms()
