"""A domain's XML as a machine.

What the domain has and a machine has no setting for is noted, but for what libvirt adds to every domain by itself:
controllers, keyboard and mouse, and the addresses of devices.
"""

from __future__ import annotations

import time
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import msgspec

from imgtool.errors import ConfigError
from imgtool.machine.config import Machine
from imgtool.machine.smp import topology
from imgtool.machine.values.devices import Boot, Firmware, MachineType, Rtc
from imgtool.machine.values.processor import Cpu, Hugepages, Memory, Smp
from imgtool.publish.libvirt.reading_devices import read_devices
from imgtool.publish.libvirt.reading_disks import read_disks
from imgtool.publish.libvirt.reading_networks import read_networks
from imgtool.publish.libvirt.reading_numa import read_numa
from imgtool.publish.libvirt.reading_words import Found, attribute, in_bytes, number, number_at, text_at
from imgtool.publish.libvirt.start import ORDER
from imgtool.publish.libvirt.words import LeftOut, Notes

_LETTERS = {theirs: letter for letter, theirs in ORDER.items()}
_ACCELERATORS = {"qemu": "tcg", "kvm": "kvm", "hvf": "hvf"}


class Imported(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The result of an import."""

    machine: Machine
    """As a profile has it."""
    left_out: tuple[LeftOut, ...]
    """What the domain has and a profile does not."""


def read_domain(text: str) -> Imported:
    """The machine that the domain XML `text` describes. ConfigError when it is none, or none of QEMU's."""
    root = _parse(text)
    accelerator = _ACCELERATORS.get(root.get("type", ""))
    if root.tag != "domain" or accelerator is None:
        raise ConfigError("this is not a QEMU domain", hint="`virsh dumpxml --inactive NAME` prints one")
    found = Found(root, Notes())
    drives, arguments, properties = read_disks(found)
    machine = Machine(
        name=text_at(root, "name"),
        uuid=text_at(root, "uuid"),
        accel=accelerator,  # type: ignore[arg-type]
        machine=MachineType(type=attribute(root, "os/type", "machine"), properties=properties),
        cpu=_cpu(root),
        smp=_smp(root),
        memory=_memory(root),
        hugepages=_hugepages(root),
        numa=read_numa(root, found.notes),
        drives=drives,
        boot=_boot(root),
        kernel=text_at(root, "os/kernel"),
        initrd=text_at(root, "os/initrd"),
        append=text_at(root, "os/cmdline"),
        dtb=text_at(root, "os/dtb"),
        networks=read_networks(found),
        firmware=_firmware(root),
        rtc=_rtc(root),
        arguments=arguments,
        **read_devices(found),
    )
    return Imported(machine=_checked(machine), left_out=tuple(found.notes.found))


def _parse(text: str) -> Element:
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ConfigError("domain XML has no document type", hint="`virsh dumpxml --inactive NAME` prints a domain")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise ConfigError(
            f"this is not XML: {error}", hint="`virsh dumpxml --inactive NAME` prints a domain"
        ) from None


def _checked(machine: Machine) -> Machine:
    """`machine`, if its settings are what they may be: libvirt knows words that QEMU's options do not have."""
    try:
        return msgspec.convert(msgspec.to_builtins(machine), Machine)
    except msgspec.ValidationError as error:
        raise ConfigError(f"the domain has what imgtool has no setting for: {error}") from None


def _size(root: Element, path: str) -> int | None:
    found, unit = number_at(root, path), attribute(root, path, "unit")
    return None if found is None else in_bytes(found, unit)


def _memory(root: Element) -> Memory:
    most = root.find("maxMemory")
    if most is None:
        return Memory(size=_size(root, "memory"))
    return Memory(size=_size(root, "memory"), maxmem=_size(root, "maxMemory"), slots=number(most, "slots"))


def _cpu(root: Element) -> Cpu:
    cpu = root.find("cpu")
    mode = None if cpu is None else cpu.get("mode", "custom")
    model = {"host-passthrough": "host", "host-model": "host", "maximum": "max"}.get(mode or "")
    features: list[str] = []
    if cpu is not None:
        model = model or text_at(cpu, "model")
        for feature in cpu.findall("feature"):
            sign = "-" if feature.get("policy") in ("disable", "forbid") else "+"
            features.append(sign + feature.get("name", ""))
    hidden = attribute(root, "features/kvm/hidden", "state") == "on"
    return Cpu(model=model, features=tuple(features), properties={"kvm": False} if hidden else {})


def _smp(root: Element) -> Smp:
    vcpu = root.find("vcpu")
    most = number_at(root, "vcpu") or 1
    cpus = most if vcpu is None else number(vcpu, "current") or most
    levels = root.find("cpu/topology")
    if levels is None:
        # as libvirt has it: a socket for each
        return Smp(**msgspec.structs.asdict(topology(Smp(cpus=cpus, maxcpus=most, sockets=most, cores=1, threads=1))))
    named = {name: number(levels, name) or 1 for name in ("sockets", "dies", "clusters", "cores", "threads")}
    return Smp(cpus=cpus, maxcpus=most, **named)


def _hugepages(root: Element) -> Hugepages | None:
    backing = root.find("memoryBacking")
    if backing is None or backing.find("hugepages") is None:
        return None
    page = backing.find("hugepages/page")
    size = None if page is None else in_bytes(number(page, "size") or 0, page.get("unit"))
    shared = attribute(backing, "access", "mode") == "shared"
    return Hugepages(page_size=size, prealloc=True, share=True if shared else None)


def _boot(root: Element) -> Boot:
    order = "".join(_LETTERS.get(boot.get("dev", ""), "") for boot in root.findall("os/boot"))
    menu = root.find("os/bootmenu")
    bios = root.find("os/bios")
    return Boot(
        order=order or None,
        menu=True if menu is not None and menu.get("enable") == "yes" else None,
        splash_time=None if menu is None else number(menu, "timeout"),
        reboot_timeout=None if bios is None else number(bios, "rebootTimeout"),
    )


def _firmware(root: Element) -> Firmware:
    loader, os_ = root.find("os/loader"), root.find("os")
    enabled = root.find("os/firmware/feature[@name='secure-boot']")
    secure = (loader is not None and loader.get("secure") == "yes") or (
        enabled is not None and enabled.get("enabled") == "yes"
    )
    if loader is not None and loader.get("type", "rom") == "rom" and (os_ is None or os_.get("firmware") != "efi"):
        return Firmware(bios=(loader.text or "").strip() or None)
    if loader is None and (os_ is None or os_.get("firmware") != "efi"):
        return Firmware()
    kept = text_at(root, "os/nvram")
    # a file that libvirt named itself is one of the VM's own, as without a name in a profile
    own = kept is not None and kept.endswith(f"/{text_at(root, 'name')}_VARS.fd")
    return Firmware(uefi=True, secure_boot=True if secure else None, vars=None if own else kept)


def _rtc(root: Element) -> Rtc:
    clock = root.find("clock")
    if clock is None:
        return Rtc(base="utc")
    base = clock.get("offset", "utc")
    if base == "absolute":
        try:
            base = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(number(clock, "start") or 0))
        except (OverflowError, OSError):
            raise ConfigError(f"its clock starts at {clock.get('start')} s, which is no time") from None
    timer = clock.find("timer[@name='rtc']")
    settings: dict[str, Any] = {}
    if timer is not None:
        settings["clock"] = {"wall": "host", "guest": "vm"}.get(timer.get("track", ""))
        settings["driftfix"] = {"catchup": "slew", "delay": "none"}.get(timer.get("tickpolicy", ""))
    return Rtc(base=base if base != "variable" else "utc", **settings)
