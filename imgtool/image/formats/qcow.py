"""qcow, the first version. Source: block/qcow.c of QEMU."""

from __future__ import annotations

import struct

from imgtool.image.formats import magics
from imgtool.image.formats.base import Details, Header, bytes_of, refuse, until_nul
from imgtool.image.source import Source

_HEADER = struct.Struct(">4sIQIIQBBHIQ")
_MAX_BACKING_NAME = 1023
_MAX_L1_ENTRIES = (2**31 - 1) // 8
_ENCRYPTIONS = (None, "aes")


class QcowDetails(Details, frozen=True, kw_only=True, rename="kebab"):
    cluster_size: int
    encryption: str | None = None


def parse(source: Source) -> Header:
    """The header of a qcow (version 1) image; its virtual size is rounded down to whole sectors."""
    (magic, version, backing_offset, backing_bytes, _, size, cluster_bits, l2_bits, _, encryption, l1_offset) = (
        _HEADER.unpack(source.at(0, _HEADER.size))
    )
    if magic != magics.QCOW2 or version != 1:
        refuse("qcow", "it does not begin with qcow's magic number and version 1")
    if size <= 1:
        refuse("qcow", "a virtual size below 2 bytes")
    if not 9 <= cluster_bits <= 16:
        refuse("qcow", f"clusters of 2^{cluster_bits} bytes; 512 bytes to 64 KiB are possible")
    if not 6 <= l2_bits <= 13:
        refuse("qcow", f"L2 tables of 2^{l2_bits} entries")
    if encryption >= len(_ENCRYPTIONS):
        refuse("qcow", f"encryption method {encryption} is unknown")
    l1_entries = -(-size >> (cluster_bits + l2_bits))
    if l1_entries > _MAX_L1_ENTRIES or l1_offset + l1_entries * 8 >= 1 << 63:
        refuse("qcow", "its L1 table is too large or lies where no file has bytes")
    backing = None
    if backing_offset:
        if backing_bytes > _MAX_BACKING_NAME:
            refuse("qcow", f"its backing file's name is too long ({backing_bytes} bytes)")
        backing = until_nul(source.at(backing_offset, backing_bytes)) or None
    return Header(
        format="qcow",
        virtual_size=bytes_of("qcow", size >> 9),
        backing=backing,
        details=QcowDetails(cluster_size=1 << cluster_bits, encryption=_ENCRYPTIONS[encryption]),
    )
