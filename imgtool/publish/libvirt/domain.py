"""A machine as domain XML."""

from __future__ import annotations

from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import msgspec

from imgtool.errors import RefusedError
from imgtool.machine.config import Machine
from imgtool.machine.firmware import Found
from imgtool.machine.host import Host
from imgtool.publish.libvirt.devices import add_devices
from imgtool.publish.libvirt.disks import Disks
from imgtool.publish.libvirt.networks import add_networks
from imgtool.publish.libvirt.processor import add_cpu, add_memory, machine_words
from imgtool.publish.libvirt.settle import Settled
from imgtool.publish.libvirt.start import add_clock, add_os
from imgtool.publish.libvirt.words import OWN_NAMESPACE, QEMU_NAMESPACE, LeftOut, Notes, put

_TAKEN = (
    *("name", "uuid", "machine", "accel", "cpu", "smp", "memory", "hugepages", "numa", "drives", "boot", "kernel"),
    *("initrd", "append", "dtb", "networks", "display", "vga", "keymap", "firmware", "tpm", "serial", "parallel"),
    *("rng", "balloon", "agent", "vsock", "tablet", "watchdog", "shares", "rtc", "audio", "cloud_init", "safety"),
    "arguments",
)
"""The settings of a machine that a function here takes; whatever is new in Machine is left out, and said to be."""
_TYPES = {"kvm": "kvm", "tcg": "qemu", "hvf": "hvf"}


class Domain(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """A machine for libvirt."""

    name: str
    xml: str
    left_out: tuple[LeftOut, ...]


def domain(wanted: Settled, host: Host, firmware: Found | None, *, partial: bool = False) -> Domain:
    """The domain that is the machine `wanted`. `firmware` is what it starts from; None lets libvirt choose.

    RefusedError when a setting cannot be expressed, which names them all; with `partial` they are left out.
    ConfigError for names that XML cannot hold."""
    machine, notes = wanted.machine, Notes()
    root = Element("domain", type=_TYPES[host.accelerator])
    put(root, "name", machine.name)
    put(root, "uuid", machine.uuid)
    _add_addressed(root, machine)
    add_memory(root, machine, notes)
    features = Element("features")
    if host.capabilities.target in ("x86_64", "i386"):
        put(features, "acpi")
        put(features, "apic")
    add_os(root, features, machine, firmware, host.capabilities.target, notes)
    root.append(features)
    add_cpu(root, features, machine, notes)
    add_clock(root, machine, notes)
    devices = put(root, "devices")
    if firmware is not None or not machine.firmware.uefi:
        put(devices, "emulator", host.qemu)
    disks = Disks(devices, machine, wanted.kind, host, notes)
    disks.add(wanted.placed)
    for bus, iothread in disks.controllers.items():
        controller = put(devices, "controller", type="scsi", index=bus, model="virtio-scsi")
        if iothread is not None:
            put(controller, "driver", iothread=iothread)
    threads = {item.drive.iothread for item in wanted.placed} - {None}
    if threads:
        put(root, "iothreads", len(threads))
    usb = disks.usb or bool(machine.tablet) or bool(machine.display.usb_redir)
    usb |= machine.audio is not None and machine.audio.model == "usb"
    put(devices, "controller", type="usb", index=0, model="qemu-xhci" if usb else "none")
    add_networks(devices, machine, notes)
    add_devices(devices, machine, notes)
    _add_arguments(root, machine, disks.arguments)
    _rest(machine, notes)
    if notes.found and not partial:
        raise RefusedError(
            "libvirt cannot have this machine: " + "; ".join(f"{one.setting}: {one.reason}" for one in notes.found),
            hint="--partial writes the domain without that",
        )
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return Domain(name=machine.name or "", xml=text + "\n", left_out=tuple(notes.found))


def _add_addressed(root: Element, machine: Machine) -> None:
    """Says by their ids whose PCI addresses are the user's wish."""
    ElementTree.register_namespace("imgtool", OWN_NAMESPACE)
    named = [one.id for one in (*machine.drives, *(machine.networks or ())) if one.addr is not None and one.id]
    put(put(root, "metadata"), f"{{{OWN_NAMESPACE}}}machine", addresses=" ".join(named))


def _add_arguments(root: Element, machine: Machine, arguments: list[str]) -> None:
    words = [*machine_words(machine.machine.properties), *arguments, *machine.arguments]
    if not words:
        return
    ElementTree.register_namespace("qemu", QEMU_NAMESPACE)
    line = put(root, f"{{{QEMU_NAMESPACE}}}commandline")
    for word in words:
        put(line, f"{{{QEMU_NAMESPACE}}}arg", value=word)


def _rest(machine: Machine, notes: Notes) -> None:
    """What no other function takes."""
    notes.rest(machine.safety, "safety", reason="libvirt confines QEMU in its own way, by its qemu.conf")
    notes.rest(machine, "", _TAKEN)


__all__ = ["Domain", "LeftOut", "domain"]
