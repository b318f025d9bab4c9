"""Checks on a changed copy before it takes an image's place: it is sound, and a guest reads the right data."""

from __future__ import annotations

import os
from collections.abc import Callable

from imgtool.errors import ImgtoolError
from imgtool.image.header import read_header
from imgtool.image.names import pasted, printable
from imgtool.qemu.img_types import Source
from imgtool.qemu.qemu_img import QemuImg

Progress = Callable[[float], None]

_CHECKED = ("qcow2", "qed", "vdi", "vhdx", "vmdk", "parallels")


class ProofError(ImgtoolError):
    """A changed copy is not what it should be; it was thrown away, and the image is as it was."""

    code = "proof"


def prove_sound(qemu_img: QemuImg, copy: str, *, format: str | None, image: str) -> None:
    """ProofError when `check` finds damage in `copy`, the new version of `image`. Leaked clusters do not count."""
    if format not in _CHECKED:
        return
    found = qemu_img.check(copy, format=format)
    if found.status == "corrupt":
        raise ProofError(
            f"the new version of {printable(image)} would be damaged; nothing was changed",
            hint=f"`imgtool check {pasted(image)}` says whether it is damaged already",
            path=image,
        )


def prove_same(
    qemu_img: QemuImg, copy: Source, original: Source, *, formats: tuple[str | None, str | None], image: str
) -> None:
    """ProofError when a guest would not read the same from `copy`, the new version of `image`, as from `original`."""
    if not same(qemu_img, copy, original, formats=formats):
        raise ProofError(
            f"a guest would no longer read the same data from {printable(image)}; nothing was changed",
            hint=f"`imgtool check {pasted(image)}` says whether it is damaged",
            path=image,
        )


def same(qemu_img: QemuImg, copy: Source, original: Source, *, formats: tuple[str | None, str | None]) -> bool:
    """Whether a guest reads the same from both: the same bytes, and (of images given by path) disks of one size."""
    by_path = isinstance(copy, str) and isinstance(original, str)
    if by_path and _virtual_size(copy, formats[0]) != _virtual_size(original, formats[1]):
        return False
    return qemu_img.compare(copy, original, format=formats[0], other_format=formats[1]).identical


def _virtual_size(path: Source, format: str | None) -> int:
    assert isinstance(path, str)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return read_header(fd, format=format).virtual_size
    finally:
        os.close(fd)
