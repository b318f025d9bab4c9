"""Partition tables, read from the bytes of a disk: GPT, and MBR with its logical partitions.

Bounded, and any bytes are taken: a table that makes no sense is none. Source: UEFI specification 2.10, 5.3 (GPT), and
what the kernel's block/partitions/msdos.c takes for an MBR.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable, Iterator
from typing import Literal

import msgspec

Read = Callable[[int, int], bytes]
"""(offset, length) → so many bytes of the disk; fewer only past its end."""

_SECTORS = (512, 4096)
_MOST = 256
_MOST_LOGICAL = 128
_EXTENDED = (0x05, 0x0F, 0x85)
_PROTECTIVE = 0xEE
_GPT_HEAD = struct.Struct("<8sIIIIQQQQ16sQIII")
_GPT_ENTRY = struct.Struct("<16s16sQQQ72s")
_MBR_ENTRY = struct.Struct("<B3xB3xII")


class Partition(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """One partition."""

    number: int
    """Counted from 1, as in /dev/vdaN."""
    start: int
    """Bytes from the disk's beginning."""
    end: int
    """The first byte behind it, from the disk's beginning."""
    type: str
    """GPT: the type's UUID; MBR: two hexadecimal digits."""
    name: str = ""
    """GPT only."""


class Table(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """A partition table."""

    kind: Literal["gpt", "mbr"]
    """Which of the two kinds of partition table it is."""
    partitions: tuple[Partition, ...]
    """In the order of their numbers."""

    @property
    def end(self) -> int:
        """The first byte behind the last partition."""
        return max((one.end for one in self.partitions), default=0)


def read_table(read: Read) -> Table | None:
    """The partition table of a disk, None where there is none."""
    head = read(0, 512)
    if len(head) < 512 or head[510:] != b"\x55\xaa":
        return None
    for sector in _SECTORS:
        if read(sector, 8) == b"EFI PART":
            partitions = tuple(_gpt(read, sector))
            return Table(kind="gpt", partitions=partitions)
    entries = list(_entries(head))
    if not entries or any(kind == _PROTECTIVE for _, kind, _, _ in entries):
        return None
    if any(flag not in (0, 0x80) for flag in head[446:510:16]):
        return None  # the boot sector of a FAT or NTFS ends so too
    return Table(kind="mbr", partitions=tuple(_mbr(read, entries)))


def _gpt(read: Read, sector: int) -> Iterator[Partition]:
    head = read(sector, _GPT_HEAD.size)
    if len(head) < _GPT_HEAD.size:
        return
    *_, table, count, size, _ = _GPT_HEAD.unpack(head)
    if not _GPT_ENTRY.size <= size <= 4096 or table > 1 << 48:
        return
    for number in range(min(count, _MOST)):
        entry = read(table * sector + number * size, _GPT_ENTRY.size)
        if len(entry) < _GPT_ENTRY.size:
            return
        kind, _, first, last, _, name = _GPT_ENTRY.unpack(entry)
        if kind != bytes(16) and first <= last < 1 << 50:
            yield Partition(
                number=number + 1,
                start=first * sector,
                end=(last + 1) * sector,
                type=str(uuid.UUID(bytes_le=kind)),
                name=name.decode("utf-16-le", "replace").partition("\0")[0],
            )


def _entries(sector: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(number, type, first sector, sectors) of the entries that are used."""
    for number in range(4):
        _, kind, first, count = _MBR_ENTRY.unpack_from(sector, 446 + 16 * number)
        if kind and count:
            yield number + 1, kind, first, count


def _mbr(read: Read, entries: list[tuple[int, int, int, int]]) -> Iterator[Partition]:
    for number, kind, first, count in entries:
        yield Partition(number=number, start=first * 512, end=(first + count) * 512, type=f"{kind:02x}")
        if kind in _EXTENDED:
            yield from _logical(read, first)


def _logical(read: Read, extended: int) -> Iterator[Partition]:
    """The partitions within an extended one, a list that each holds the next link of."""
    here, seen = extended, set[int]()
    for number in range(5, 5 + _MOST_LOGICAL):
        sector = read(here * 512, 512)
        if here in seen or len(sector) < 512 or sector[510:] != b"\x55\xaa":
            return
        seen.add(here)
        following = None
        for _, kind, first, count in list(_entries(sector))[:2]:
            if kind in _EXTENDED:
                following = extended + first
            else:
                start = here + first
                yield Partition(number=number, start=start * 512, end=(start + count) * 512, type=f"{kind:02x}")
        if following is None:
            return
        here = following
