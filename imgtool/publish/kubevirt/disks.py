"""Disks: their device in the guest, the volume behind it, and the DataVolume that fills that."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from imgtool.machine.config import Machine
from imgtool.machine.layout import SHORTHANDS
from imgtool.machine.values.storage import Drive
from imgtool.publish.kubevirt.words import Notes, quantity

API = "cdi.kubevirt.io/v1beta1"

_BUSES = {"virtio": "virtio", "scsi": "scsi", "ide": "sata", "usb": "usb"}
"""QEMU's `if=` → KubeVirt's buses; the IDE of a q35 is SATA."""

_CACHES = ("none", "writeback", "writethrough")
_ERRORS = {"ignore": "ignore", "stop": "stop", "report": "report", "enospc": "enospace"}
_ADDRESS = re.compile(r"(?:0x)?([0-9a-fA-F]{1,2})(?:\.([0-7]))?")

SizeOf = Callable[[str], int]
"""A file → the bytes of the disk in it."""


class Source(NamedTuple):
    """Where the first disk comes from."""

    registry: str | None = None
    """A containerDisk in a registry; None: it is uploaded."""


class Disks(NamedTuple):
    devices: list[dict[str, Any]]
    volumes: list[dict[str, Any]]
    data_volumes: list[dict[str, Any]]
    uploads: dict[str, str]
    """DataVolume → the file that has to be uploaded into it."""
    orders: dict[int, int]
    """Place among `devices` → what `bootindex` says."""
    threads: dict[int, str]
    """Place among `devices` → the iothread, as the machine calls it."""

    @property
    def shares_threads(self) -> bool:
        """Whether several disks have one iothread."""
        return len(self.threads) > len(set(self.threads.values()))


def disks(
    machine: Machine, name: str, size_of: SizeOf, notes: Notes, *, source: Source, storage_class: str | None
) -> Disks:
    found = Disks([], [], [], {}, {}, {})
    for setting, drive in _spoken(machine, notes):
        first = not found.devices
        volume = f"disk{len(found.devices)}"
        if drive.file is None:
            notes.add(setting, "a drive without a disk")
            continue
        device = _device(drive, volume, setting, notes)
        if device is None:
            continue
        if drive.bootindex is not None:
            found.orders[len(found.devices)] = drive.bootindex
        if drive.iothread is not None and _is_on_virtio(device):
            found.threads[len(found.devices)] = drive.iothread
        found.devices.append(device)
        ephemeral = drive.snapshot if drive.snapshot is not None else bool(machine.ephemeral)
        registry = source.registry if first else None
        if registry is not None and ephemeral:
            found.volumes.append({"name": volume, "containerDisk": {"image": registry}})
            continue
        claim = f"{name}-{volume}"[-63:].strip("-")
        held: dict[str, Any] = {"dataVolume": {"name": claim}}
        if ephemeral:
            held = {"ephemeral": {"persistentVolumeClaim": {"claimName": claim, "readOnly": True}}}
        found.volumes.append({"name": volume, **held})
        found.data_volumes.append(_data_volume(claim, registry, size_of(drive.file), storage_class))
        if registry is None:
            found.uploads[claim] = drive.file
    _divide_threads(found, notes)
    return found


def _is_on_virtio(device: dict[str, Any]) -> bool:
    """KubeVirt has iothreads for no other disks."""
    return bool(device.get("disk", {}).get("bus") == "virtio")


def _divide_threads(found: Disks, notes: Notes) -> None:
    """A disk has its iothread for itself, or all that share one share the same."""
    names = list(found.threads.values())
    shared = list(dict.fromkeys(name for name in names if names.count(name) > 1))
    for name in shared[1:]:
        notes.add(f"iothread {name}", f"KubeVirt's disks share one, which is {shared[0]}, or have one each")
    for place, name in found.threads.items():
        if name not in shared:
            found.devices[place]["dedicatedIOThread"] = True


def _spoken(machine: Machine, notes: Notes) -> list[tuple[str, Drive]]:
    """Every drive with its place in a profile, `hda` and its like spelled out."""
    found = []
    for name in SHORTHANDS:
        path = getattr(machine, name)
        if path is None:
            continue
        if name.startswith("fd"):
            notes.add(name, "KubeVirt has no floppy disks")
        else:
            media: Any = "cdrom" if name == "cdrom" else None
            found.append((name, Drive(file=path, interface="ide", media=media)))
    found += [(f"drive[{place}]", drive) for place, drive in enumerate(machine.drives)]
    return found


def _device(drive: Drive, name: str, setting: str, notes: Notes) -> dict[str, Any] | None:
    """None, and a note, for a drive on a bus that KubeVirt does not have."""
    bus = _BUSES.get(drive.interface or "ide")
    if bus is None:
        notes.add(f"{setting}.if", f"KubeVirt has no disks on {drive.interface}")
        return None
    target: dict[str, Any] = {"bus": bus}
    if drive.readonly is not None and drive.media != "cdrom":
        target["readonly"] = drive.readonly
    device: dict[str, Any] = {"name": name, "cdrom" if drive.media == "cdrom" else "disk": target}
    known = ["file", "format", "interface", "id", "media", "readonly", "snapshot", "bootindex"]
    known += _options(drive, device)
    if _is_on_virtio(device):
        known.append("iothread")
    if drive.addr is not None and bus == "virtio" and drive.media != "cdrom":
        address = pci_address(drive.addr)
        if address is not None:
            target["pciAddress"] = address
            known.append("addr")
    if drive.discard == "unmap":
        known.append("discard")  # as KubeVirt always has it
    notes.rest(drive, setting, known)
    return device


def _options(drive: Drive, device: dict[str, Any]) -> list[str]:
    """Puts into `device` what it has words for, and says which settings these were."""
    known = []
    if drive.cache in _CACHES:
        device["cache"] = drive.cache
        known.append("cache")
    if drive.aio in ("native", "threads"):
        device["io"] = drive.aio
        known.append("aio")
    if drive.serial is not None:
        device["serial"] = drive.serial
        known.append("serial")
    if drive.werror is not None and drive.rerror in (None, drive.werror):
        device["errorPolicy"] = _ERRORS[drive.werror]
        known += ["werror", "rerror"]
    return known


def pci_address(addr: str) -> str | None:
    """`0000:00:05.0` of `5`, and None for what is no slot."""
    match = _ADDRESS.fullmatch(addr)
    return None if match is None else f"0000:00:{int(match[1], 16):02x}.{match[2] or 0}"


def _data_volume(name: str, registry: str | None, size: int, storage_class: str | None) -> dict[str, Any]:
    origin: dict[str, Any] = {"upload": {}} if registry is None else {"registry": {"url": f"docker://{registry}"}}
    storage: dict[str, Any] = {"resources": {"requests": {"storage": quantity(-(-size // (1 << 20)) << 20)}}}
    if storage_class is not None:
        storage["storageClassName"] = storage_class
    return {
        "apiVersion": API,
        "kind": "DataVolume",
        "metadata": {"name": name},
        "spec": {"source": origin, "storage": storage},
    }
