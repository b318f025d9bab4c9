"""Drives."""

from __future__ import annotations

import re
from collections import defaultdict

from imgtool.errors import ConfigError
from imgtool.image.names import printable
from imgtool.machine.checks.context import Context, Problems
from imgtool.machine.layout import Placed, is_ephemeral
from imgtool.machine.options.text import suggestion
from imgtool.machine.values.storage import Throttle
from imgtool.sizes import format_size

_WITH_SERIAL = ("ide", "scsi", "virtio", "nvme", "usb")
_WITH_ERRORS = ("ide", "scsi", "virtio", "usb")
_WITH_GEOMETRY = ("ide", "scsi", "virtio")
_WITH_ADDR = ("virtio", "nvme")
_WITH_BOOTINDEX = ("ide", "scsi", "virtio", "nvme", "usb", "floppy")
_WITH_CDROM = ("ide", "scsi", "none")
_REMOVABLE = ("floppy",)
_SERIAL = 20
_LONGEST_ID = 18
"""A node name has at most 31 bytes, and the filters above are called after it: `-cor-throttle`."""
_OURS = (
    "nic[0-9]+|scsi[0-9]+|sd[0-9]+|usb|fdc0|virtio-serial|cloud-init|balloon0|vsock0|tablet0|watchdog0|sound0|video0"
    "|rng-device0|agent-port|vdagent-port|uefi-code|uefi-vars"
)
"""Names that the compiler gives to its own devices and nodes."""
_LARGEST_FLOPPY = 2880 << 10
_GEOMETRY = {"cyls": 65535, "heads": 16, "secs": 255}


def check_drives(context: Context) -> Problems:
    for item in context.drives:
        yield from _bus(context, item)
        yield from _names(context, item)
        yield from _media(item)
        yield from _properties(item)
        yield from _geometry(item)
        yield from _data(item)
        yield from _sizes(context, item)
        if item.drive.throttling is not None:
            yield from _throttle(item, item.drive.throttling)
    yield from _pairs_of(context)
    yield from _threads(context)
    yield from _flash(context)


def _bus(context: Context, item: Placed) -> Problems:
    board, interface = context.board, item.interface
    if interface in ("scsi", "virtio") and not board.virtio:
        yield ConfigError(
            f"{item.source}: machine {board.name} has no PCI bus, so no if={interface}", hint="if=ide is what it has"
        )
    elif interface in ("nvme", "usb", "sd") and not board.pci and board.family != "other":
        other = "if=virtio" if board.virtio else "if=ide"
        yield ConfigError(
            f"{item.source}: machine {board.name} has no PCI bus, so no if={interface}",
            hint=f"{other} is what it has",
        )
    elif interface == "floppy" and not board.floppy:
        yield ConfigError(
            f"{item.source}: machine {board.name} has no floppy controller", hint="pc and q35 can have one"
        )
    elif interface == "mtd" and board.family != "other":
        yield ConfigError(
            f"{item.source}: machine {board.name} has no MTD flash on its board",
            hint="if=mtd is for boards such as ast2500-evb; a PC's flash is if=pflash",
        )
    elif interface == "pflash" and not board.pflash:
        yield ConfigError(f"{item.source}: machine {board.name} has no flash chips", hint="pc, q35 and virt have two")


def _names(context: Context, item: Placed) -> Problems:
    drive = item.drive
    if drive.id is not None and (
        not re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]*", drive.id) or len(drive.id) > _LONGEST_ID
    ):
        yield ConfigError(
            f"{item.source}: id={printable(drive.id)} cannot be the name of a block node",
            hint=f"a letter, then letters, digits, dots and dashes, {_LONGEST_ID} at most",
        )
    elif drive.id is not None and re.fullmatch(_OURS, drive.id):
        yield ConfigError(f"{item.source}: id={drive.id} is a device that imgtool makes", hint="choose another name")
    drivers = context.host.capabilities.block_drivers
    if drive.format is not None and drivers and drive.format not in drivers:
        yield ConfigError(
            f"{item.source}: this QEMU reads no format {printable(drive.format)!r}",
            hint=suggestion(drive.format, drivers),
        )


