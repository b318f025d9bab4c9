"""Where the file systems of a raw disk lie, in its partitions or on the whole of it, and what each is by its magic
number."""

from __future__ import annotations

import os
from typing import NamedTuple

from imgtool.image.partitions import read_table

_EXTENDED = ("05", "0f", "85")
"""Partitions that hold others and no file system."""

_MAGICS = (
    ("ext", 1024 + 56, b"\x53\xef"),
    ("xfs", 0, b"XFSB"),
    ("btrfs", 65536 + 64, b"_BHRfS_M"),
    ("luks", 0, b"LUKS\xba\xbe"),
    ("lvm", 512, b"LABELONE"),
    ("fat", 82, b"FAT32"),
    ("fat", 54, b"FAT"),
    ("swap", 4086, b"SWAPSPACE2"),
)


class FileSystem(NamedTuple):
    number: int | None
    """Of its partition, counted from 1; None for the whole disk."""
    offset: int
    """Bytes."""
    type: str
    """`ext`, `xfs`, `btrfs`, `fat`, `lvm`, `luks`, `swap`, or `unknown`."""


def filesystems(path: str) -> list[FileSystem]:
    """Those of the raw disk at `path`; none for a disk that holds nothing known. Any bytes are taken."""
    with open(path, "rb") as file:
        fd = file.fileno()
        whole = _type(fd, 0)
        if whole != "unknown":
            return [FileSystem(None, 0, whole)]
        table = read_table(lambda offset, length: os.pread(fd, length, offset))
        if table is None:
            return []
        return [
            FileSystem(one.number, one.start, _type(fd, one.start))
            for one in table.partitions
            if table.kind == "gpt" or one.type not in _EXTENDED
        ]


def _type(fd: int, offset: int) -> str:
    return next(
        (name for name, at, magic in _MAGICS if os.pread(fd, len(magic), offset + at) == magic),
        "unknown",
    )
