"""A machine as it would be started here: what it leaves open, said as `imgtool boot` decides it.

libvirt fills in what is left open in its own way, so that all is said to it, and what is read back is the same.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import NamedTuple

from msgspec.structs import asdict, replace

from imgtool.machine.board import Board, board, known_machine
from imgtool.machine.compile.devices import share_tag
from imgtool.machine.compile.display import display_type, vga_model
from imgtool.machine.compile.memory import cpu_range, memory_size, node_sizes, shares_memory
from imgtool.machine.compile.networks import network_id, networks, stable_mac
from imgtool.machine.compile.start import wants_uefi, with_bootindex
from imgtool.machine.config import Machine
from imgtool.machine.host import Host
from imgtool.machine.layout import SHORTHANDS, Placed, is_ephemeral, layout
from imgtool.machine.smp import topology
from imgtool.machine.values.devices import Boot, CharDevice, Rtc, SecurityModel, Share
from imgtool.machine.values.network import Network
from imgtool.machine.values.processor import Memory, NumaNode, Smp
from imgtool.machine.values.storage import Drive

_NAMES = uuid.UUID("6d1d5a3e-6f3d-5c0a-9f0e-0c5b1e4b6c11")
"""The name space of the UUIDs that are made of machines' names (RFC 4122, version 5)."""
_PLACED = ("ide", "scsi", "floppy")
"""Buses on which a drive's place is seen by the guest, and said."""


class Settled(NamedTuple):
    machine: Machine
    placed: tuple[Placed, ...]
    """Its drives."""
    kind: Board


def settled(machine: Machine, host: Host, *, name: str, versioned: bool = True) -> Settled:
    """`machine`, called `name`, with nothing left open that libvirt would decide. `versioned`: the machine type is
    the one that an alias such as q35 stands for in this QEMU. ConfigError when it contradicts itself."""
    kind = board(machine, host)
    type_ = known_machine(machine, host).name if versioned else kind.name
    placed = layout(machine, host)
    if any(one.bootindex is not None for one in (*machine.drives, *networks(machine))):
        machine, placed = with_bootindex(machine, placed)
    cards = [_card(card, place, name) for place, card in enumerate(networks(machine))]
    drives = [_drive(machine, item, host) for item in placed]
    drives, cards = _from_one(_numbered(drives), cards)
    whole = topology(machine.smp)
    model = machine.cpu.model or ("max" if host.accelerator == "tcg" else "host")
    said = replace(
        machine,
        name=name,
        uuid=machine.uuid or str(uuid.uuid5(_NAMES, name)),
        machine=replace(machine.machine, type=type_),
        accel=host.accelerator,
        cpu=replace(machine.cpu, model=model),
        smp=Smp(**asdict(whole)),
        memory=_memory(machine),
        numa=replace(machine.numa, nodes=_nodes(machine, whole.maxcpus)),
        drives=tuple(drives),
        ephemeral=None,
        networks=tuple(cards),
        boot=_boot(machine, drives, cards),
        display=replace(machine.display, type=display_type(machine, host)),
        vga=vga_model(machine, kind, host),
        serial=_ports(machine),
        rtc=replace(machine.rtc or Rtc(), base=machine.rtc.base if machine.rtc and machine.rtc.base else "utc"),
        firmware=replace(
            machine.firmware,
            uefi=wants_uefi(machine) or None,
            secure_boot=machine.firmware.secure_boot or None,
        ),
        agent=machine.agent or None,
        tablet=machine.tablet or None,
        safety=replace(machine.safety, sandbox=None) if machine.safety.sandbox else machine.safety,
        **dict.fromkeys(SHORTHANDS),
        **_devices(machine, host),
    )
    placed = [replace(item, drive=drive) for item, drive in zip(placed, drives, strict=True)]
    return Settled(said, tuple(placed), kind)


def _card(card: Network, place: int, name: str) -> Network:
    return replace(
        card,
        id=network_id(card, place),
        model=card.model or "virtio",
        mac=(card.mac or stable_mac(name, place)).lower(),
        queues=card.queues if card.queues != 1 else None,
    )


def _drive(machine: Machine, item: Placed, host: Host) -> Drive:
    drive = item.drive
    at = item.interface in _PLACED
    known = None if drive.file is None else host.disks.get(drive.file)
    return replace(
        drive,
        id=item.id,
        interface=item.interface,
        format=drive.format or (known.chain[0].format if known is not None else None),
        media="cdrom" if item.cdrom else None,
        index=None,
        bus=item.bus if at and item.interface != "floppy" else None,
        unit=item.unit if at else None,
        snapshot=is_ephemeral(machine, item) or None,
        readonly=True if drive.readonly and not item.cdrom else None,
        copy_on_read=drive.copy_on_read or None,
        serial=drive.serial or (item.id if item.interface == "nvme" else None),
    )


