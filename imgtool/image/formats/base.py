"""What every format's reader returns."""

from __future__ import annotations

from typing import NoReturn

import msgspec

from imgtool.errors import ImageFormatError

SECTOR = 512
MAX_SECTORS = (2**63 - 1) // SECTOR
"""QEMU counts bytes in signed 64-bit numbers and refuses what is larger."""


class Details(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What one format records beyond `Header`; each format has its own."""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What an image's header says about it."""

    format: str
    """QEMU's name of the block driver: `qcow2`, `raw`, `vmdk`, `vpc`, …"""
    virtual_size: int
    """Bytes, as `qemu-img info` says: qcow2 rounds down to whole sectors of 512 bytes, raw up."""
    backing: bytes | None = None
    """The backing file's name as QEMU takes it (cut at a NUL), None for a base."""
    backing_format: str | None = None
    """The format recorded for the backing file; None without one, and always without a backing file."""
    data_file: bytes | None = None
    """The external data file that a qcow2 names."""
    snapshots: int = 0
    """Internal snapshots, as the header counts them."""
    details: Details | None = None
    """What only images of this format have."""


def refuse(format: str, what: str) -> NoReturn:
    """ImageFormatError: `what` is wrong with an image in `format`."""
    raise ImageFormatError(f"not a valid {format} image: {what}")


def until_nul(data: bytes) -> bytes:
    """A C string: the bytes before the first NUL."""
    return data.partition(b"\0")[0]


def bytes_of(format: str, sectors: int) -> int:
    """The virtual size of `sectors`; ImageFormatError where QEMU would say that the image is too large."""
    if not 0 <= sectors <= MAX_SECTORS:
        refuse(format, "its virtual size is larger than any disk can be")
    return sectors * SECTOR
