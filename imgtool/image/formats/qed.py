"""QED, QEMU's enhanced disk. Source: docs/interop/qed_spec.txt in QEMU."""

from __future__ import annotations

import struct

from imgtool.image.formats import magics
from imgtool.image.formats.base import SECTOR, Details, Header, bytes_of, refuse, until_nul
from imgtool.image.source import Source

_HEADER = struct.Struct("<4sIIIQQQQQII")
_BACKING_FILE, _NEED_CHECK, _BACKING_IS_RAW = 1, 2, 4
_FEATURES = _BACKING_FILE | _NEED_CHECK | _BACKING_IS_RAW
_MAX_BACKING_NAME = 4095


class QedDetails(Details, frozen=True, kw_only=True, rename="kebab"):
    cluster_size: int
    dirty: bool
    """Not closed properly: QEMU checks it when it next opens it for writing."""


def parse(source: Source) -> Header:
    """The header of a QED image. A backing format is recorded only when it is raw."""
    (
        magic,
        cluster_size,
        table_size,
        header_clusters,
        features,
        _,
        _,
        l1_offset,
        size,
        backing_offset,
        backing_bytes,
    ) = _HEADER.unpack(source.at(0, _HEADER.size))
    if magic != magics.QED:
        refuse("qed", "it does not begin with QED's magic number")
    if features & ~_FEATURES:
        refuse("qed", f"unknown features {features & ~_FEATURES:#x}")
    if not 4096 <= cluster_size <= 64 << 20 or cluster_size & (cluster_size - 1):
        refuse("qed", f"clusters of {cluster_size} bytes")
    # the specification has tables of one cluster too: QEMU makes images with them, and then cannot open them
    if not 2 <= table_size <= 16 or table_size & (table_size - 1):
        refuse("qed", f"tables of {table_size} clusters")
    entries = table_size * cluster_size // 8
    if size % SECTOR or size > entries * entries * cluster_size:
        refuse("qed", f"a virtual size of {size} bytes")
    header_bytes = header_clusters * cluster_size
    file_size = source.sectors * SECTOR // cluster_size * cluster_size
    if l1_offset % cluster_size or not header_bytes <= l1_offset < file_size - (table_size - 1) * cluster_size:
        refuse("qed", f"its L1 table cannot lie at offset {l1_offset:#x}")
    backing = backing_format = None
    if features & _BACKING_FILE:
        if backing_bytes > _MAX_BACKING_NAME or backing_offset + backing_bytes > header_bytes:
            refuse("qed", f"its backing file's name is too long ({backing_bytes} bytes) or outside the header")
        backing = until_nul(source.at(backing_offset, backing_bytes)) or None
        backing_format = "raw" if backing and features & _BACKING_IS_RAW else None
    return Header(
        format="qed",
        virtual_size=bytes_of("qed", size // SECTOR),
        backing=backing,
        backing_format=backing_format,
        details=QedDetails(cluster_size=cluster_size, dirty=bool(features & _NEED_CHECK)),
    )
