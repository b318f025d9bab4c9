"""What the tests that face qemu-img share: the formats it can make here, and disks of known content."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from imgtool.errors import CommandError
from imgtool.qemu.img_argv import ImageOpts
from imgtool.qemu.img_help import formats
from imgtool.qemu.programs import Programs
from imgtool.qemu.qemu_img import QemuImg

ALL_FORMATS = ("raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vhdx", "vpc", "parallels")
"""Every format that qemu-img can make without a key; `luks` is the other."""

FORMATS = tuple(name for name in ALL_FORMATS if name in formats(Programs()))
CHECKED = {"qcow2", "qed", "vmdk", "vdi", "vhdx", "parallels"}
"""The formats whose consistency qemu-img can check."""

MIB = 1 << 20


def disk(seed: int, size: int = 2 * MIB) -> bytes:
    """A disk with data at its ends and in the middle, zeros between."""
    made = bytearray(size)
    for start in (0, size // 2, size - 65536):
        made[start : start + 65536] = random.Random(seed + start).randbytes(65536)
    return bytes(made)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def content(img: QemuImg, image: Path | str | bytes | ImageOpts, scratch: Path, format: str | None = None) -> bytes:
    """What a guest would read of `image`, for which a file is made in `scratch`."""
    target = scratch / "content.raw"
    img.convert(image, target, format=format, output_format="raw", overwrite=True)
    return target.read_bytes()


def overlay(img: QemuImg, base: Path, name: str = "overlay.qcow2") -> Path:
    """A qcow2 overlay of `base`, beside it."""
    path = base.parent / name
    img.create(path, format="qcow2", backing=base.name, backing_format="qcow2")
    return path


T = TypeVar("T")


def patiently(action: Callable[[], T]) -> T:
    """What `action` returns, tried again where QEMU gives up measuring how fast this machine derives a LUKS key: on
    some virtual machines 7.2 finds no CPU time used, about every other time."""
    for _ in range(60):
        try:
            return action()
        except CommandError as error:
            if "CPU usage" not in error.message:
                raise
    return action()
