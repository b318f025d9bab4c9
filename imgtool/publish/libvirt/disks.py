"""Disks: the device in the guest, and the chain behind it, each image with its format."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from imgtool.machine.board import Board
from imgtool.machine.compile.blocks import disk_of
from imgtool.machine.compile.drives import add_drives
from imgtool.machine.compile.parts import Parts
from imgtool.machine.config import Machine
from imgtool.machine.host import Host, Link
from imgtool.machine.layout import Placed
from imgtool.machine.values.storage import Drive, Throttle
from imgtool.publish.libvirt.words import Notes, letters, put, put_alias, put_pci, switch

_ERRORS = {"ignore": "ignore", "stop": "stop", "report": "report", "enospc": "enospace"}
LIMITS = {
    f"{short}{direction}{burst}": f"{way}_{long}_sec{burst}"
    for short, long in (("bps", "bytes"), ("iops", "iops"))
    for direction, way in (("", "total"), ("_rd", "read"), ("_wr", "write"))
    for burst in ("", "_max", "_max_length")
} | {"iops_size": "size_iops_sec", "group": "group_name"}
"""The names that -drive has for limits → libvirt's."""
_KNOWN = (
    *("file", "format", "interface", "id", "bus", "unit", "media", "snapshot", "cache", "aio", "discard"),
    *("detect_zeroes", "serial", "werror", "rerror", "readonly", "copy_on_read", "throttling", "bootindex"),
    "iothread",
)
_NOWHERE = {
    "pflash": "say what firmware it is: firmware.uefi",
    "none": "a drive without a device is nothing to libvirt",
    "sd": "libvirt's SD cards are not on this machine",
    "mtd": "libvirt has no flash memory but firmware",
}