def _media(item: Placed) -> Problems:
    drive = item.drive
    if item.cdrom and item.interface not in _WITH_CDROM:
        yield ConfigError(
            f"{item.source}: there is no if={item.interface} CD-ROM drive",
            hint="media=cdrom is for if=ide and if=scsi; elsewhere readonly=on makes a disk the guest cannot write",
        )
    if drive.file is None and not item.cdrom and item.interface not in _REMOVABLE:
        yield ConfigError(f"{item.source}: a disk needs file=", hint="only CD-ROM and floppy drives can be empty")
    if item.cdrom and drive.readonly is False:
        yield ConfigError(f"{item.source}: a CD-ROM cannot be written", hint="leave readonly=off out")
    if item.interface == "ide" and not item.cdrom and drive.readonly:
        yield ConfigError(
            f"{item.source}: an IDE disk cannot be read-only",
            hint="if=virtio and if=scsi disks can, and media=cdrom always is; snapshot=on throws writes away",
        )
    if drive.readonly and drive.snapshot:
        yield ConfigError(
            f"{item.source}: snapshot=on keeps writes for a while, readonly=on allows none", hint="choose one"
        )
    if drive.copy_on_read and (drive.readonly or item.cdrom):
        yield ConfigError(
            f"{item.source}: copy-on-read writes what it read into the image, which is read-only",
            hint="leave copy-on-read out",
        )


def _properties(item: Placed) -> Problems:
    drive, interface = item.drive, item.interface
    for name, value, where, better in (
        ("serial", drive.serial, _WITH_SERIAL, "if=virtio, ide, scsi, nvme and usb disks have serial numbers"),
        ("addr", drive.addr, _WITH_ADDR, "addr= is a PCI slot: if=virtio and if=nvme sit in one"),
        ("werror", drive.werror, _WITH_ERRORS, "if=virtio, ide, scsi and usb disks can"),
        ("rerror", drive.rerror, _WITH_ERRORS, "if=virtio, ide, scsi and usb disks can"),
        (
            "bootindex",
            drive.bootindex,
            _WITH_BOOTINDEX,
            "firmware starts from if=virtio, ide, scsi, nvme, usb, floppy",
        ),
        ("iothread", drive.iothread, ("scsi", "virtio"), "if=virtio and if=scsi drives can have one"),
        ("trans", drive.trans, ("ide",), "the BIOS translates the geometry of if=ide disks only"),
    ):
        if value is not None and interface not in where:
            yield ConfigError(f"{item.source}: if={interface} takes no {name}=", hint=better)
    if drive.serial is not None and len(drive.serial) > _SERIAL:
        yield ConfigError(f"{item.source}: serial={printable(drive.serial)} has more than {_SERIAL} characters")


def _geometry(item: Placed) -> Problems:
    drive = item.drive
    given = {name: getattr(drive, name) for name in _GEOMETRY if getattr(drive, name) is not None}
    if not given:
        if drive.trans not in (None, "auto", "none") and item.interface == "ide":
            yield ConfigError(
                f"{item.source}: trans={drive.trans} translates a geometry", hint="give cyls, heads and secs"
            )
        return
    if item.interface not in _WITH_GEOMETRY or item.cdrom:
        what = "a CD-ROM" if item.cdrom else f"if={item.interface}"
        yield ConfigError(f"{item.source}: {what} has no geometry", hint="leave cyls, heads and secs out")
    elif len(given) < len(_GEOMETRY):
        lacking = " and ".join(name for name in _GEOMETRY if name not in given)
        yield ConfigError(f"{item.source}: a geometry is cyls, heads and secs together, {lacking} missing")
    for name, value in given.items():
        if value > _GEOMETRY[name]:
            yield ConfigError(f"{item.source}: {name}={value} is more than {_GEOMETRY[name]}")


def _data(item: Placed) -> Problems:
    drive = item.drive
    if drive.aio == "native" and drive.cache not in ("none", "directsync"):
        yield ConfigError(
            f"{item.source}: aio=native needs the host's cache out of the way",
            hint="add cache=none or cache=directsync",
        )
    if drive.detect_zeroes == "unmap" and drive.discard != "unmap":
        yield ConfigError(f"{item.source}: detect-zeroes=unmap discards blocks", hint="add discard=unmap")
    if drive.file is None:
        for name in ("format", "cache", "aio", "discard", "throttling"):
            if getattr(drive, name) is not None:
                yield ConfigError(f"{item.source}: an empty drive has no {name}", hint="give file=")
                return


