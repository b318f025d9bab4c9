"""A qcow2's table of internal snapshots, written natively where qemu-img has no verb for it."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping

from imgtool.errors import ImageFormatError
from imgtool.image.formats.qcow2 import Qcow2Details
from imgtool.image.header import read_header

_ENTRY = struct.Struct(">QIHHIIQII")
_DISK = struct.Struct(">QI")


def exchange_disks(fd: int, pairs: Mapping[bytes, bytes]) -> None:
    """Lets the two snapshots of each pair, named by their IDs, hold each other's disk; names, dates and the sizes of
    their VM states stay. The qcow2 open for reading and writing at `fd` is one that nobody uses.

    Source: docs/interop/qcow2.txt; where a snapshot's L1 table lies is the first twelve bytes of its entry. Which
    clusters are referred to how often stays the same, so that no reference count changes.
    """
    places = _entries(fd)
    for one, other in pairs.items():
        disks = [os.pread(fd, _DISK.size, places[snapshot]) for snapshot in (one, other)]
        for snapshot, disk in zip((other, one), disks, strict=True):
            os.pwrite(fd, disk, places[snapshot])


def _entries(fd: int) -> dict[bytes, int]:
    """ID → offset of the snapshot's entry."""
    header = read_header(fd, format="qcow2")
    details = header.details
    assert isinstance(details, Qcow2Details)
    found: dict[bytes, int] = {}
    offset = details.snapshots_offset
    for _ in range(header.snapshots):
        offset = offset + 7 & ~7
        entry = os.pread(fd, _ENTRY.size, offset)
        if len(entry) < _ENTRY.size:
            raise ImageFormatError("not a valid qcow2 image: its snapshot table is cut off")
        _, _, id_bytes, name_bytes, *_, extra_bytes = _ENTRY.unpack(entry)
        found[os.pread(fd, id_bytes, offset + _ENTRY.size + extra_bytes)] = offset
        offset += _ENTRY.size + extra_bytes + id_bytes + name_bytes
    return found
