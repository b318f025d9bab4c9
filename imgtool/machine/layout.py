"""Where each drive goes: `--hda`, `--cdrom`, `index=` and silence become a bus and a unit, as in QEMU's drive_new.

Both `validate` and the compiler read this, so that what is refused and what is built are the same thing.
"""

from __future__ import annotations

import os.path

from msgspec import Struct
from msgspec.structs import replace

from imgtool.errors import ConfigError
from imgtool.image.names import printable
from imgtool.machine.board import Board, board
from imgtool.machine.config import Machine
from imgtool.machine.host import Host
from imgtool.machine.values.storage import Drive, Interface

SHORTHANDS = ("fda", "fdb", "hda", "hdb", "hdc", "hdd", "cdrom")
SCSI_UNITS = 7
_MANY = 1 << 16


class Placed(Struct, frozen=True):
    drive: Drive
    source: str
    """What the user wrote: `--hda`, `--drive web.qcow2`; `--drive #2` for one without a file."""
    id: str
    """Of the device, and of the block node under it."""
    interface: Interface
    cdrom: bool
    bus: int
    unit: int


def spoken(machine: Machine, kind: Board) -> list[tuple[str, str, Drive]]:
    """Every drive of `machine` with what the user wrote and an id, `--hda` and its like spelled out."""
    found: list[tuple[str, str, Drive]] = []
    for name in SHORTHANDS:
        path = getattr(machine, name)
        if path is not None:
            found.append((f"--{name}", name, _shorthand(name, path, kind)))
    for place, drive in enumerate(machine.drives):
        # By its file rather than its number: the IMAGE of `boot`, which is a drive here, is none to who counts them.
        which = f"#{place + 1}" if drive.file is None else printable(os.path.basename(drive.file))
        found.append((f"--drive {which}", drive.id or f"drive{place}", drive))
    return found


def _shorthand(name: str, path: str, kind: Board) -> Drive:
    if name.startswith("fd"):
        return Drive(file=path, interface="floppy", index="ab".index(name[2]))
    # `-hda` is `if=` the machine's own; a CD-ROM is ide1-cd0 where there is IDE, else on SCSI, for virtio has none.
    if name == "cdrom":
        if kind.ide == (0, 0):
            return Drive(file=path, interface="scsi", media="cdrom")
        return Drive(file=path, interface=kind.interface, media="cdrom", index=2)
    if kind.family == "microvm":
        raise ConfigError(
            f"--{name} is an IDE disk, and machine {kind.name} has no IDE",
            hint="--drive FILE,if=virtio is a disk there",
        )
    return Drive(file=path, interface=kind.interface, index="abcd".index(name[2]))


def layout(machine: Machine, host: Host) -> list[Placed]:
    """All drives in their places. ConfigError when two want one place, or there is no such place."""
    kind = board(machine, host)
    drives = [
        (source, name, drive, drive.interface or kind.interface) for source, name, drive in spoken(machine, kind)
    ]
    taken: dict[tuple[str, int, int], str] = {}
    placed: dict[int, Placed] = {}
    # Those that name their place first, so that a later --hda finds hda free.
    order = sorted(range(len(drives)), key=lambda at: not _has_place(drives[at][2]))
    for at in order:
        source, name, drive, interface = drives[at]
        bus, unit = _place(source, drive, interface, kind, taken)
        taken[interface, bus, unit] = source
        placed[at] = Placed(drive, source, name, interface, drive.media == "cdrom", bus, unit)
    return [placed[at] for at in sorted(placed)]


def _has_place(drive: Drive) -> bool:
    return drive.index is not None or drive.unit is not None


def units(interface: Interface, kind: Board) -> tuple[int, int]:
    """How many buses, and units on each, `interface` has on this machine."""
    if interface == "ide":
        return kind.ide
    if interface == "scsi":
        return (_MANY, SCSI_UNITS)
    if interface in ("floppy", "pflash"):
        return (1, 2)
    return (1, _MANY)


def _place(
    source: str, drive: Drive, interface: Interface, kind: Board, taken: dict[tuple[str, int, int], str]
) -> tuple[int, int]:
    buses, per_bus = units(interface, kind)
    if buses == 0:
        raise ConfigError(
            f"{source}: machine {kind.name} has no IDE", hint="if=virtio is a disk on every machine but isapc"
        )
    if drive.index is not None:
        if drive.bus is not None or drive.unit is not None:
            raise ConfigError(f"{source}: index says bus and unit already", hint="give index=, or bus= and unit=")
        bus, unit = divmod(drive.index, per_bus)
        return _claim(source, interface, (bus, unit), (buses, per_bus), kind, taken)
    if drive.unit is not None:
        return _claim(source, interface, (drive.bus or 0, drive.unit), (buses, per_bus), kind, taken)
    bus, unit = drive.bus or 0, 0
    while (interface, bus, unit) in taken:
        unit += 1
        if unit == per_bus:
            bus, unit = bus + 1, 0
    if bus >= buses:
        raise ConfigError(
            f"{source}: all {buses * per_bus} places of if={interface} on machine {kind.name} are taken",
            hint="if=virtio has room for more" if interface == "ide" else "leave one out",
        )
    return bus, unit


def _claim(
    source: str,
    interface: Interface,
    place: tuple[int, int],
    size: tuple[int, int],
    kind: Board,
    taken: dict[tuple[str, int, int], str],
) -> tuple[int, int]:
    (bus, unit), (buses, per_bus) = place, size
    if bus >= buses or unit >= per_bus:
        last = buses * per_bus - 1
        raise ConfigError(
            f"{source}: if={interface} on machine {kind.name} has no bus {bus}, unit {unit}",
            hint=f"it has {buses} bus{'es' if buses > 1 else ''} of {per_bus}: index 0 to {last}",
        )
    other = taken.get((interface, bus, unit))
    if other is not None:
        both = {other, source}
        if "--cdrom" in both and "--hdc" in both:
            raise ConfigError(
                "--cdrom and --hdc are the same place: both are the first disk of the second IDE bus (index 2)",
                hint="use --hdd instead of --hdc, or --drive file=…,media=cdrom,index=3 instead of --cdrom",
            )
        raise ConfigError(
            f"{other} and {source} are both at if={interface}, bus {bus}, unit {unit} (index {bus * per_bus + unit})",
            hint="give one of them another index=, or none and it takes the next free place",
        )
    return bus, unit


def is_ephemeral(machine: Machine, placed: Placed) -> bool:
    """Whether what the guest writes to this drive is thrown away."""
    drive = placed.drive
    if placed.cdrom or drive.readonly or drive.file is None or placed.interface == "pflash":
        return False
    return drive.snapshot if drive.snapshot is not None else bool(machine.ephemeral)


def disk(path: str, **options: object) -> Drive:
    """The drive that a bare image argument means: virtio, which is fastest and every present-day guest knows."""
    return replace(Drive(file=path, interface="virtio"), **options)
