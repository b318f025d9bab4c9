"""Disks of a domain, and what stands on QEMU's command line."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any
from xml.etree.ElementTree import Element

from imgtool.machine.values.base import PropertyValue
from imgtool.machine.values.storage import Drive, Throttle
from imgtool.publish.libvirt.disks import LIMITS
from imgtool.publish.libvirt.reading_words import Found, identity, number, number_at, pci_address, text_at
from imgtool.publish.libvirt.words import QEMU_NAMESPACE

_BUSES = {"virtio": "virtio", "scsi": "scsi", "ide": "ide", "sata": "ide", "usb": "usb", "fdc": "floppy"}
_ERRORS = {"ignore": "ignore", "stop": "stop", "report": "report", "enospace": "enospc"}
_CACHES = {
    (True, False): "none",
    (False, True): "unsafe",
    (False, False): "writeback",
}

Read = tuple[tuple[Drive, ...], tuple[str, ...], dict[str, PropertyValue]]


def read_disks(found: Found) -> Read:
    """Drives, arguments for QEMU, and properties of the machine."""
    drives = []
    for place, disk in enumerate(found.root.findall("devices/disk")):
        drive = _drive(disk, place, found)
        if drive is not None:
            drives.append(drive)
    arguments, properties = _machine_words(
        [
            item.get("value", "")
            for item in found.root.findall(f"{{{QEMU_NAMESPACE}}}commandline/{{{QEMU_NAMESPACE}}}arg")
        ]
    )
    more, rest = _nvme(arguments)
    return (*drives, *more), tuple(rest), properties


def _drive(disk: Element, place: int, found: Found) -> Drive | None:
    setting = f"disk[{place}]"
    target, driver = disk.find("target"), disk.find("driver")
    bus = "" if target is None else target.get("bus", "")
    source = disk.find("source")
    file = None if source is None else source.get("file") or source.get("dev")
    if bus not in _BUSES or disk.get("device") == "lun" or disk.get("type") not in ("file", "block"):
        found.notes.add(setting, f"a {disk.get('type')} {disk.get('device', 'disk')} on {bus or 'no bus'}")
        return None
    interface: Any = _BUSES[bus]
    options: dict[str, Any] = {} if driver is None else _options(driver)
    if disk.get("device") == "cdrom":
        options["media"] = "cdrom"
    elif disk.find("readonly") is not None:
        options["readonly"] = True
    order = disk.find("boot")
    geometry = disk.find("geometry")
    if geometry is not None:
        options |= {name: number(geometry, name) for name in ("cyls", "heads", "secs")}
        options["trans"] = geometry.get("trans")
    return Drive(
        file=file,
        interface=interface,
        id=identity(disk),
        format=driver.get("type") if driver is not None and file is not None else None,
        snapshot=True if disk.find("transient") is not None else None,
        serial=text_at(disk, "serial"),
        throttling=_limits(disk),
        bootindex=None if order is None else number(order, "order"),
        addr=pci_address(disk, found) if bus == "virtio" else None,
        iothread=_iothread(disk, bus, found.root),
        **_place(disk, bus),
        **options,
    )


def _options(driver: Element) -> dict[str, Any]:
    return {
        "cache": driver.get("cache") if driver.get("cache") != "default" else None,
        "aio": driver.get("io"),
        "discard": driver.get("discard"),
        "detect_zeroes": driver.get("detect_zeroes"),
        "werror": _ERRORS.get(driver.get("error_policy", "")),
        "rerror": _ERRORS.get(driver.get("rerror_policy", "")),
        "copy_on_read": True if driver.get("copy_on_read") == "on" else None,
    }


def _iothread(disk: Element, bus: str, root: Element) -> str | None:
    """A SCSI disk's is that of its controller."""
    path = "driver"
    if bus == "scsi":
        address = disk.find("address[@type='drive']")
        controller = 0 if address is None else number(address, "controller") or 0
        path, disk = f"devices/controller[@type='scsi'][@index='{controller}']/driver", root
    driver = disk.find(path)
    thread = None if driver is None else number(driver, "iothread")
    return None if thread is None else f"io{thread}"


