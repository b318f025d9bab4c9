"""All manifests of a machine."""

from __future__ import annotations

import os
from typing import Any

import msgspec

from imgtool.chain.walk import guard
from imgtool.errors import RefusedError
from imgtool.machine.config import Machine
from imgtool.publish.kubevirt import processor
from imgtool.publish.kubevirt.devices import CloudInit, cloud_init, devices
from imgtool.publish.kubevirt.disks import Disks, SizeOf, Source, disks
from imgtool.publish.kubevirt.networks import LABEL, Networks, networks, service
from imgtool.publish.kubevirt.words import LeftOut, Notes, object_name

API = "kubevirt.io/v1"

_TAKEN = (
    *("name", "uuid", "machine", "accel", "cpu", "smp", "memory", "hugepages", "numa", "fda", "fdb", "hda", "hdb"),
    *("hdc", "hdd", "cdrom", "drives", "ephemeral", "boot", "kernel", "initrd", "append", "dtb", "networks"),
    *("display", "vga", "keymap", "firmware", "tpm", "serial", "parallel", "rng", "balloon", "agent", "vsock"),
    *("tablet", "watchdog", "shares", "rtc", "audio", "cloud_init", "safety", "arguments"),
)
"""The settings of a machine that a function here takes; whatever is new in Machine is left out, and said to be."""


class Manifests(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """A machine for KubeVirt."""

    name: str
    """The VirtualMachine's."""
    manifests: tuple[dict[str, Any], ...]
    """The DataVolumes, what Secrets and Service belong to it, then the VirtualMachine."""
    left_out: tuple[LeftOut, ...]
    """Settings that KubeVirt does not have."""
    uploads: dict[str, str]
    """DataVolume → the file of this host that belongs into it: `virtctl image-upload dv NAME --image-path=FILE`."""
    attachments: tuple[str, ...]
    """The NetworkAttachmentDefinitions that the VM's networks name: they have to be there."""


def size_of_image(path: str) -> int:
    """The bytes of the disk in the image at `path`. Raises as `guard`."""
    chain = guard(path)
    return chain[0].virtual_size or 0


def manifests(
    machine: Machine,
    *,
    name: str | None = None,
    registry: str | None = None,
    storage_class: str | None = None,
    size_of: SizeOf = size_of_image,
    partial: bool = False,
) -> Manifests:
    """What KubeVirt needs to make `machine`. Its first disk comes from the containerDisk `registry` (a reference),
    where there is one; all others are to be uploaded.

    RefusedError when a setting cannot be expressed, which names them all; with `partial` they are left out. Raises
    as `size_of` for each image, and ConfigError for a topology that contradicts itself."""
    notes = Notes()
    name = object_name(name or machine.name or _first_file(machine) or "vm")
    storage = disks(machine, name, size_of, notes, source=Source(registry), storage_class=storage_class)
    nets = networks(machine, notes)
    seeded = cloud_init(machine, name, notes)
    _boot_orders(machine, storage, nets, notes)
    spec = _instance(machine, storage, nets, seeded, notes)
    _rest(machine, notes)
    if notes.found and not partial:
        raise RefusedError(
            "KubeVirt cannot have this machine as it is: "
            + "; ".join(f"{one.setting}: {one.reason}" for one in notes.found),
            hint="--partial writes the manifests without that",
        )
    vm = {
        "apiVersion": API,
        "kind": "VirtualMachine",
        "metadata": {"name": name},
        "spec": {
            "runStrategy": "Halted",
            "template": {"metadata": {"labels": {LABEL: name}}, "spec": spec},
        },
    }
    others = [] if seeded is None else seeded.secrets
    if nets.forwards:
        others.append(service(name, nets.forwards))
    return Manifests(
        name=name,
        manifests=(*storage.data_volumes, *others, vm),
        left_out=tuple(notes.found),
        uploads=storage.uploads,
        attachments=tuple(dict.fromkeys(nets.attachments)),
    )


def _first_file(machine: Machine) -> str | None:
    files = [machine.hda, *(drive.file for drive in machine.drives)]
    found = next((file for file in files if file is not None), None)
    return None if found is None else os.path.splitext(os.path.basename(found))[0]


def _instance(
    machine: Machine, storage: Disks, nets: Networks, seeded: CloudInit | None, notes: Notes
) -> dict[str, Any]:
    """The spec of the VirtualMachineInstance."""
    found_devices = devices(machine, notes)
    found_devices["disks"] = [*storage.devices, *([] if seeded is None else [seeded.device])]
    found_devices["interfaces"] = nets.interfaces
    if not nets.interfaces:
        found_devices["autoattachPodInterface"] = False
    if nets.multiqueue:
        found_devices["networkInterfaceMultiqueue"] = True
    domain: dict[str, Any] = {
        "cpu": processor.cpu(machine, notes),
        "memory": processor.memory(machine, notes),
        "devices": found_devices,
    }
    optional: dict[str, Any] = {
        "machine": processor.machine_type(machine, notes),
        "firmware": processor.firmware(machine, notes),
        "features": processor.features(machine),
        "clock": processor.clock(machine, notes),
    }
    if storage.shares_threads:
        optional["ioThreadsPolicy"] = "shared"
    domain |= {key: value for key, value in optional.items() if value}
    spec: dict[str, Any] = {
        "domain": domain,
        "networks": nets.networks,
        "volumes": [*storage.volumes, *([] if seeded is None else [seeded.volume])],
    }
    if seeded is not None and seeded.hostname is not None:
        spec["hostname"] = object_name(seeded.hostname)
    return spec


def _boot_orders(machine: Machine, storage: Disks, nets: Networks, notes: Notes) -> None:
    """Numbers what a guest starts from: by `bootindex`, else by the letters of `boot.order`."""
    indexes = [(index, storage.devices[place]) for place, index in storage.orders.items()]
    indexes += [(index, nets.interfaces[place]) for place, index in nets.orders.items()]
    ordered = [device for _, device in sorted(indexes, key=lambda pair: pair[0])]
    known = []
    if machine.boot.order is not None and not ordered:
        known.append("order")
        kinds = {
            "c": [device for device in storage.devices if "disk" in device],
            "d": [device for device in storage.devices if "cdrom" in device],
            "n": nets.interfaces,
        }
        for letter in machine.boot.order:
            if letter in kinds:
                ordered += kinds[letter]
            else:
                notes.add("boot.order", f"KubeVirt has nothing for {letter}")
    for number, device in enumerate(ordered, 1):
        device["bootOrder"] = number
    notes.rest(machine.boot, "boot", known)


def _rest(machine: Machine, notes: Notes) -> None:
    """What no other function takes."""
    if machine.accel not in (None, "auto", "kvm"):
        notes.add("accel", f"whether a VM runs under {machine.accel} is a setting of the whole cluster")
    if machine.agent is False:
        notes.add("agent", "a VM in KubeVirt always has a channel for the guest agent")
    notes.rest(machine.safety, "safety", reason="KubeVirt confines QEMU in its own way")
    for place, _ in enumerate(machine.arguments):
        notes.add(f"arguments[{place}]", "KubeVirt takes no arguments for QEMU")
    notes.rest(machine, "", _TAKEN)


def as_yaml(found: Manifests) -> str:
    """The manifests as one file for `kubectl apply -f`."""
    import yaml

    return yaml.safe_dump_all(found.manifests, sort_keys=False, explicit_start=True, allow_unicode=True, width=118)
