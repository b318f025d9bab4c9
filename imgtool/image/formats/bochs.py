"""Bochs' growing disks, which QEMU reads only. Source: block/bochs.c of QEMU."""

from __future__ import annotations

import struct

from imgtool.image.formats import magics
from imgtool.image.formats.base import SECTOR, Header, bytes_of, refuse, until_nul
from imgtool.image.source import Source

_HEADER = struct.Struct("<32s16s16sIIIII")
_OLD_VERSION = 0x00010000
_VERSION = 0x00020000
_MAX_CATALOG = 0x100000
_MAX_EXTENT = 0x800000


def matches(head: bytes) -> bool:
    """Whether QEMU's probing would call this a Bochs disk: other kinds of Bochs disk are raw to it."""
    if len(head) < _HEADER.size or not head.startswith(magics.BOCHS):
        return False
    _, kind, subkind, version, *_ = _HEADER.unpack_from(head)
    names = until_nul(kind), until_nul(subkind)
    return names == (b"Redolog", b"Growing") and version in (_OLD_VERSION, _VERSION)


def parse(source: Source) -> Header:
    """The header of a growing Bochs disk."""
    head = source.at(0, SECTOR)
    if not matches(head):
        refuse("bochs", "it is no growing redolog disk")
    _, _, _, version, _, catalog, _, extent = _HEADER.unpack_from(head)
    (size,) = struct.unpack_from("<Q", head, 84 if version == _OLD_VERSION else 88)
    if not SECTOR <= extent <= _MAX_EXTENT or extent & (extent - 1):
        refuse("bochs", f"extents of {extent} bytes")
    sectors = size // SECTOR
    if catalog > _MAX_CATALOG or catalog < -(-sectors // (extent // SECTOR)):
        refuse("bochs", f"a catalog of {catalog} entries is too large, or too small for the disk")
    return Header(format="bochs", virtual_size=bytes_of("bochs", sectors))