class Disks:
    """Puts drives into `<devices>`. Lives for one domain."""

    def __init__(self, parent: Element, machine: Machine, kind: Board, host: Host, notes: Notes) -> None:
        self.parent = parent
        self.machine = machine
        self.kind = kind
        self.host = host
        self.notes = notes
        self.arguments: list[str] = []
        """For `<qemu:commandline>`."""
        self.controllers: dict[int, str | None] = {}
        """The number of the iothread of each virtio-scsi bus."""
        self.usb = False
        self._virtio = self._sd = 0

    def add(self, placed: Sequence[Placed]) -> None:
        for place, item in enumerate(placed):
            setting = f"drive[{place}]"
            if item.interface == "nvme":
                self._add_nvme(item, setting)
            elif item.interface in _NOWHERE:
                self.notes.add(f"{setting}.if", _NOWHERE[item.interface])
            else:
                self._add_disk(item, setting)

    def _add_nvme(self, item: Placed, setting: str) -> None:
        """libvirt has NVMe disks of files since 11.5; before, QEMU itself is told."""
        if item.drive.bootindex is not None:
            self.notes.add(f"{setting}.bootindex", "libvirt orders its own devices, of which an NVMe disk is none")
        self.notes.rest(item.drive, setting, [*(name for name in _KNOWN if name != "snapshot"), "addr"])
        if item.drive.file is None:
            self.notes.add(setting, "an NVMe disk is not empty")
            return
        if item.drive.snapshot:
            return
        parts = Parts(self.host)
        add_drives(parts, self.machine, self.kind, self.host, [item])
        self.arguments += parts.argv

    def _add_disk(self, item: Placed, setting: str) -> None:
        drive, interface = item.drive, item.interface
        device = "floppy" if interface == "floppy" else "cdrom" if item.cdrom else "disk"
        links: Sequence[Link] = ()
        follow = False
        if drive.file is not None:
            links, follow = (known := disk_of(drive, self.host)).chain, known.follow
        block = bool(links) and links[0].protocol != "file"
        disk = put(self.parent, "disk", type="block" if block else "file", device=device)
        self._add_driver(disk, drive, links, drive.iothread if interface == "virtio" else None)
        if links:
            _add_source(disk, links[0])
            _add_backing(disk, links[1:], follow)
        bus, target = self._target(item)
        put(disk, "target", dev=target, bus=bus)
        if drive.throttling is not None:
            _add_limits(disk, drive.throttling)
        if item.cdrom or drive.readonly:
            put(disk, "readonly")
        if drive.snapshot:
            put(disk, "transient")
        known_ = list(_KNOWN)
        if drive.serial is not None and interface == "floppy":
            self.notes.add(f"{setting}.serial", "a floppy disk has none")
        elif drive.serial is not None:
            put(disk, "serial", drive.serial)
        if drive.bootindex is not None:
            put(disk, "boot", order=drive.bootindex)
        put_alias(disk, drive.id, setting, self.notes)
        known_ += self._add_address(disk, item)
        if drive.cyls is not None and drive.heads is not None and drive.secs is not None:
            put(disk, "geometry", cyls=drive.cyls, heads=drive.heads, secs=drive.secs, trans=drive.trans)
            known_ += ["cyls", "heads", "secs", "trans"]
        self.notes.rest(drive, setting, known_)

    @staticmethod
    def _add_driver(disk: Element, drive: Drive, links: Sequence[Link], iothread: str | None) -> None:
        put(
            disk,
            "driver",
            name="qemu",
            type=links[0].format if links else "raw",
            cache=drive.cache,
            error_policy=_ERRORS.get(drive.werror or ""),
            rerror_policy=_ERRORS.get(drive.rerror or ""),
            io=drive.aio,
            discard=drive.discard,
            detect_zeroes=drive.detect_zeroes,
            copy_on_read=switch(drive.copy_on_read),
            iothread=_number(iothread),
        )

    def _target(self, item: Placed) -> tuple[str, str]:
        """Bus and name; the name only has to be one of its own."""
        if item.interface == "virtio":
            self._virtio += 1
            return "virtio", "vd" + letters(self._virtio - 1)
        if item.interface == "floppy":
            return "fdc", "fd" + letters(item.unit)
        if item.interface == "ide" and self.kind.ide[1] > 1:
            return "ide", "hd" + letters(item.bus * self.kind.ide[1] + item.unit)
        self._sd += 1
        bus = "sata" if item.interface == "ide" else item.interface
        self.usb |= bus == "usb"
        return bus, "sd" + letters(self._sd - 1)

    def _add_address(self, disk: Element, item: Placed) -> list[str]:
        """Where the guest sees it. Returns the settings that are said by it."""
        if item.interface == "scsi":
            self.controllers[item.bus] = self.controllers.get(item.bus) or _number(item.drive.iothread)
            put(disk, "address", type="drive", controller=item.bus, bus=0, target=item.unit, unit=0)
        elif item.interface in ("ide", "floppy"):
            bus, unit = (0, item.bus) if self.kind.ide[1] == 1 and item.interface == "ide" else (item.bus, item.unit)
            put(disk, "address", type="drive", controller=0, bus=bus, target=0, unit=unit)
        elif item.drive.addr is not None and item.interface == "virtio" and put_pci(disk, item.drive.addr):
            return ["addr"]
        return []


def _number(iothread: str | None) -> str | None:
    """Of `io1`, which `settled` has made of any name."""
    return None if iothread is None else iothread.removeprefix("io")


def _add_source(parent: Element, link: Link) -> None:
    if link.protocol == "file":
        put(parent, "source", file=link.path)
    else:
        put(parent, "source", dev=link.path)


def _add_backing(parent: Element, links: Sequence[Link], follow: bool) -> None:
    """The images below, one in the other, and an end: without it libvirt looks into the last one by itself, which is
    left to it where that stands on no local file."""
    for link in links:
        parent = put(parent, "backingStore", type="file" if link.protocol == "file" else "block")
        put(parent, "format", type=link.format)
        _add_source(parent, link)
    if not follow:
        put(parent, "backingStore")


def _add_limits(disk: Element, limits: Throttle) -> None:
    tune = put(disk, "iotune")
    for name, theirs in LIMITS.items():
        value = getattr(limits, name)
        if value is not None:
            put(tune, theirs, value)