def _sizes(context: Context, item: Placed) -> Problems:
    known = context.host.disks.get(item.drive.file or "")
    size = known.size if known else None
    if not size:
        return
    if item.interface == "sd" and size & (size - 1):
        larger = 1 << size.bit_length()
        yield ConfigError(
            f"{item.source}: an SD card's size is a power of two, not {format_size(size)}",
            hint=f"qemu-img resize {printable(item.drive.file or '')} {format_size(larger)}",
            path=item.drive.file,
        )
    if item.interface == "floppy" and size > _LARGEST_FLOPPY:
        yield ConfigError(
            f"{item.source}: an image of {format_size(size)} is not a floppy, the largest of which has 2880 KiB",
            hint="--hda is for hard disks",
            path=item.drive.file,
        )


def _throttle(item: Placed, limits: Throttle) -> Problems:
    for unit in ("bps", "iops"):
        both = getattr(limits, unit) is not None
        for way in ("rd", "wr"):
            if both and getattr(limits, f"{unit}_{way}") is not None:
                yield ConfigError(
                    f"{item.source}: {unit} limits reads and writes together, {unit}_{way} apart",
                    hint=f"give {unit}, or {unit}_rd and {unit}_wr",
                )
        for key in (unit, f"{unit}_rd", f"{unit}_wr"):
            yield from _burst(item, limits, key)
    if limits.iops_size is not None and not any((limits.iops, limits.iops_rd, limits.iops_wr)):
        yield ConfigError(f"{item.source}: iops_size counts large requests for iops", hint="give iops= too")


def _burst(item: Placed, limits: Throttle, key: str) -> Problems:
    usual, most, length = (getattr(limits, name) for name in (key, f"{key}_max", f"{key}_max_length"))
    if most is not None and usual is None:
        yield ConfigError(f"{item.source}: {key}_max is a burst above {key}", hint=f"give {key}= too")
    elif most is not None and most < usual:
        yield ConfigError(f"{item.source}: the burst {key}_max={most} is below {key}={usual}")
    if length is not None and most is None:
        yield ConfigError(f"{item.source}: {key}_max_length is the length of a burst", hint=f"give {key}_max= too")


def _pairs_of(context: Context) -> Problems:
    writers: dict[str, list[Placed]] = defaultdict(list)
    ids: dict[str, Placed] = {}
    for item in context.drives:
        other = ids.setdefault(item.id, item)
        if other is not item:
            yield ConfigError(f"{other.source} and {item.source} both have id={item.id}")
        if item.drive.file is not None:
            writers[item.drive.file].append(item)
    for path, items in writers.items():
        writing = [item for item in items if not _reads_only(context, item)]
        if len(items) > 1 and writing:
            other = next(item for item in items if item is not writing[0])
            yield ConfigError(
                f"{writing[0].source} writes {printable(path)}, which {other.source} has too",
                hint="two drives may share an image that neither writes: readonly=on or snapshot=on for both",
                path=path,
            )


def _threads(context: Context) -> Problems:
    of_bus: dict[int, Placed] = {}
    for item in context.drives:
        thread = item.drive.iothread
        if thread is None:
            continue
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]*", thread):
            yield ConfigError(
                f"{item.source}: iothread={printable(thread)} is not a name for a thread",
                hint="such as iothread=io0, the same for drives that are to share it",
            )
        if context.board.virtio == "-device" and context.host.accelerator == "tcg":
            yield ConfigError(
                f"{item.source}: without PCI, a drive under TCG has no iothread of its own",
                hint=f"--machine {context.board.name},pcie=on has PCI" if context.board.family == "microvm" else None,
            )
        if item.interface != "scsi":
            continue
        other = of_bus.setdefault(item.bus, item)
        if other.drive.iothread != thread:
            yield ConfigError(
                f"{other.source} and {item.source} are on SCSI bus {item.bus}, which has one iothread, not two",
                hint="bus=1 is another bus",
            )


def _reads_only(context: Context, item: Placed) -> bool:
    return item.cdrom or bool(item.drive.readonly) or is_ephemeral(context.machine, item)


def _flash(context: Context) -> Problems:
    chips = [item for item in context.drives if item.interface == "pflash"]
    firmware = context.machine.firmware
    if not chips:
        return
    if firmware.uefi or firmware.secure_boot:
        yield ConfigError(
            f"{chips[0].source}: --uefi fills the flash chips itself",
            hint="leave out --uefi, or the if=pflash drives",
        )
    elif firmware.bios is not None:
        yield ConfigError(f"{chips[0].source}: --bios and if=pflash both are the firmware", hint="leave one out")
    if all(item.unit != 0 for item in chips):
        yield ConfigError(
            f"{chips[0].source}: the second flash chip without the first", hint="the firmware is index=0"
        )
