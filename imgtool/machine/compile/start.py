"""What the guest starts from: firmware, boot order, kernel."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from imgtool.machine.compile.encode import encode, keyed
from imgtool.machine.compile.networks import networks
from imgtool.machine.compile.parts import Parts
from imgtool.machine.config import Machine
from imgtool.machine.host import Host
from imgtool.machine.layout import Placed


def add_firmware(parts: Parts, machine: Machine, host: Host) -> None:
    """UEFI in two flash chips, its code read-only, its variables the machine's own; or a BIOS file."""
    if machine.firmware.bios is not None:
        parts.add("-bios", machine.firmware.bios)
    if not wants_uefi(machine) or host.uefi is None:
        return
    uefi = host.uefi
    parts.argv += _flash(uefi.code, uefi.code_format, "uefi-code", readonly=True)
    parts.machine["pflash0"] = "uefi-code"
    if uefi.vars is not None:
        parts.argv += _flash(uefi.vars, uefi.vars_format, "uefi-vars", readonly=False)
        parts.machine["pflash1"] = "uefi-vars"
    if uefi.requires_smm:
        # OVMF's OvmfPkg/README: without the two a guest's kernel can write the variables of Secure Boot.
        parts.machine["smm"] = True
        parts.add("-global", "driver=cfi.pflash01,property=secure,value=on")
        parts.add("-global", "ICH9-LPC.disable_s3=1")


def wants_uefi(machine: Machine) -> bool:
    return bool(machine.firmware.uefi or machine.firmware.secure_boot)


def _flash(path: str, format_: str, node: str, *, readonly: bool) -> Iterator[str]:
    file = {"driver": "file", "node-name": f"{node}-file", "filename": path, "read-only": readonly}
    yield from ("-blockdev", encode(file, json=True, head="driver"))
    above = {"driver": format_, "node-name": node, "file": f"{node}-file", "read-only": readonly}
    yield from ("-blockdev", encode(above, json=True, head="driver"))


def add_boot(parts: Parts, machine: Machine) -> None:
    boot = machine.boot
    order = None if by_bootindex(machine) else boot.order
    value = {
        "order": order,
        "once": boot.once,
        "menu": boot.menu,
        "splash": boot.splash,
        "splash-time": boot.splash_time,
        "reboot-timeout": boot.reboot_timeout,
        "strict": boot.strict,
    }
    argument = keyed(None, value)
    if argument:
        parts.add("-boot", argument)
    for option, path in (
        ("-kernel", machine.kernel),
        ("-initrd", machine.initrd),
        ("-append", machine.append),
        ("-dtb", machine.dtb),
    ):
        if path is not None:
            parts.add(option, path)


def by_bootindex(machine: Machine) -> bool:
    """UEFI pays no heed to -boot order=: there the order is written as bootindex on each device. So it is wherever a
    device has one of its own, for SeaBIOS then looks at nothing else."""
    if machine.boot.order is None:
        return False
    named = [drive.bootindex for drive in machine.drives] + [network.bootindex for network in networks(machine)]
    return wants_uefi(machine) or any(index is not None for index in named)


def with_bootindex(machine: Machine, placed: list[Placed]) -> tuple[Machine, list[Placed]]:
    """`machine` and its drives with the letters of the boot order turned into bootindex, where that is what works.
    Devices that have one keep it, and come first."""
    if not by_bootindex(machine):
        return machine, placed
    cards = list(networks(machine))
    used = [item.drive.bootindex for item in placed] + [card.bootindex for card in cards]
    following = max((index for index in used if index is not None), default=-1) + 1
    drives = list(placed)
    for letter in machine.boot.order or "":
        for at, item in enumerate(drives):
            if item.drive.bootindex is None and _letter(item) == letter:
                drives[at] = replace(item, drive=replace(item.drive, bootindex=following))
                following += 1
        for at, card in enumerate(cards):
            if letter == "n" and card.bootindex is None:
                cards[at] = replace(card, bootindex=following)
                following += 1
    return replace(machine, networks=tuple(cards)), drives


def _letter(item: Placed) -> str | None:
    if item.interface == "floppy":
        return "a"
    if item.interface in ("none", "pflash", "sd", "mtd"):
        return None
    return "d" if item.cdrom else "c"
