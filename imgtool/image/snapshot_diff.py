"""What was written to a qcow2's disk since one of its internal snapshots, by comparing tables: no data is read.

Source: docs/interop/qcow2.txt. A snapshot has an L1 table of its own; writing gives the disk new L2 tables and
clusters, so that what both still name is the same.
"""

from __future__ import annotations

import os
from array import array

from imgtool.errors import ImageFormatError
from imgtool.image.formats.base import until_nul
from imgtool.image.formats.qcow2 import Qcow2Details
from imgtool.image.header import read_header
from imgtool.image.snapshot_table import whole_table

_OFFSET = 0x00FFFFFFFFFFFE00
_COPIED = 1 << 63
_MOST_L1 = 32 << 20


def written_since(fd: int) -> dict[str, int]:
    """For each internal snapshot of the qcow2 at `fd`, by its ID, how many bytes of the disk (whole clusters) are not
    what they were. Empty for an image that has none. ImageFormatError for a damaged table."""
    details = read_header(fd, format="qcow2").details
    assert isinstance(details, Qcow2Details)
    now = _l1(fd, details.l1_offset, details.l1_entries)
    found = {}
    for entry in whole_table(fd):
        then = _l1(fd, entry.l1_offset, entry.l1_entries)
        found[os.fsdecode(until_nul(entry.id))] = _differing(fd, now, then, details) * details.cluster_size
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
