"""UEFI firmware, found by QEMU's firmware descriptors, and each VM's own copy of its variables.

Source: QEMU's docs/interop/firmware.json: JSON files in three folders, sorted by name over all of them; a file in an
earlier folder hides those of its name in later ones (an empty one hides them for good).
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from imgtool.errors import MachineError
from imgtool.machine.host import Uefi

_PACKAGES = "on Debian: apt-get install ovmf"


class _File(msgspec.Struct, frozen=True):
    filename: str
    format: str


class _Mapping(msgspec.Struct, frozen=True, rename="kebab"):
    device: str
    mode: Literal["split", "combined", "stateless"] = "split"
    executable: _File | None = None
    nvram_template: _File | None = None


class _Target(msgspec.Struct, frozen=True):
    architecture: str
    machines: tuple[str, ...]


class Descriptor(msgspec.Struct, frozen=True, rename="kebab"):
    """QAPI: Firmware."""

    description: str
    interface_types: tuple[str, ...]
    mapping: _Mapping
    targets: tuple[_Target, ...]
    features: tuple[str, ...] = ()


class Found(msgspec.Struct, frozen=True):
    """A firmware for a machine, and where the template of its variables lies (None when it has none)."""

    uefi: Uefi
    template: str | None
    template_format: str
    description: str


def variables_format(path: str) -> Literal["raw", "qcow2"]:
    """Of the UEFI variables at `path`; what they become where nothing is yet: qcow2, which snapshots of a running VM
    need, unless the name is that of a copy of OVMF_VARS.fd."""
    try:
        with open(path, "rb") as file:
            return "qcow2" if file.read(4) == b"QFI\xfb" else "raw"
    except OSError:
        return "raw" if path.endswith(".fd") else "qcow2"


def folders() -> list[str]:
    """Where descriptors lie, the first counts most."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return [
        os.path.join(home, "qemu", "firmware"),
        "/etc/qemu/firmware",
        "/usr/local/share/qemu/firmware",
        "/usr/share/qemu/firmware",
    ]


def descriptors(places: Sequence[str] | None = None) -> Iterator[Descriptor]:
    """All descriptors in the order of their priority. What is no descriptor is passed over: QEMU packages of tomorrow
    may know more than this."""
    chosen: dict[str, str] = {}
    for folder in places if places is not None else folders():
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        for name in names:
            if name.endswith(".json"):
                chosen.setdefault(name, os.path.join(folder, name))
    for name in sorted(chosen):
        try:
            with open(chosen[name], "rb") as file:
                yield msgspec.json.decode(file.read(), type=Descriptor)
        except (OSError, msgspec.MsgspecError):
            continue


def find_uefi(architecture: str, machine: str, *, secure_boot: bool, places: Sequence[str] | None = None) -> Found:
    """The first firmware for `machine` (its full name, `pc-q35-7.2`) that fits. With `secure_boot`, one that enforces
    it with keys enrolled; without, one that does not. MachineError, with the package to install, when there is
    none."""
    kinds = list(descriptors(places))
    for descriptor in kinds:
        if not _fits(descriptor, architecture, machine):
            continue
        if ("secure-boot" in descriptor.features) != secure_boot:
            continue
        if secure_boot and "enrolled-keys" not in descriptor.features:
            continue
        return _found(descriptor)
    if not kinds:
        raise MachineError("no UEFI firmware is installed", hint=_PACKAGES)
    what = "UEFI firmware with Secure Boot" if secure_boot else "UEFI firmware"
    raise MachineError(
        f"there is no {what} for {machine}",
        hint="it is for q35: --machine q35" if secure_boot and not machine.startswith("pc-q35") else _PACKAGES,
    )


def _fits(descriptor: Descriptor, architecture: str, machine: str) -> bool:
    mapping = descriptor.mapping
    return (
        "uefi" in descriptor.interface_types
        and mapping.device == "flash"
        and mapping.executable is not None
        and os.path.exists(mapping.executable.filename)
        and any(
            target.architecture == architecture
            and any(fnmatch.fnmatchcase(machine, pattern) for pattern in target.machines)
            for target in descriptor.targets
        )
    )


def _found(descriptor: Descriptor) -> Found:
    mapping = descriptor.mapping
    assert mapping.executable is not None
    uefi = Uefi(
        code=mapping.executable.filename,
        code_format=mapping.executable.format,
        secure_boot="secure-boot" in descriptor.features,
        requires_smm="requires-smm" in descriptor.features,
    )
    template = mapping.nvram_template
    if template is None:
        return Found(uefi, None, "raw", descriptor.description)
    return Found(uefi, template.filename, template.format, descriptor.description)
