"""Changing the name by which an image refers to its backing file, while the file itself stays the same."""

from __future__ import annotations

import os
from typing import Literal, NamedTuple

from msgspec.structs import replace

from imgtool.chain.graph import Image
from imgtool.errors import ImageFormatError, RefusedError
from imgtool.image.anchor import KEEP, Anchor, edited_head, read_anchor
from imgtool.image.header import Qcow2Details, read_header
from imgtool.image.names import printable
from imgtool.operations.transaction import Transaction
from imgtool.qemu.img_argv import Verbatim
from imgtool.qemu.qemu_img import QemuImg

_RENAMABLE = ("qcow2", "qed")
"""Formats in which QEMU can change the name of the backing file."""


class Link(NamedTuple):
    """A backing file as a header names it."""

    reference: str
    format: str


def refuse_not_renamable(image: Image) -> None:
    """RefusedError when QEMU has no way to write another backing name into an image of this format."""
    if image.format not in _RENAMABLE:
        raise RefusedError(
            f"{printable(image.path)} is a {image.format} image, whose reference QEMU cannot change",
            hint="`imgtool convert -O qcow2` makes an image of it whose reference can",
            path=image.path,
        )


def can_be_patched(path: str) -> bool:
    """Whether the header of the image at `path` can be written in place with another name: a qcow2 of version 3 with
    room in its first cluster."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        details = read_header(fd).details
        if not isinstance(details, Qcow2Details) or details.version < 3:
            return False
        head_of(fd, Link("x" * 1023, "raw"))
    except ImageFormatError:
        return False
    finally:
        os.close(fd)
    return True


def head_of(
    fd: int, backing: Link | None = None, *, data_file: str | None = None, anchor: Anchor | None = None
) -> bytes:
    """The head that the qcow2 open at `fd` needs to name `backing` and `data_file` (None: as it does). Its anchor
    goes by the new name, if it was true of the old one, or is `anchor`. ImageFormatError as of `edited_head`."""
    header = read_header(fd, format="qcow2")
    known = anchor or read_anchor(fd, header)
    names: bytes | Literal["keep"] = KEEP if data_file is None else os.fsencode(data_file)
    if backing is None:
        return edited_head(fd, data_file=names)
    reference = os.fsencode(backing.reference)
    renamed: Anchor | Literal["keep"] = KEEP
    if known is not None and (anchor is not None or known.reference == header.backing):
        renamed = replace(known, reference=reference)
    return edited_head(fd, backing=(reference, backing.format), anchor=renamed, data_file=names)


def rename_backing(
    change: Transaction, qemu_img: QemuImg, image: Image, backing: Link, *, anchor: Anchor | None = None
) -> None:
    """Has `image` name `backing`, as part of `change`. In place where the header can be written in one go, else in a
    copy, which keeps the file's time of last change: whoever remembers the image finds it as it was."""
    refuse_not_renamable(image)
    change.hold(image.path)
    if can_be_patched(image.path):
        fd = os.open(image.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            change.patch(image.path, head_of(fd, backing, anchor=anchor))
        finally:
            os.close(fd)
        return
    copy = change.stage(image.path, copy_of=image.path)
    name_in_copy(qemu_img, copy, image, backing)
    change.replace(image.path, copy)


def name_in_copy(qemu_img: QemuImg, copy: str, image: Image, backing: Link) -> None:
    """Writes the name into `copy`, a new version of `image`."""
    qemu_img.rebase(
        copy,
        backing=Verbatim(backing.reference),
        backing_format=backing.format,
        format=image.format,
        unsafe=True,
    )
    keep_times(image.path, copy)


def keep_times(path: str, copy: str) -> None:
    status = os.stat(path)
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
