"""Drives: everything `-drive` ever took, under its names."""

from typing import Literal

import msgspec

from imgtool.machine.values.base import Config, Count, Index, Path, Size

Interface = Literal["ide", "scsi", "sd", "mtd", "floppy", "pflash", "virtio", "none", "nvme", "usb"]
"""QEMU's `if=`, and two that it has only as devices: nvme and usb."""

Cache = Literal["writeback", "none", "writethrough", "directsync", "unsafe"]
Aio = Literal["threads", "native", "io_uring"]
WriteError = Literal["ignore", "stop", "report", "enospc"]
ReadError = Literal["ignore", "stop", "report"]


class Throttle(Config, frozen=True, kw_only=True):
    """Limits in bytes and requests a second, with bursts and their lengths in seconds. QAPI: ThrottleLimits, under
    the names `-drive` has for them."""

    bps: Size | None = None
    bps_rd: Size | None = None
    bps_wr: Size | None = None
    iops: Size | None = None
    iops_rd: Size | None = None
    iops_wr: Size | None = None
    bps_max: Size | None = None
    bps_rd_max: Size | None = None
    bps_wr_max: Size | None = None
    iops_max: Size | None = None
    iops_rd_max: Size | None = None
    iops_wr_max: Size | None = None
    bps_max_length: Count | None = None
    bps_rd_max_length: Count | None = None
    bps_wr_max_length: Count | None = None
    iops_max_length: Count | None = None
    iops_rd_max_length: Count | None = None
    iops_wr_max_length: Count | None = None
    iops_size: Size | None = None
    group: str | None = None
    """Drives that name the same group share its limits; the first one's count."""


class Drive(Config, frozen=True, kw_only=True):
    """`--drive`. cyls to trans, serial, addr, werror and rerror are properties of the device in QEMU today."""

    file: Path | None = None
    """An absolute path; None is an empty drive (CD-ROM or floppy)."""
    format: str | None = None
    interface: Interface | None = msgspec.field(name="if", default=None)
    """None is the machine type's own, as in QEMU."""
    id: str | None = None
    bus: Index | None = None
    unit: Index | None = None
    index: Index | None = None
    media: Literal["disk", "cdrom"] | None = None
    cyls: Count | None = None
    heads: Count | None = None
    secs: Count | None = None
    trans: Literal["none", "lba", "large", "rechs", "auto"] | None = None
    snapshot: bool | None = None
    """Writes go to a file that is thrown away; None follows the machine's `ephemeral`."""
    cache: Cache | None = None
    aio: Aio | None = None
    discard: Literal["ignore", "unmap"] | None = None
    detect_zeroes: Literal["off", "on", "unmap"] | None = None
    serial: str | None = None
    addr: str | None = None
    """PCI slot, or slot.function, in hexadecimal as in QEMU."""
    werror: WriteError | None = None
    rerror: ReadError | None = None
    readonly: bool | None = None
    copy_on_read: bool | None = None
    throttling: Throttle | None = None
    bootindex: Index | None = None
