from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from imgtool.build.guestwatch import GuestWatch, panic_in
from imgtool.machine.vm import Vm
from tests.guests import Machines

WRITER = bytes.fromhex("31c0 8ec0 bb007c b80103 b90200 ba8000 cd13 f4 ebfd").ljust(510, b"\0") + b"\x55\xaa"
"""A boot sector that writes itself to the disk's second sector and halts."""


@pytest.mark.parametrize(
    ("errno", "why"),
    [(28, "there is no space left for what it writes"), (None, None)],
)
def test_a_vm_whose_disk_has_no_room_is_ended_and_another_runs_on(
    machines: Machines, tmp_path: Path, errno: int | None, why: str | None
) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(WRITER.ljust(1 << 20, b"\0"))
    file: dict[str, object] = {"driver": "file", "filename": str(disk)}
    if errno is not None:
        file = {"driver": "blkdebug", "image": file, "inject-error": [{"event": "write_aio", "errno": errno}]}
    words = ["-blockdev", json.dumps({"driver": "raw", "node-name": "d", "file": file})]
    words += ["-device", "virtio-blk-pci,drive=d,bootindex=0"]
    machines("boot", "-d", "--name", "writer", "--accel", "tcg", "--memory", "32M", "--network", "none", "--", *words)
    vm = Vm(machines.root, "writer")
    watch = GuestWatch(vm, period=0.05)
    try:
        deadline = time.monotonic() + 60
        while vm.running if why else disk.read_bytes()[512:1024] != WRITER:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        watch.stop()
        assert watch.trouble == (why and ("disk", why))
        assert vm.running == (why is None)
    finally:
        watch.stop()
        machines("vm", "kill", "writer", check=False)


def test_a_vm_whose_disk_had_no_room_at_once_was_started_all_the_same(machines: Machines, tmp_path: Path) -> None:
    """`boot -d` returns although the guest had stopped before anybody saw it run."""
    disk = tmp_path / "disk.raw"
    disk.write_bytes(WRITER.ljust(1 << 20, b"\0"))
    file = {"driver": "file", "filename": str(disk)}
    full = {"driver": "blkdebug", "image": file, "inject-error": [{"event": "write_aio", "errno": 28}]}
    words = ["-blockdev", json.dumps({"driver": "raw", "node-name": "d", "file": full})]
    words += ["-device", "virtio-blk-pci,drive=d,bootindex=0"]
    machines("boot", "-d", "--name", "full", "--accel", "tcg", "--memory", "32M", "--network", "none", "--", *words)
    try:
        deadline = time.monotonic() + 60
        while json.loads(machines("vm", "show", "full", "--output", "json").stdout)["status"] != "io-error":
            assert time.monotonic() < deadline
        machines("vm", "wait", "full", "--for", "running", "--timeout", "20")
    finally:
        machines("vm", "kill", "full", check=False)


SPEAKER = "31c0 8ed8 be177c ac 84c0 7408 b401 31d2 cd14 ebf3 {} ebfd"
"""A boot sector that says what stands behind it on the first serial port, then does the instruction {} for ever."""
NOTHING, HALT = "90", "f4"

PANIC = "Kernel panic - not syncing: sysrq triggered crash"


@pytest.mark.parametrize(("then", "panicked"), [(NOTHING, True), (HALT, False)])
def test_a_vm_whose_kernel_has_panicked_is_ended_and_not_one_that_shows_an_old_panic(
    machines: Machines, tmp_path: Path, then: str, panicked: bool
) -> None:
    disk = tmp_path / "disk.raw"
    sector = bytes.fromhex(SPEAKER.format(then)) + f"[    7.123456] ---[ end {PANIC} ]---\r\n\0".encode()
    disk.write_bytes((sector.ljust(510, b"\0") + b"\x55\xaa").ljust(1 << 20, b"\0"))
    words = ["--accel", "tcg", "--memory", "32M", "--network", "none", "--format", "raw"]
    machines("boot", "-d", disk, "--name", "speaker", *words)
    vm = Vm(machines.root, "speaker")
    watch = GuestWatch(vm, period=0.05, silence=0.2)
    try:
        deadline = time.monotonic() + 60
        while vm.running if panicked else panic_in(vm.serial_log, silence=3) is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        watch.stop()
        assert watch.trouble == (("kernel", f"its kernel has stopped: {PANIC}") if panicked else None)
        assert vm.running != panicked
    finally:
        watch.stop()
        machines("vm", "kill", "speaker", check=False)


@pytest.mark.parametrize(
    ("said", "silent", "panic"),
    [
        (f"step\r\n---[ end {PANIC} ]---\r\n", 60, f"its kernel has stopped: {PANIC}"),
        (f"step\r\n---[ end {PANIC} ]---\r\n", 0, None),
        (f"step\r\nold.log:[    7.123456] ---[ end {PANIC} ]---\r\n", 60, None),
        (f"[    7.123456] ---[ end {PANIC} ]---\r\n[    0.000000] Linux version 6.1\r\n", 60, None),
        ("", 60, None),
    ],
)
def test_only_a_panic_after_which_nothing_came_is_one(
    tmp_path: Path, said: str, silent: float, panic: str | None
) -> None:
    log = tmp_path / "serial0.log"
    log.write_text(said)
    os.utime(log, (time.time() - silent,) * 2)
    assert panic_in(str(log)) == (panic and ("kernel", panic))


def test_a_vm_without_a_serial_log_has_not_panicked(tmp_path: Path) -> None:
    assert panic_in(str(tmp_path / "serial0.log")) is None
