"""Drives: their block nodes, the controllers they hang on, and the devices the guest sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imgtool.machine.board import Board
from imgtool.machine.compile.blocks import Nodes, disk_of, nodes, throttle_group, throttle_object, write_cache
from imgtool.machine.compile.encode import compact, keyed
from imgtool.machine.compile.parts import Parts
from imgtool.machine.config import Machine
from imgtool.machine.host import Host
from imgtool.machine.layout import Placed, is_ephemeral
from imgtool.machine.values.storage import Drive

ON_BOARD = ("sd", "mtd")
"""Interfaces whose controller is soldered to the board, if it has one: only the old -drive reaches them."""


def add_drives(parts: Parts, machine: Machine, kind: Board, host: Host, placed: list[Placed]) -> None:
    """All drives of the machine."""
    groups: set[str] = set()
    controllers: set[str] = set()
    for thread in dict.fromkeys(item.drive.iothread for item in placed):
        if thread is not None:
            parts.object({"qom-type": "iothread", "id": _thread(thread)})
    threads = {item.bus: item.drive.iothread for item in placed if item.interface == "scsi" and item.drive.iothread}
    for item in placed:
        if item.interface in ON_BOARD and kind.family == "other":
            parts.add("-drive", _legacy(item, host))
            continue
        node = _add_nodes(parts, machine, host, item, groups)
        if item.interface == "pflash":
            assert node is not None
            parts.machine[f"pflash{item.unit}"] = node
        elif item.interface != "none":
            _add_controller(parts, kind, item, controllers, threads)
            parts.device(compact(_device(item, kind, node)))
            if item.interface == "floppy" and item.drive.bootindex is not None:
                # The property is the controller's, which on most machines is made by the board.
                parts.add("-global", f"isa-fdc.bootindex{'AB'[item.unit]}={item.drive.bootindex}")


def _add_nodes(parts: Parts, machine: Machine, host: Host, item: Placed, groups: set[str]) -> str | None:
    drive = item.drive
    if drive.file is None:
        return None
    if drive.throttling is not None:
        group = throttle_group(drive.throttling, item.id)
        if group not in groups:
            groups.add(group)
            parts.add("-object", throttle_object(drive.throttling, group, host))
    made: Nodes = nodes(
        drive, item.id, host, readonly=item.cdrom or bool(drive.readonly), ephemeral=is_ephemeral(machine, item)
    )
    parts.argv += made.arguments
    if made.scratch is not None:
        parts.scratch.append(made.scratch)
    return made.top


def _add_controller(
    parts: Parts, kind: Board, item: Placed, controllers: set[str], threads: Mapping[int, str | None]
) -> None:
    """The controller that `item` hangs on, once; what is on the board already needs none. `threads` are those of SCSI
    buses."""
    name = {"scsi": f"scsi{item.bus}", "usb": "usb", "sd": f"sd{item.unit}", "floppy": "fdc0"}.get(item.interface)
    if _through_usb_bot(item):
        parts.usb()
        bot = {"driver": "usb-bot", "id": f"{item.id}-usb", "bus": "usb.0", "serial": item.drive.serial}
        parts.device(compact(bot))
    if name is None or name in controllers:
        return
    controllers.add(name)
    if item.interface == "scsi":
        value = {"driver": f"virtio-scsi{kind.virtio}", "id": name, "iothread": _thread(threads.get(item.bus))}
        parts.device(compact(value))
    elif item.interface == "usb":
        parts.usb()
    elif item.interface == "sd":
        parts.device({"driver": "sdhci-pci", "id": name})
    elif kind.family == "q35":
        # A PC of 1996 has its floppy controller on the board, a Q35 does not.
        parts.device({"driver": "isa-fdc", "id": name})


def _device(item: Placed, kind: Board, node: str | None) -> dict[str, Any]:
    drive = item.drive
    value: dict[str, Any] = {"driver": _driver(item, kind), "id": item.id, "drive": node}
    if item.interface == "ide":
        value |= {"bus": f"ide.{item.bus}", "unit": item.unit}
    elif item.interface == "scsi":
        value |= {"bus": f"scsi{item.bus}.0", "scsi-id": item.unit, "lun": 0}
    elif item.interface == "usb":
        value |= {"bus": f"{item.id}-usb.0" if _through_usb_bot(item) else "usb.0"}
    elif item.interface == "floppy":
        value |= {"unit": item.unit}
    if item.interface == "sd":
        return value
    value["write-cache"] = write_cache(drive.cache) if node else None
    if item.interface == "floppy":
        return value
    value["serial"] = drive.serial
    value["bootindex"] = drive.bootindex
    if item.interface == "nvme":
        return value | {"serial": drive.serial or item.id, "addr": drive.addr}
    value |= {"werror": drive.werror, "rerror": drive.rerror}
    if not item.cdrom and item.interface != "usb":
        value |= {"cyls": drive.cyls, "heads": drive.heads, "secs": drive.secs}
    if item.interface == "ide" and not item.cdrom:
        value["bios-chs-trans"] = drive.trans
    if item.interface == "virtio":
        value["iothread"] = _thread(drive.iothread)
        value["addr"] = drive.addr if kind.virtio == "-pci" else None
    return value


def _thread(name: str | None) -> str | None:
    """The object's id."""
    return None if name is None else f"iothread-{name}"


def _through_usb_bot(item: Placed) -> bool:
    """Whether a USB disk is made of its two parts: until QEMU 8 usb-storage, which is both in one, passes over
    write-cache=off, and what the guest was told is on the disk would not be."""
    return item.interface == "usb" and write_cache(item.drive.cache) == "off"


def _driver(item: Placed, kind: Board) -> str:
    if _through_usb_bot(item):
        return "scsi-hd"
    if item.interface in ("ide", "scsi"):
        return f"{item.interface}-{'cd' if item.cdrom else 'hd'}"
    return {
        "virtio": f"virtio-blk{kind.virtio}",
        "floppy": "floppy",
        "nvme": "nvme",
        "usb": "usb-storage",
        "sd": "sd-card",
    }[item.interface]


def _legacy(item: Placed, host: Host) -> str:
    """The old -drive, for a flash or SD slot that only the board's own code connects."""
    drive: Drive = item.drive
    return keyed(
        None,
        {
            "if": item.interface,
            "index": item.unit,
            "id": item.id,
            "format": disk_of(drive, host).chain[0].format,
            "file": drive.file,
            "readonly": drive.readonly,
            "cache": drive.cache,
        },
    )
