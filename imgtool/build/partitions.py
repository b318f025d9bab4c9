"""Where the file systems of a raw disk lie: GPT, MBR with its logical partitions, or the whole disk, and what each
is by its magic number. Source: UEFI specification 2.10, 5.3; the kernel's block/partitions."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

_SECTOR = 512
_MOST = 256
"""Partitions that are looked at."""
_EXTENDED = (0x05, 0x0F, 0x85)
_GPT_ENTRY = struct.Struct("<16s16sQQ")
_MBR_ENTRY = struct.Struct("<B3xB3xII")


class Partition(NamedTuple):
    number: int | None
    """Counted from 1; None for the whole disk."""
    offset: int
    """Bytes."""
    type: str
    """`ext`, `xfs`, `btrfs`, `fat`, `lvm`, `luks`, `swap`, or `unknown`."""


def partitions(path: str) -> list[Partition]:
    """The file systems on the raw disk at `path`; none for a disk that holds nothing known. Any bytes are taken."""
    with open(path, "rb") as file:
        fd = file.fileno()
        whole = _type(fd, 0)
        if whole != "unknown":
            return [Partition(None, 0, whole)]
        starts = list(_gpt(fd)) or list(_mbr(fd))
        return [Partition(number, offset, _type(fd, offset)) for number, offset in starts[:_MOST]]


def _gpt(fd: int) -> Iterator[tuple[int, int]]:
    head = os.pread(fd, 92, _SECTOR)
    if len(head) < 92 or head[:8] != b"EFI PART":
        return
    table, count, size = struct.unpack_from("<QII", head, 72)
    if not 128 <= size <= 4096 or table > 1 << 48:
        return
    for number in range(min(count, _MOST)):
        entry = os.pread(fd, _GPT_ENTRY.size, table * _SECTOR + number * size)
        if len(entry) < _GPT_ENTRY.size:
            return
        kind, _, first, last = _GPT_ENTRY.unpack(entry)
        if kind != bytes(16) and first <= last < 1 << 48:
            yield number + 1, first * _SECTOR


def _mbr(fd: int) -> Iterator[tuple[int, int]]:
    for number, kind, first in _mbr_table(fd, 0):
        if kind in _EXTENDED:
            yield from _logical(fd, first)
        else:
            yield number, first * _SECTOR


def _logical(fd: int, extended: int) -> Iterator[tuple[int, int]]:
    here, number = extended, 5
    while number < _MOST:
        following = None
        for _, kind, first in _mbr_table(fd, here):
            if kind in _EXTENDED:
                following = extended + first
            else:
                yield number, (here + first) * _SECTOR
                number += 1
        if following is None or following <= here:
            return
        here = following


def _mbr_table(fd: int, sector: int) -> Iterator[tuple[int, int, int]]:
    """(number, type, first sector) of the entries in use."""
    block = os.pread(fd, _SECTOR, sector * _SECTOR)
    if len(block) < _SECTOR or block[510:] != b"\x55\xaa":
        return
    for number in range(4):
        _, kind, first, count = _MBR_ENTRY.unpack_from(block, 446 + 16 * number)
        if kind and count:
            yield number + 1, kind, first


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


def _type(fd: int, offset: int) -> str:
    return next(
        (name for name, at, magic in _MAGICS if os.pread(fd, len(magic), offset + at) == magic),
        "unknown",
    )