def _from_one(drives: list[Drive], cards: list[Network]) -> tuple[list[Drive], list[Network]]:
    """libvirt counts what a guest starts from from 1, where bootindex begins at 0."""
    if not any(one.bootindex == 0 for one in (*drives, *cards)):
        return drives, cards
    return (
        [replace(one, bootindex=one.bootindex + 1) if one.bootindex is not None else one for one in drives],
        [replace(one, bootindex=one.bootindex + 1) if one.bootindex is not None else one for one in cards],
    )


def _numbered(drives: list[Drive]) -> list[Drive]:
    """libvirt's iothreads have numbers for names."""
    names = dict.fromkeys(one.iothread for one in drives if one.iothread is not None)
    numbers = {name: f"io{place}" for place, name in enumerate(names, 1)}
    return [replace(one, iothread=numbers[one.iothread]) if one.iothread is not None else one for one in drives]


def _boot(machine: Machine, drives: list[Drive], cards: list[Network]) -> Boot:
    """Without a word on it, a PC tries its disks, floppies, CD-ROMs and then the network."""
    strict = None if machine.boot.strict else machine.boot.strict
    boot = replace(machine.boot, strict=strict, menu=machine.boot.menu or None)
    if any(one.bootindex is not None for one in (*drives, *cards)):
        return replace(boot, order=None)
    if boot.order is not None:
        return boot
    there = {"n"} if cards else set()
    for drive in drives:
        there.add("a" if drive.interface == "floppy" else "d" if drive.media == "cdrom" else "c")
    return replace(boot, order="".join(letter for letter in "cadn" if letter in there) or "c")


def _memory(machine: Machine) -> Memory:
    size, memory = memory_size(machine), machine.memory
    if memory.maxmem is None or memory.maxmem == size:
        return Memory(size=size)
    return replace(memory, size=size, slots=memory.slots or 1)


def _nodes(machine: Machine, cpus: int) -> tuple[NumaNode, ...]:
    """libvirt wants a NUMA node where memory can be plugged in; QEMU makes one of itself then."""
    if not machine.numa.nodes:
        if _memory(machine).maxmem is None:
            return ()
        return (NumaNode(nodeid=0, cpus=(f"0-{cpus - 1}" if cpus > 1 else "0",), mem=memory_size(machine)),)
    sizes = node_sizes(machine)
    return tuple(
        replace(
            node,
            nodeid=place if node.nodeid is None else node.nodeid,
            mem=size,
            cpus=_ranges(node.cpus),
            host_nodes=_ranges(node.host_nodes),
            policy=node.policy or ("bind" if node.host_nodes else None),
        )
        for place, (node, size) in enumerate(zip(machine.numa.nodes, sizes, strict=True))
    )


def _ranges(texts: Sequence[str]) -> tuple[str, ...]:
    """`0-1`, `4` as few as may be, in order."""
    numbers = sorted({number for text in texts for number in cpu_range(text)})
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return tuple(f"{first}-{last}" if first != last else str(first) for first, last in found)


def _ports(machine: Machine) -> tuple[CharDevice, ...]:
    """The terminal is one that `virsh console` opens."""
    ports = machine.serial if machine.serial is not None else (CharDevice(type="pty"),)
    found = [CharDevice(type="pty") if port.type == "stdio" else port for port in ports if port.type != "none"]
    return tuple(
        replace(port, server=port.server is not False, wait=port.wait or None) if port.type == "unix" else port
        for port in found
    )


def _security(share: Share) -> SecurityModel:
    return "mapped-xattr" if share.security_model in (None, "mapped") else share.security_model


def _devices(machine: Machine, host: Host) -> dict[str, object]:
    found: dict[str, object] = {
        "shares": tuple(
            replace(
                share,
                tag=share_tag(share),
                type=share.type or "9p",
                security_model=None if share.type == "virtiofs" else _security(share),
                readonly=share.readonly or None,
            )
            for share in machine.shares
        )
    }
    if machine.tpm is not None:
        found["tpm"] = replace(machine.tpm, model=machine.tpm.model or "tpm-crb")
    if machine.rng is not None and machine.rng.max_bytes:
        found["rng"] = replace(machine.rng, period=machine.rng.period or 1000)
    if machine.watchdog is not None:
        dog = machine.watchdog
        found["watchdog"] = replace(dog, model=dog.model or "i6300esb", action=dog.action or "reset")
    if machine.audio is not None:
        found["audio"] = replace(machine.audio, model=machine.audio.model or "hda")
    if machine.hugepages is not None:
        pages = machine.hugepages
        mount = host.hugepages
        found["hugepages"] = replace(
            pages,
            page_size=pages.page_size or (mount.page_size if mount is not None else None),
            prealloc=pages.prealloc is not False,
            share=pages.share or shares_memory(machine) or None,
        )
    return found
