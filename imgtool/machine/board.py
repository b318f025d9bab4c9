"""What is fixed by the type of machine: its buses, its own disk interface, and what it cannot have.

QEMU answers much over QMP (`Capabilities`), but not which `if=` a machine has by itself, nor how its index becomes a
bus and a unit; those are in each board's `MachineClass` (block_default_type, units_per_default_bus).
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from imgtool.errors import ConfigError
from imgtool.image.names import printable
from imgtool.machine.config import Machine
from imgtool.machine.host import Host
from imgtool.machine.options.text import suggestion
from imgtool.machine.values.storage import Interface
from imgtool.qemu.capabilities import MachineType

Family = Literal["pc", "q35", "isapc", "microvm", "virt", "other"]


class Board(Struct, frozen=True):
    name: str
    """As the user or QEMU's default calls it."""
    family: Family
    pci: bool
    interface: Interface
    """What `if=` is when a drive does not say."""
    ide: tuple[int, int]
    """Buses, units on each; (0, 0) without IDE."""
    virtio: str
    """The suffix of virtio devices here: -pci or -device; empty when it can have none."""
    floppy: bool = False
    parallel: bool = False
    vga: bool = False
    """Has a VGA card by custom."""
    pflash: bool = False
    dies: bool = False
    clusters: bool = False
    hotplug_memory: bool = True
    numa: bool = True


def family(name: str) -> Family:
    """The family of a machine type by its full name: distributions make up aliases, such as Ubuntu's ubuntu-q35."""
    if name == "pc" or name.startswith("pc-i440fx-"):
        return "pc"
    if name == "q35" or name.startswith("pc-q35-"):
        return "q35"
    if name == "virt" or name.startswith("virt-"):
        return "virt"
    if name == "isapc":
        return "isapc"
    return "microvm" if name == "microvm" else "other"


def board(machine: Machine, host: Host) -> Board:
    """The board of `machine`. A type that this QEMU lacks gets the traits of its family; `validate` refuses it."""
    name = machine_name(machine, host)
    known = host.capabilities.machine(name)
    kind = family(known.name if known else name)
    if kind == "pc":
        return Board(
            name, kind, True, "ide", (2, 2), "-pci", floppy=True, parallel=True, vga=True, pflash=True, dies=True
        )
    if kind == "q35":
        return Board(
            name, kind, True, "ide", (6, 1), "-pci", floppy=True, parallel=True, vga=True, pflash=True, dies=True
        )
    if kind == "isapc":
        return Board(
            name,
            kind,
            False,
            "ide",
            (2, 2),
            "",
            floppy=True,
            parallel=True,
            vga=True,
            hotplug_memory=False,
            numa=False,
        )
    if kind == "microvm":
        pcie = machine.machine.properties.get("pcie") in (True, "on")
        suffix = "-pci" if pcie else "-device"
        return Board(name, kind, pcie, "virtio", (0, 0), suffix, hotplug_memory=False, numa=False)
    if kind == "virt":
        return Board(name, kind, True, "virtio", (0, 0), "-pci", pflash=True, clusters=True)
    return Board(name, kind, True, "virtio", (0, 0), "-pci")


def machine_name(machine: Machine, host: Host) -> str:
    """The machine type asked for, or QEMU's default; on a target that has none (Arm), virt."""
    if machine.machine.type is not None:
        return machine.machine.type
    default = host.capabilities.machine(None)
    if default is None:
        return "virt"
    return default.alias or default.name


def known_machine(machine: Machine, host: Host) -> MachineType:
    """What this QEMU says of the machine type. ConfigError when it has no such type."""
    name = machine_name(machine, host)
    found = host.capabilities.machine(name)
    if found is None:
        names = [item.alias or item.name for item in host.capabilities.machines]
        raise ConfigError(
            f"this QEMU ({host.capabilities.version.text}) has no machine type {printable(name)!r}",
            hint=suggestion(name, names, more="`--machine help` says what they are"),
        )
    return found
