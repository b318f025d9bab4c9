"""Images whose end is missing, as an interrupted copy leaves them: QEMU silently reads zeros there."""

from __future__ import annotations

import os
from collections.abc import Sequence

from imgtool.chain.graph import Image
from imgtool.chain.look import OPEN_FLAGS
from imgtool.errors import ImageFormatError, RefusedError
from imgtool.image.header import Qcow2Details, read_header
from imgtool.image.names import pasted, printable
from imgtool.image.source import size_of

_OFFSET = 0x00FFFFFFFFFFFE00
_COMPRESSED = 1 << 62
_LOOKED_AT = 512
"""Bytes of reference counts past the end of the file that are looked at: 256 clusters of 64 KiB."""

_MOST_TABLES = 16 << 20
"""Bytes of L2 tables that are read of one image; its newest tables first, which lead to its newest clusters."""


def is_truncated(fd: int, details: Qcow2Details, size: int) -> bool:
    """Whether a table of the disk, or a cluster that one names, begins behind the end of the image open at `fd`,
    which has `size` bytes. Two reads are enough to see that a whole one is none."""
    return _may_be_truncated(fd, details, size) and _lacks_tables(fd, details, size)


def refuse_truncated(chain: Sequence[Image]) -> None:
    """RefusedError when the end of an image in `chain` is missing."""
    for image in chain:
        if image.format == "qcow2" and _ends_early(image.path):
            raise RefusedError(
                f"the end of {printable(image.path)} is missing: QEMU would read zeros where its data was",
                hint=f"`imgtool check {pasted(image.path)}` says what is damaged; --force goes on anyway",
                path=image.path,
            )


def _ends_early(path: str) -> bool:
    try:
        fd = os.open(path, OPEN_FLAGS)
    except OSError:
        return False
    try:
        details = read_header(fd, format="qcow2").details
        return isinstance(details, Qcow2Details) and is_truncated(fd, details, size_of(fd))
    except ImageFormatError:
        return False
    finally:
        os.close(fd)


def _may_be_truncated(fd: int, details: Qcow2Details, size: int) -> bool:
    """Whether clusters behind the end of the file are counted as used. They may be leaked ones."""
    cluster = details.cluster_size
    entries = details.l1_entries
    if entries and details.l1_offset + 8 * entries > size:
        return True
    bits = details.refcount_bits
    block, entry = divmod(-(-size // cluster), cluster * 8 // bits)
    if block >= details.refcount_table_clusters * cluster // 8:
        return False
    where = os.pread(fd, 8, details.refcount_table_offset + 8 * block)
    offset = int.from_bytes(where) & _OFFSET
    if offset >= size or len(where) < 8:
        return True
    if not offset:
        return False
    at = entry * bits // 8
    return os.pread(fd, min(_LOOKED_AT, cluster - at), offset + at).strip(b"\0") != b""


def _lacks_tables(fd: int, details: Qcow2Details, size: int) -> bool:
    """Whether a table of the disk, or a cluster that one names, begins behind the end of the file."""
    if details.l1_offset + 8 * details.l1_entries > size:
        return True
    cluster = details.cluster_size
    table = os.pread(fd, 8 * details.l1_entries, details.l1_offset)
    offsets = {int.from_bytes(table[at : at + 8]) & _OFFSET for at in range(0, len(table), 8)} - {0}
    if offsets and max(offsets) + cluster > size:
        return True
    for offset in sorted(offsets, reverse=True)[: _MOST_TABLES // cluster]:
        if _leads_past(os.pread(fd, cluster, offset), details, size):
            return True
    return False


def _leads_past(table: bytes, details: Qcow2Details, size: int) -> bool:
    step = 16 if details.extended_l2 else 8
    # what a compressed cluster's entry says of its length stands above its offset
    compressed = (1 << 62 - ((details.cluster_size - 1).bit_length() - 8)) - 1
    for at in range(0, len(table), step):
        entry = int.from_bytes(table[at : at + 8])
        if not entry:
            continue
        offset = entry & compressed if entry & _COMPRESSED else entry & _OFFSET
        if offset >= size and not (details.external_data and not entry & _COMPRESSED):
            return True
    return False
