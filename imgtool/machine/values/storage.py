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
    """Bytes a second, read and written."""
    bps_rd: Size | None = None
    """Bytes a second, read."""
    bps_wr: Size | None = None
    """Bytes a second, written."""
    iops: Size | None = None
    """Requests a second, of both kinds."""
    iops_rd: Size | None = None
    """Reads a second."""
    iops_wr: Size | None = None
    """Writes a second."""
    bps_max: Size | None = None
    """Bytes a second in a burst, read and written."""
    bps_rd_max: Size | None = None
    """Bytes a second in a burst, read."""
    bps_wr_max: Size | None = None
    """Bytes a second in a burst, written."""
    iops_max: Size | None = None
    """Requests a second in a burst, of both kinds."""
    iops_rd_max: Size | None = None
    """Reads a second in a burst."""
    iops_wr_max: Size | None = None
    """Writes a second in a burst."""
    bps_max_length: Count | None = None
    """Seconds that a burst of `bps-max` may last."""
    bps_rd_max_length: Count | None = None
    """Seconds that a burst of `bps-rd-max` may last."""
    bps_wr_max_length: Count | None = None
    """Seconds that a burst of `bps-wr-max` may last."""
    iops_max_length: Count | None = None
    """Seconds that a burst of `iops-max` may last."""
    iops_rd_max_length: Count | None = None
    """Seconds that a burst of `iops-rd-max` may last."""
    iops_wr_max_length: Count | None = None
    """Seconds that a burst of `iops-wr-max` may last."""
    iops_size: Size | None = None
    """Bytes that count as one request; a larger one counts as several."""
    group: str | None = None
    """Drives that name the same group share its limits; the first one's count."""


class Drive(Config, frozen=True, kw_only=True):
    """`--drive`. cyls to trans, serial, addr, werror and rerror are properties of the device in QEMU today."""

    file: Path | None = None
    """An absolute path; None is an empty drive (CD-ROM or floppy)."""
    format: str | None = None
    """As QEMU calls it; None lets the header decide."""
    interface: Interface | None = msgspec.field(name="if", default=None)
    """None is the machine type's own, as in QEMU."""
    id: str | None = None
    """What QEMU and its monitor call it; None is made up."""
    bus: Index | None = None
    """Which bus of its interface, counted from 0."""
    unit: Index | None = None
    """Its place on the bus, counted from 0."""
    index: Index | None = None
    """Its place among the drives of its interface, counted from 0, in place of `bus` and `unit`."""
    media: Literal["disk", "cdrom"] | None = None
    """What the guest sees; None is a disk."""
    cyls: Count | None = None
    """The disk's geometry: cylinders."""
    heads: Count | None = None
    """The disk's geometry: heads."""
    secs: Count | None = None
    """The disk's geometry: sectors of a track."""
    trans: Literal["none", "lba", "large", "rechs", "auto"] | None = None
    """How the BIOS translates the geometry."""
    snapshot: bool | None = None
    """Writes go to a file that is thrown away; None follows the machine's `ephemeral`."""
    cache: Cache | None = None
    """The host's cache, in the words of `-drive`; None is writeback."""
    aio: Aio | None = None
    """How QEMU waits for the disk. QAPI: BlockdevAioOptions."""
    discard: Literal["ignore", "unmap"] | None = None
    """Whether what the guest gives up is given back to the host. QAPI: BlockdevDiscardOptions."""
    detect_zeroes: Literal["off", "on", "unmap"] | None = None
    """Whether zeros are written as such, or given up. QAPI: BlockdevDetectZeroesOptions."""
    serial: str | None = None
    """The serial number that the guest sees."""
    addr: str | None = None
    """PCI slot, or slot.function, in hexadecimal as in QEMU."""
    werror: WriteError | None = None
    """What happens when the host cannot write. QAPI: BlockdevOnError."""
    rerror: ReadError | None = None
    """What happens when the host cannot read. QAPI: BlockdevOnError."""
    readonly: bool | None = None
    """The guest cannot write to it."""
    copy_on_read: bool | None = None
    """Whether what is read from the backing file is kept in the image."""
    throttling: Throttle | None = None
    """Limits; None is none."""
    iothread: str | None = None
    """virtio and scsi: the thread that moves its data, which drives that name the same one share; None is QEMU's
    main one. All drives of a SCSI bus have that of the bus."""
    bootindex: Index | None = None
    """Its place in the firmware's order: the lowest is tried first."""
