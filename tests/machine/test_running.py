"""VMs from Python: real QEMUs, without a guest where none is needed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import imgtool
from imgtool.machine.values.network import User
from tests.conftest import Images
from tests.guests import SHARED, Machines

QUICK: dict[str, Any] = {"accel": "tcg", "memory": "64M", "network": ["none"]}
"""Settings of a machine that is up at once."""


@pytest.fixture
def image(images: Images, machines: Machines, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty disk, in a runtime directory that the command line of the tests knows, too."""
    for name in ("XDG_RUNTIME_DIR", "XDG_DATA_HOME", "TMPDIR"):
        monkeypatch.setenv(name, machines.env[name])
    yield images.base("small.qcow2")
    assert machines.vms() == []


def test_settings_are_values_tables_and_option_strings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    machine = imgtool.configure(
        b"disk.qcow2",
        memory=2048,
        smp="4,maxcpus=8",
        drive=[{"file": Path("data.raw"), "format": "raw"}],
        network=["user,hostfwd=tcp::2222-:22"],
        cloud_init={"user": "ann"},
        kernel=Path("vmlinuz"),
        agent=True,
    )
    assert [(drive.file, drive.format) for drive in machine.drives] == [
        (f"{tmp_path}/disk.qcow2", None),
        (f"{tmp_path}/data.raw", "raw"),
    ]
    assert machine.drives[0].interface == "virtio"
    assert (machine.memory.size, machine.smp.cpus, machine.smp.maxcpus) == (2 << 30, 4, 8)
    assert machine.networks == (User(hostfwd=("tcp::2222-:22",)),)
    assert machine.cloud_init is not None
    assert machine.cloud_init.user == "ann"
    assert (machine.kernel, machine.agent) == (f"{tmp_path}/vmlinuz", True)


def test_a_path_is_no_option_string_and_none_is_no_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vm.toml").write_text("smp = 2\n")
    machine = imgtool.configure(
        profile="vm.toml", memory=None, smp=None, network=None, drive=Path("a,format=raw"), share=[b"b,tag=c"]
    )
    assert [(drive.file, drive.format) for drive in machine.drives] == [(f"{tmp_path}/a,format=raw", None)]
    assert [(share.path, share.tag) for share in machine.shares] == [(f"{tmp_path}/b,tag=c", None)]
    assert (machine.smp.cpus, machine.memory.size, machine.networks) == (2, None, None)


def test_settings_go_over_those_of_a_profile(tmp_path: Path) -> None:
    (tmp_path / "vm.toml").write_text('memory = "1G"\nsmp = 2\n[[drive]]\nfile = "data.qcow2"\n')
    machine = imgtool.configure(tmp_path / "disk.qcow2", profile=tmp_path / "vm.toml", memory="3G")
    assert (machine.memory.size, machine.smp.cpus) == (3 << 30, 2)
    assert imgtool.configure(memory={"size": "3G"}).memory.size == 3 << 30
    assert [drive.file for drive in machine.drives] == [f"{tmp_path}/disk.qcow2", f"{tmp_path}/data.qcow2"]


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"memry": "1G"}, "no machine has the setting memry", "did you mean memory?"),
        ({"run_as": "nobody"}, "no machine has the setting run-as", "write safety={'run-as': …}"),
        ({"m": "1G"}, "no machine has the setting m", "did you mean memory?"),
        ({"memory": "1X"}, "--memory: size: '1X' is not a size", None),
        ({"agent": "perhaps"}, "agent: Expected `bool | null`, got `str`", None),
        ({"drive": [{"fil": "a"}]}, "drive[0]: unknown key 'fil'", "did you mean file?"),
        ({"memory": {"size": "2X"}}, "memory.size: '2X' is not a size", None),
        ({"smp": [{"cpus": 2}]}, "smp is one table, no list of them", "write [smp]"),
        ({"network": [{"hostfwd": []}]}, "network[0] needs type =", None),
        ({"format": "raw"}, "a format without an image", None),
    ],
)
def test_settings_that_make_no_sense_are_said(settings: dict[str, Any], message: str, hint: str | None) -> None:
    with pytest.raises(imgtool.UsageError) as caught:
        imgtool.configure(**settings)
    assert message in caught.value.message
    assert hint is None or str(caught.value.hint).startswith(hint)


def test_a_vm_is_stopped_at_the_end_of_its_block(image: Path) -> None:
    with imgtool.boot(image, name="block", **QUICK) as vm:
        vm.wait("running")
        assert vm.name == "block"
        assert vm.running
        assert vm.qmp("query-name") == {"name": "block"}
        assert vm.monitor("info name") == "block\n"
        with vm.qmp_session() as session:
            assert session.execute("query-name") == {"name": "block"}
        with pytest.raises(imgtool.ImgtoolError, match="sandbox would end block"):
            vm.qmp("migrate", {"uri": "exec:cat"})
        assert vm.status().memory == 64 << 20
        assert [drive.file for drive in vm.status().drives] == [str(image)]
        assert vm.command[0].endswith("qemu-system-x86_64")
        assert running() == ["block"]
        assert vm.stop(seconds=0) == "quit"
        assert not vm.running
    with pytest.raises(imgtool.MachineError, match="the VM block has ended"):
        vm.status()


