"""Firmware, boot order, kernel."""

from __future__ import annotations

from collections import Counter

from imgtool.errors import ConfigError
from imgtool.image.names import printable
from imgtool.machine.checks.context import Context, Problems
from imgtool.machine.compile.networks import networks
from imgtool.machine.compile.start import wants_uefi

_DEVICES = {"a": "floppy", "c": "hard disk", "d": "CD-ROM", "n": "network"}
_LETTERS = "a floppy, c hard disk, d CD-ROM, n network"


def check_firmware(context: Context) -> Problems:
    firmware, board, uefi = context.machine.firmware, context.board, context.host.uefi
    if firmware.uefi is False and firmware.secure_boot:
        yield ConfigError("--secure-boot is a part of UEFI", hint="leave uefi off out")
    if not wants_uefi(context.machine):
        if firmware.vars is not None:
            yield ConfigError("--uefi-vars is a file for UEFI variables, but there is no UEFI", hint="add --uefi")
        return
    if firmware.bios is not None:
        yield ConfigError("--bios and --uefi both are the firmware", hint="leave one out")
    if not board.pflash:
        yield ConfigError(
            f"machine {board.name} has no flash chips to hold UEFI and its variables", hint="--machine q35 has"
        )
    elif firmware.secure_boot and board.family not in ("q35", "virt"):
        yield ConfigError(
            f"Secure Boot needs a machine with SMM, which {board.name} is not", hint="add --machine q35"
        )
    elif uefi is None:
        yield ConfigError(
            "no UEFI firmware was found for this machine" + (" with Secure Boot" if firmware.secure_boot else ""),
            hint="apt-get install ovmf; QEMU's firmware descriptors lie in /usr/share/qemu/firmware",
        )
    elif firmware.secure_boot and not uefi.secure_boot:
        yield ConfigError(
            f"the UEFI firmware {printable(uefi.code)} has no Secure Boot",
            hint="apt-get install ovmf brings one that has",
        )


def check_tpm(context: Context) -> Problems:
    tpm, board = context.machine.tpm, context.board
    if tpm is None:
        return
    if context.host.swtpm is None:
        yield ConfigError(
            "--tpm: swtpm, which imitates the chip, was not found on PATH", hint="apt-get install swtpm"
        )
    types = context.host.capabilities.tpmdevs
    if types and "emulator" not in types:
        yield ConfigError("this QEMU was built without emulated TPMs", hint=f"it has {', '.join(types)}")
    if board.family == "isapc" and tpm.model != "tpm-tis":
        yield ConfigError("an ISA PC has room for --tpm tpm-tis only")
    elif board.family == "microvm":
        yield ConfigError("machine microvm has no place for a TPM", hint="--machine q35 has")


def check_boot(context: Context) -> Problems:
    boot = context.machine.boot
    for key, letters in (("order", boot.order), ("once", boot.once)):
        if letters is None:
            continue
        wrong = [letter for letter in letters if letter not in _DEVICES]
        twice = [letter for letter, times in Counter(letters).items() if times > 1]
        if wrong or not letters:
            yield ConfigError(
                f"--boot {key}={printable(letters)}: {printable(wrong[0] if wrong else '')!r} is not a device",
                hint=_LETTERS,
            )
        elif twice:
            yield ConfigError(f"--boot {key}={letters} has {twice[0]} twice", hint="each letter stands once")
        else:
            yield from _absent(context, key, letters)
    if boot.once is not None and wants_uefi(context.machine):
        yield ConfigError("--boot once= is read by SeaBIOS, not by UEFI", hint="--boot order= works with both")
    for key, value in (("splash-time", boot.splash_time), ("reboot-timeout", boot.reboot_timeout)):
        if value is not None and value > 65535:
            yield ConfigError(f"--boot {key}={value}: at most 65535 milliseconds")
    if (boot.splash is not None or boot.splash_time is not None) and not boot.menu:
        yield ConfigError("--boot splash shows with the boot menu only", hint="add menu=on")
    yield from _bootindex(context)


def _absent(context: Context, key: str, letters: str) -> Problems:
    """A letter for which the machine has no device at all."""
    has = {
        "a": any(item.interface == "floppy" for item in context.drives),
        "d": any(item.cdrom for item in context.drives),
        "c": any(not item.cdrom and item.interface not in ("floppy", "pflash") for item in context.drives),
        "n": bool(networks(context.machine)),
    }
    # A letter further back is a wish for when the device is there; the first is what the machine starts from.
    first = letters[0]
    if not has[first] and not context.machine.arguments:
        yield ConfigError(f"--boot {key}={letters}: the machine has no {_DEVICES[first]}", hint=_LETTERS)


def _bootindex(context: Context) -> Problems:
    found: dict[int, str] = {}
    places = [(item.source, item.drive.bootindex) for item in context.drives]
    places += [(f"--network #{at + 1}", card.bootindex) for at, card in enumerate(networks(context.machine))]
    for source, index in places:
        if index is None:
            continue
        other = found.setdefault(index, source)
        if other != source:
            yield ConfigError(f"{other} and {source} both have bootindex={index}", hint="give one of them the next")


def check_kernel(context: Context) -> Problems:
    machine = context.machine
    if machine.kernel is None:
        for option, value, what in (
            ("--append", machine.append, "is the kernel's command line"),
            ("--initrd", machine.initrd, "is loaded beside the kernel"),
            ("--dtb", machine.dtb, "is handed to the kernel"),
        ):
            if value is not None:
                yield ConfigError(
                    f"{option} {what}, but there is no --kernel",
                    hint="a disk with a boot loader has these inside: change them there",
                )
    elif machine.dtb is not None and context.host.capabilities.target in ("x86_64", "i386"):
        yield ConfigError("--dtb: a PC describes itself by ACPI, not by a device tree", hint="leave --dtb out")
