"""Drives, floppies, disks and CD-ROMs as a user types them, and what QEMU answers about each over QMP."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imgtool.machine import runtime
from imgtool.machine.control import status
from imgtool.qemu.capabilities import Capabilities
from tests.machine.paused import Typed

pytestmark = pytest.mark.matrix

CACHES = {
    "writeback": {"direct": False, "no-flush": False, "writeback": True},
    "none": {"direct": True, "no-flush": False, "writeback": True},
    "writethrough": {"direct": False, "no-flush": False, "writeback": False},
    "directsync": {"direct": True, "no-flush": False, "writeback": False},
    "unsafe": {"direct": False, "no-flush": True, "writeback": True},
}


@pytest.mark.parametrize("interface", ["ide", "scsi", "virtio", "nvme", "usb"])
def test_every_cache_mode_on_every_kind_of_disk(typed: Typed, interface: str) -> None:
    drives = " ".join(f"--drive {{disk{name}}},if={interface},cache={name},id={name}" for name in CACHES)
    vm = typed(f"--machine q35 {drives}")
    found = vm.drives
    assert {name: found[name]["inserted"]["cache"] for name in CACHES} == CACHES
    assert [vm.nodes[f"{name}-file"]["cache"]["direct"] for name in CACHES] == [False, True, False, True, False]


@pytest.mark.parametrize(
    ("words", "zeroes", "freed"),
    [
        ("aio=threads,discard=ignore,detect-zeroes=off", "off", False),
        ("aio=native,cache=none,discard=unmap,detect-zeroes=on", "on", True),
        ("aio=io_uring,discard=unmap,detect-zeroes=unmap", "unmap", True),
    ],
)
def test_asynchronous_io_discard_and_zeroes(
    typed: Typed, real_capabilities: Capabilities, words: str, zeroes: str, freed: bool
) -> None:
    vm = typed(f"--drive {{raw}},format=raw,if=virtio,{words}")
    assert vm.nodes["drive0"]["detect_zeroes"] == zeroes
    for command in ("write -P 1 0 1M", "discard 0 1M", "flush"):
        assert vm.told(f'qemu-io -d /machine/peripheral/drive0/virtio-backend "{command}"') == ""
    process = Path(f"/proc/{typed.status()['Pid']}")
    descriptors = [os.readlink(entry.path) for entry in os.scandir(process / "fd")]
    # QMP does not tell how a file is read; the kernel does.
    assert ("/[aio]" in (process / "maps").read_text()) is ("native" in words)
    waits_by_io_uring = real_capabilities.version >= (10, 2)  # then it has one in any case
    assert ("anon_inode:[io_uring]" in descriptors) is ("io_uring" in words or waits_by_io_uring)
    assert (os.stat(typed.files["raw"]).st_blocks == 0) is freed


def test_serial_numbers_error_policies_and_geometry(typed: Typed) -> None:
    vm = typed(
        "--machine q35 "
        "--drive {diska},if=ide,serial=ATA1,werror=stop,rerror=report,cyls=20,heads=16,secs=63,trans=lba,bootindex=4 "
        "--drive {diskb},if=scsi,serial=SCSI1,werror=ignore,rerror=stop,cyls=21,heads=8,secs=32,bootindex=3 "
        "--drive {diskc},if=virtio,serial=VIRTIO1,werror=enospc,rerror=ignore,cyls=22,heads=4,secs=16,addr=0x11 "
        "--drive {diskd},if=nvme,serial=NVME1,addr=0x12 "
        "--drive {diske},if=usb,serial=USB1,werror=report,rerror=report"
    )
    names = [f"drive{place}" for place in range(5)]
    assert [vm.device(name, "serial")[0] for name in names] == ["ATA1", "SCSI1", "VIRTIO1", "NVME1", "USB1"]
    errors = [tuple(vm.device(name, "werror", "rerror")) for name in ("drive0", "drive1", "drive2", "drive4")]
    assert errors == [("stop", "report"), ("ignore", "stop"), ("enospc", "ignore"), ("report", "report")]
    geometry = [vm.device(name, "cyls", "heads", "secs") for name in names[:3]]
    assert geometry == [[20, 16, 63], [21, 8, 32], [22, 4, 16]]
    assert vm.device("drive0", "bios-chs-trans", "bootindex") == ["lba", 4]
    assert vm.device("drive1", "bootindex") == [3]
    assert (vm.pci["drive2"]["slot"], vm.pci["drive3"]["slot"]) == (0x11, 0x12)


def test_every_interface_at_the_place_that_was_asked_for(typed: Typed) -> None:
    vm = typed(
        "--drive {diska},if=ide,bus=1,unit=1 --drive {diskb},if=ide,index=1 --drive {diskc},if=ide,media=cdrom "
        "--drive {diskd},if=scsi,bus=1,unit=3 --drive {diske},if=scsi,index=2 "
        "--drive {floppya},if=floppy,index=1,readonly=on --drive {raws},format=raw,if=sd "
        "--drive {diskn},if=none,id=spare,readonly=on --drive {rawp},format=raw,if=pflash,readonly=on "
        "--drive if=floppy --drive {disku},if=usb,readonly=on --drive {diskv},if=virtio,readonly=on"
    )
    buses = {name: vm.device(name, "parent_bus")[0].rpartition("/")[2] for name in vm.drives if name[:5] == "drive"}
    assert buses == {
        "drive0": "ide.1",
        "drive1": "ide.0",
        "drive2": "ide.0",
        "drive3": "scsi1.0",
        "drive4": "scsi0.0",
        "drive5": "floppy-bus.0",
        "drive6": "sd-bus",
        "drive9": "floppy-bus.0",
        "drive10": buses["drive10"],
        "drive11": "pci.0",
    }
    units = {name: vm.device(name, "unit")[0] for name in ("drive0", "drive1", "drive2", "drive5", "drive9")}
    assert units == {"drive0": 1, "drive1": 1, "drive2": 0, "drive5": 1, "drive9": 0}
    assert [vm.device(name, "scsi-id")[0] for name in ("drive3", "drive4")] == [3, 2]
    assert "inserted" not in vm.drives["drive9"]
    readonly = [name for name, node in vm.nodes.items() if node["ro"] and not name.endswith("-file")]
    assert sorted(readonly) == ["drive10", "drive11", "drive2", "drive5", "drive8", "spare"]
    assert vm.get("/machine", "pflash0") == "drive8"


def test_floppies_disks_and_the_cdrom_of_old(typed: Typed) -> None:
    vm = typed("--fda {floppya} --fdb {floppyb} --hda {diska} --hdb {diskb} --hdd {diskd} --cdrom {rawc}")
    found = {name: os.path.basename(item["inserted"]["file"]) for name, item in vm.drives.items()}
    assert found == {
        "fda": "floppya",
        "fdb": "floppyb",
        "hda": "diska",
        "hdb": "diskb",
        "hdd": "diskd",
        "cdrom": "rawc",
    }
    places = {name: vm.device(name, "parent_bus", "unit") for name in ("hda", "hdb", "cdrom", "hdd")}
    assert {name: (bus.rpartition("/")[2], unit) for name, (bus, unit) in places.items()} == {
        "hda": ("ide.0", 0),
        "hdb": ("ide.0", 1),
        "cdrom": ("ide.1", 0),
        "hdd": ("ide.1", 1),
    }
    assert vm.drives["cdrom"]["inserted"]["ro"]
    assert vm.cmos(0x10) == 0x44, "two floppy drives of 1.44 MB"


def test_filters_snapshots_and_limits(typed: Typed) -> None:
    vm = typed(
        "--drive {disk},if=virtio,copy-on-read=on,bps=3000000,bps_max=4000000,bps_max_length=2,iops_rd=10,"
        "iops_wr=20,iops_size=8192 "
        "--drive {disks},if=virtio,snapshot=on "
        "--drive {diskg},if=scsi,throttling.bps-read=100000,throttling.group=slow "
        "--drive {diskh},if=scsi,group=slow,bps_rd=100000 "
        "--drive file={rawx},format=raw,if=ide,throttling.iops-total=7"
    )
    limits = vm.get("/objects/throttle-drive0", "limits")
    assert {key: value for key, value in limits.items() if value not in (0, 1)} == {
        "bps-total": 3000000,
        "bps-total-max": 4000000,
        "bps-total-max-length": 2,
        "iops-read": 10,
        "iops-write": 20,
        "iops-size": 8192,
    }
    assert vm.get("/objects/throttle-drive4", "limits")["iops-total"] == 7
    assert vm.get("/objects/throttle-slow", "limits")["bps-read"] == 100000
    nodes = vm.nodes
    assert [nodes[name]["drv"] for name in ("drive0-cor-throttle", "drive0-cor", "drive0")] == [
        "throttle",
        "copy-on-read",
        "qcow2",
    ]
    assert (nodes["drive1-0"]["file"], nodes["drive1-0"]["ro"]) == (typed.files["disks"], True)
    assert not os.path.exists(nodes["drive1"]["file"]), "it vanishes with QEMU, for it has no name any more"
    assert {"drive2-throttle", "drive3-throttle"} <= set(nodes)


def test_drives_in_threads_of_their_own(typed: Typed) -> None:
    vm = typed(
        "--drive {diska},if=virtio,iothread=io0,iops=100 --drive {diskb},if=virtio,iothread=io1 "
        "--drive {diskc},if=scsi,iothread=io0 --drive {diskd},if=scsi,bus=1 --drive {diske},if=virtio"
    )
    assert sorted(item["id"] for item in vm.ask("query-iothreads")) == ["iothread-io0", "iothread-io1"]
    names = ("drive0", "drive1", "scsi0", "scsi1", "drive4")
    found = {name: vm.device(name, "iothread")[0].rpartition("/")[2] for name in names}
    assert found == {
        "drive0": "iothread-io0",
        "drive1": "iothread-io1",
        "scsi0": "iothread-io0",
        "scsi1": "",
        "drive4": "",
    }


def test_drives_are_listed_by_what_was_asked_for(typed: Typed) -> None:
    vm = typed("--drive {diska},if=usb,iops=9 --drive {diskb},if=virtio,snapshot=on --fda {floppya} --cdrom {rawc}")
    vm.monitor.close()
    (state,) = [state for _, state in runtime.vms(typed.root)]
    found = {drive.device: drive for drive in status(typed.vm("vm0"), state).drives}
    assert {name: (drive.file, drive.format) for name, drive in found.items()} == {
        "drive0": (typed.files["diska"], "qcow2"),
        "drive1": (typed.files["diskb"], "qcow2"),
        "fda": (typed.files["floppya"], "raw"),
        "cdrom": (typed.files["rawc"], "raw"),
    }
    assert [name for name, drive in found.items() if drive.ephemeral] == ["drive1"]
    assert [name for name, drive in found.items() if drive.read_only] == ["cdrom"]


def test_a_flash_chip_of_a_board_that_has_none_and_an_mtd_are_refused(typed: Typed) -> None:
    assert "has no MTD flash" in typed.refused("--drive {raw},format=raw,if=mtd")
    assert "has no flash chips" in typed.refused("--machine microvm --drive {raw},format=raw,if=pflash")
