from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from imgtool.build.diskwatch import DiskWatch
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
    watch = DiskWatch(vm, period=0.05)
    try:
        deadline = time.monotonic() + 60
        while vm.running if why else disk.read_bytes()[512:1024] != WRITER:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        watch.stop()
        assert watch.trouble == why
        assert vm.running == (why is None)
    finally:
        watch.stop()
        machines("vm", "kill", "writer", check=False)
