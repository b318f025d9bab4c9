"""A qcow2's table of internal snapshots. Source: docs/interop/qcow2.txt, and what QEMU accepts."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping

import msgspec

from imgtool.errors import ImageFormatError
from imgtool.image.formats.base import Header, until_nul
from imgtool.image.formats.qcow2 import MAX_SNAPSHOTS, Qcow2Details
from imgtool.image.header import read_header
from imgtool.image.source import Source

_ENTRY = struct.Struct(">QIHHIIQII")
_DISK = struct.Struct(">QI")
_MAX_EXTRA = 1024
_MAX_BYTES = MAX_SNAPSHOTS * 1024  # QEMU's bound for the whole table
_MAX_LISTED_BYTES = 8 << 20
_NO_ICOUNT = 2**64 - 1


class Snapshot(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """An internal snapshot. Source: QAPI's SnapshotInfo and docs/interop/qcow2.txt."""

    id: str
    """Bytes that are no UTF-8 are lone surrogates, in the name too."""
    name: str
    """As the user gave it; several may share one."""
    vm_state_size: int
    """Bytes; 0 when only the disk was saved."""
    date_sec: int
    """Seconds since 1970, UTC."""
    date_nsec: int
    """The nanoseconds that belong to `date_sec`."""
    vm_clock_nsec: int
    """Nanoseconds the guest had run."""
    disk_size: int
    """Bytes of the disk at that time."""
    icount: int | None = None
    """Instructions the guest had executed, where record/replay counted them."""


def read_snapshots(fd: int, header: Header, *, most: int = 1000) -> list[Snapshot]:
    """The internal snapshots of the image open at `fd`, whose header was read before; the first `most` of them.
    ImageFormatError where QEMU would refuse the table."""
    source = Source.of(fd, limit=_MAX_LISTED_BYTES)
    return [_snapshot(entry, header.virtual_size) for entry in _entries(source, header, most)]


class Entry(msgspec.Struct, frozen=True):
    """An entry of the table, and where in the file it lies."""

    offset: int
    l1_offset: int
    l1_entries: int
    sec: int
    nsec: int
    clock: int
    vm_state_size: int
    extra: bytes
    id: bytes
    name: bytes


def whole_table(fd: int) -> Iterator[Entry]:
    """All entries of the qcow2 open at `fd`. ImageFormatError for a table that is damaged, or cut off by the end of
    the file."""
    source = Source.of(fd, limit=_MAX_BYTES)
    for entry in _entries(source, read_header(fd, format="qcow2"), MAX_SNAPSHOTS):
        if entry.offset + _ENTRY.size > source.size:
            raise ImageFormatError("not a valid qcow2 image: its snapshot table is cut off")
        yield entry


def exchange_disks(fd: int, pairs: Mapping[bytes, bytes]) -> None:
    """Lets the two snapshots of each pair, named by their IDs, hold each other's disk; names, dates and the sizes of
    their VM states stay. The qcow2 open for reading and writing at `fd` is one that nobody uses. qemu-img has no verb
    for this.

    Where a snapshot's L1 table lies is the first twelve bytes of its entry. Which clusters are referred to how often
    stays the same, so that no reference count changes.
    """
    places = {entry.id: entry.offset for entry in whole_table(fd)}
    for one, other in pairs.items():
        disks = [os.pread(fd, _DISK.size, places[snapshot]) for snapshot in (one, other)]
        for snapshot, disk in zip((other, one), disks, strict=True):
            os.pwrite(fd, disk, places[snapshot])


def _entries(source: Source, header: Header, most: int) -> Iterator[Entry]:
    """The first `most`. As QEMU reads: what lies past the end of the file is zeros."""
    details = header.details
    if not isinstance(details, Qcow2Details):
        return
    offset = details.snapshots_offset
    for _ in range(min(header.snapshots, most)):
        offset = offset + 7 & ~7
        l1_offset, l1_entries, id_bytes, name_bytes, sec, nsec, clock, state, extra_bytes = _ENTRY.unpack(
            source.at(offset, _ENTRY.size)
        )
        if extra_bytes > _MAX_EXTRA:
            raise ImageFormatError("not a valid qcow2 image: a snapshot's extra data is too long")
        rest = source.at(offset + _ENTRY.size, extra_bytes + id_bytes + name_bytes)
        extra, name_at = rest[:extra_bytes], extra_bytes + id_bytes
        identity, name = rest[extra_bytes:name_at], rest[name_at:]
        yield Entry(offset, l1_offset, l1_entries, sec, nsec, clock, state, extra, identity, name)
        offset += _ENTRY.size + len(rest)


def _snapshot(entry: Entry, virtual_size: int) -> Snapshot:
    extra = entry.extra
    icount = int.from_bytes(extra[16:24]) if len(extra) >= 24 else _NO_ICOUNT
    return Snapshot(
        id=until_nul(entry.id).decode("utf-8", "surrogateescape"),
        name=until_nul(entry.name).decode("utf-8", "surrogateescape"),
        vm_state_size=int.from_bytes(extra[:8]) if len(extra) >= 8 else entry.vm_state_size,
        date_sec=entry.sec,
        date_nsec=entry.nsec,
        vm_clock_nsec=entry.clock,
        disk_size=int.from_bytes(extra[8:16]) if len(extra) >= 16 else virtual_size,
        icount=None if icount == _NO_ICOUNT else icount,
    )