def _place(disk: Element, bus: str) -> dict[str, Any]:
    address = disk.find("address[@type='drive']")
    if address is None:
        return {}
    controller, at = number(address, "controller") or 0, number(address, "bus") or 0
    target, unit = number(address, "target") or 0, number(address, "unit") or 0
    if bus == "scsi":
        return {"bus": controller, "unit": target} if unit == 0 else {}
    if bus == "sata":
        return {"bus": unit, "unit": 0} if controller == 0 else {}
    if bus == "fdc":
        return {"unit": unit}
    return {"bus": at, "unit": unit} if bus == "ide" and controller == 0 else {}


def _limits(disk: Element) -> Throttle | None:
    tune = disk.find("iotune")
    if tune is None:
        return None
    values: dict[str, Any] = {}
    for ours, theirs in LIMITS.items():
        value = text_at(tune, theirs) if ours == "group" else number_at(tune, theirs)
        # a burst is a second long where nothing else is said, and libvirt says that too
        if value and not (ours.endswith("_length") and value == 1):
            values[ours] = value
    return Throttle(**values)


def _machine_words(words: list[str]) -> tuple[list[str], dict[str, PropertyValue]]:
    """`-machine name=value` is a property of the machine."""
    rest: list[str] = []
    properties: dict[str, PropertyValue] = {}
    at = 0
    while at < len(words):
        name, equals, value = words[at + 1].partition("=") if at + 1 < len(words) else ("", "", "")
        if words[at] == "-machine" and equals and "," not in value.replace(",,", "") and name != "type":
            plain = value.replace(",,", ",")
            switched: dict[str, PropertyValue] = {"on": True, "off": False}
            properties[name] = switched.get(plain, int(plain) if re.fullmatch("[0-9]{1,18}", plain) else plain)
            at += 2
        else:
            rest.append(words[at])
            at += 1
    return rest, properties


def _nvme(words: list[str]) -> tuple[list[Drive], list[str]]:
    """NVMe disks that `imgtool export libvirt` wrote, and the other words. A disk with more above its image than a
    format stays as it is."""
    nodes: dict[str, tuple[int, dict[str, Any]]] = {}
    drives: list[tuple[Drive, set[int]]] = []
    for at, (option, value) in enumerate(pairwise(words)):
        if option in ("-blockdev", "-device") and value.startswith("{"):
            node = _json(value)
            if option == "-blockdev":
                nodes[node.get("node-name", "")] = (at, node)
            elif node.get("driver") == "nvme":
                drive, used = _nvme_drive(node, nodes)
                if drive is not None:
                    drives.append((drive, {at, *used}))
    taken = {place for _, used in drives for at in used for place in (at, at + 1)}
    return [drive for drive, _ in drives], [word for at, word in enumerate(words) if at not in taken]


def _nvme_drive(
    device: dict[str, Any], nodes: dict[str, tuple[int, dict[str, Any]]]
) -> tuple[Drive | None, set[int]]:
    used: set[int] = set()
    name: str | None = device.get("drive")
    first: dict[str, Any] | None = None
    while name is not None:
        at, node = nodes.get(name, (-1, {}))
        under_at, under = nodes.get(node.get("file") or "", (-1, {}))
        if at < 0 or under_at < 0 or "filename" not in under:
            return None, set()
        used |= {at, under_at}
        first = first or {**under, "format": node.get("driver"), "detect-zeroes": node.get("detect-zeroes")}
        name = node.get("backing")
    if first is None:
        return None, set()
    cache = first.get("cache")
    mode = (
        _CACHES.get((cache.get("direct") is True, cache.get("no-flush") is True)) if isinstance(cache, dict) else None
    )
    if mode == "none" and device.get("write-cache") == "off":
        mode = "directsync"
    elif mode == "writeback" and device.get("write-cache") == "off":
        mode = "writethrough"
    drive: Any = {
        "file": first["filename"],
        "format": first["format"],
        "interface": "nvme",
        "id": device.get("id"),
        "cache": mode,
        "aio": first.get("aio"),
        "discard": first.get("discard"),
        "detect_zeroes": first.get("detect-zeroes"),
        "readonly": True if first.get("read-only") else None,
        "serial": device.get("serial"),
        "addr": device.get("addr"),
        "bootindex": device.get("bootindex"),
    }
    return Drive(**drive), used


def _json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
