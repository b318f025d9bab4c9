"""Parallels expandable disks. Source: docs/interop/parallels.txt in QEMU."""

from __future__ import annotations

import struct

from imgtool.image.formats import magics
from imgtool.image.formats.base import SECTOR, Details, Header, bytes_of, refuse
from imgtool.image.source import Source

_HEADER = struct.Struct("<16sIIIIIQII")
_VERSION = 2
_IN_USE = 0x746F6E59
_MAX_CLUSTER_SECTORS = (2**31 - 1) // 513
_MAX_ENTRIES = (2**31 - 1) // 4


class ParallelsDetails(Details, frozen=True, kw_only=True, rename="kebab"):
    cluster_size: int
    dirty: bool
    """Not closed properly."""


def parse(source: Source) -> Header:
    """The header of a Parallels image, of either kind."""
    magic, version, _, _, cluster_sectors, entries, sectors, in_use, _ = _HEADER.unpack(source.at(0, _HEADER.size))
    if magic not in (magics.PARALLELS_OLD, magics.PARALLELS_EXTENDED) or version != _VERSION:
        refuse("parallels", "it does not begin with Parallels' magic number and version 2")
    if magic == magics.PARALLELS_OLD:
        sectors &= 0xFFFFFFFF
    if not 0 < cluster_sectors <= _MAX_CLUSTER_SECTORS:
        refuse("parallels", f"clusters of {cluster_sectors} sectors")
    if entries > _MAX_ENTRIES:
        refuse("parallels", f"a table of {entries} entries")
    return Header(
        format="parallels",
        virtual_size=bytes_of("parallels", sectors),
        details=ParallelsDetails(cluster_size=cluster_sectors * SECTOR, dirty=in_use == _IN_USE),
    )