def test_a_machine_is_booted_as_it_is_and_takes_no_settings(image: Path) -> None:
    machine = imgtool.configure(image, **QUICK)
    with pytest.raises(imgtool.UsageError, match="a Machine has its settings"):
        imgtool.boot(machine, memory="1G")
    with imgtool.boot(machine) as vm:
        assert vm.machine.drives == machine.drives
        vm.kill()


def test_an_exception_ends_the_vm_at_once(image: Path) -> None:
    with pytest.raises(KeyError, match="mine"), imgtool.boot(image, **QUICK) as vm:
        raise KeyError("mine")
    assert not vm.running


def test_a_qemu_that_was_killed_is_an_error_where_its_end_is_waited_for(image: Path) -> None:
    with imgtool.boot(image, **QUICK) as vm:
        kill_qemu(vm)
        with pytest.raises(imgtool.CommandCrashed, match="ended by signal 9"):
            vm.wait_ended(seconds=60)
        assert vm.wait_ended()


def test_a_qemu_that_was_killed_is_an_error_at_the_end_of_the_block(image: Path) -> None:
    with pytest.raises(imgtool.CommandCrashed, match="ended by signal 9"), imgtool.boot(image, **QUICK) as vm:  # noqa: PT012
        kill_qemu(vm)
        deadline = time.monotonic() + 60
        while vm.running and time.monotonic() < deadline:
            time.sleep(0.01)


def running() -> list[str]:
    """The names of the VMs, apart from the one that tests share."""
    return [vm.name for vm in imgtool.running_vms() if vm.name != SHARED]


def kill_qemu(vm: imgtool.RunningVm) -> None:
    pid = vm.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def test_the_end_of_a_guest_is_waited_for(image: Path) -> None:
    with imgtool.boot(image, **QUICK) as vm:
        assert not vm.wait_ended(seconds=0)
        vm.qmp("quit")
        assert vm.wait_ended(seconds=60)
        assert vm.wait_ended()


def test_a_later_vm_of_the_same_name_is_another(image: Path, images: Images) -> None:
    with imgtool.boot(image, name="twice", **QUICK) as first, imgtool.running_vm("twice") as seen:
        first.qmp("quit")
        assert first.wait_ended(seconds=60)
        with imgtool.boot(images.base("other.qcow2"), name="twice", **QUICK) as second:
            assert (first.running, seen.running, second.running) == (False, False, True)
            with pytest.raises(imgtool.MachineError, match="the VM twice has ended"):
                seen.kill()
            assert seen.wait_ended()
            assert second.status().status == "running"
            second.kill()


@pytest.mark.parametrize("tied", [True, False])
def test_a_vm_that_nobody_holds_leaves_neither_descriptors_nor_a_zombie(
    image: Path, images: Images, tied: bool
) -> None:
    before = set(os.listdir("/proc/self/fd"))
    pid = imgtool.boot(image, name="dropped", tied=tied, **QUICK).status().pid
    seen = imgtool.running_vm("dropped")
    assert seen.running
    seen.kill()
    with imgtool.boot(images.base("other.qcow2"), **QUICK) as vm:
        vm.kill()
    assert not os.path.exists(f"/proc/{pid}")
    assert set(os.listdir("/proc/self/fd")) == before


def test_the_cpus_are_paused_and_resumed_and_the_screen_is_saved(image: Path, tmp_path: Path) -> None:
    with imgtool.boot(image, **QUICK) as vm:
        vm.pause()
        assert vm.status().status == "paused"
        vm.resume()
        assert vm.status().status == "running"
        vm.screenshot(tmp_path / "screen.png")
        assert (tmp_path / "screen.png").read_bytes().startswith(b"\x89PNG")
        with pytest.raises(imgtool.MachineError, match=r"nowhere/screen\.png cannot be written: No such file"):
            vm.screenshot(tmp_path / "nowhere/screen.png")
        vm.kill()


def test_what_boot_refuses_is_refused(image: Path, images: Images) -> None:
    images.overlay("top.qcow2", "small.qcow2")
    with pytest.raises(imgtool.RefusedError, match="is the backing file of"):
        imgtool.boot(image, **QUICK)
    with imgtool.boot(image, force=True, **QUICK) as vm:
        vm.kill()


def test_a_vm_of_the_command_line_is_a_vm_of_python_and_the_other_way_round(
    image: Path, images: Images, machines: Machines
) -> None:
    machines("boot", "-d", image, "--name", "theirs", "--accel", "tcg", "--memory", "64M", "--network", "none")
    theirs = imgtool.running_vm("theirs")
    with imgtool.boot(images.base("other.qcow2"), name="ours", **QUICK) as ours:
        assert running() == ["ours", "theirs"]
        assert machines("vm", "kill", "ours").returncode == 0
        with pytest.raises(imgtool.CommandCrashed):
            ours.wait_ended(seconds=60)
    theirs.kill()
    with pytest.raises(imgtool.MachineError, match="theirs has ended"):
        imgtool.running_vm("theirs")


@pytest.mark.parametrize("tied", [True, False])
def test_a_vm_that_is_tied_ends_with_its_program(image: Path, machines: Machines, tied: bool) -> None:
    """And another runs on."""
    code = f"import imgtool; imgtool.boot({str(image)!r}, name='child', tied={tied}, **{QUICK!r})"
    subprocess.run([sys.executable, "-c", code], env=machines.env, check=True, timeout=120)
    if tied:
        ended = [vm.wait_ended(seconds=60) for vm in imgtool.running_vms() if vm.name == "child"]
        assert ended in ([], [True])
    else:
        imgtool.running_vm("child").kill()
