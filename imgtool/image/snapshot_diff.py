"""What was written to a qcow2's disk since one of its internal snapshots, by comparing tables: no data is read.

Source: docs/interop/qcow2.txt. A snapshot has an L1 table of its own; writing gives the disk new L2 tables and
clusters, so that what both still name is the same.
"""

from __future__ import annotations

import os
import struct
from array import array

from imgtool.errors import ImageFormatError
from imgtool.image.formats.qcow2 import Qcow2Details
from imgtool.image.header import read_header

_ENTRY = struct.Struct(">QIHHIIQII")
_OFFSET = 0x00FFFFFFFFFFFE00
_COPIED = 1 << 63
_MOST_L1 = 32 << 20


def written_since(fd: int) -> dict[str, int]:
    """For each internal snapshot of the qcow2 at `fd`, by its ID, how many bytes of the disk (whole clusters) are not
    what they were. Empty for an image that has none. ImageFormatError for a damaged table."""
    header = read_header(fd, format="qcow2")
    details = header.details
    assert isinstance(details, Qcow2Details)
    now = _l1(fd, details.l1_offset, details.l1_entries)
    found = {}
    offset = details.snapshots_offset
    for _ in range(header.snapshots):
        offset = offset + 7 & ~7
        entry = os.pread(fd, _ENTRY.size, offset)
        if len(entry) < _ENTRY.size:
            raise ImageFormatError("not a valid qcow2 image: its snapshot table is cut off")
        table, entries, id_bytes, name_bytes, *_, extra_bytes = _ENTRY.unpack(entry)
        identity = os.pread(fd, id_bytes, offset + _ENTRY.size + extra_bytes)
        then = _l1(fd, table, entries)
        found[os.fsdecode(identity.partition(b"\0")[0])] = _differing(fd, now, then, details) * details.cluster_size
        offset += _ENTRY.size + extra_bytes + id_bytes + name_bytes
    return found


def _l1(fd: int, offset: int, entries: int) -> list[int]:
    if entries * 8 > _MOST_L1:
        raise ImageFormatError("not a valid qcow2 image: an L1 table is too large")
    return [entry & _OFFSET for entry in _words(os.pread(fd, entries * 8, offset))]


def _words(data: bytes) -> array[int]:
    words = array("Q", data[: len(data) // 8 * 8])
    words.byteswap()
    return words


def _differing(fd: int, one: list[int], other: list[int], details: Qcow2Details) -> int:
    """How many clusters the two L1 tables lead to differently."""
    longest = max(len(one), len(other))
    count = 0
    for first, second in zip(one + [0] * (longest - len(one)), other + [0] * (longest - len(other)), strict=True):
        if first != second:
            count += _differing_entries(_l2(fd, first, details), _l2(fd, second, details), details)
    return count


def _l2(fd: int, offset: int, details: Qcow2Details) -> array[int]:
    data = os.pread(fd, details.cluster_size, offset) if offset else b""
    return _words(data.ljust(details.cluster_size, b"\0"))


def _differing_entries(one: array[int], other: array[int], details: Qcow2Details) -> int:
    step = 2 if details.extended_l2 else 1
    if one == other:
        return 0
    different = [(first ^ second) & ~_COPIED != 0 for first, second in zip(one, other, strict=True)]
    if step == 1:
        return sum(different)
    return sum(entry or subclusters for entry, subclusters in zip(different[::2], different[1::2], strict=True))
