"""Apple's disk images, which QEMU reads only. Source: block/dmg.c of QEMU.

QEMU knows them by the end of their name (`.dmg`) alone; their trailer lies at the end of the file.
"""

from __future__ import annotations

import struct

from imgtool.image.formats.base import SECTOR, Header, bytes_of, refuse
from imgtool.image.source import Source

MAGIC = b"koly"
_SEARCHED = 515  # the trailer is 512 bytes long, and the block layer has rounded the file's size up
_TRAILER = struct.Struct(">QQ")


def parse(source: Source) -> Header:
    """The trailer of a dmg image."""
    size = source.sectors * SECTOR
    if size < SECTOR:
        refuse("dmg", "the file is too short")
    start = max(0, size - SECTOR - SECTOR + 1)
    found = source.at(start, min(size, _SEARCHED)).find(MAGIC)
    if found < 0:
        refuse("dmg", "it has no trailer")
    at = start + found
    trailer = source.at(at, SECTOR)
    (data_at,) = struct.unpack_from(">Q", trailer, 0x18)
    resources_at, resources_bytes = _TRAILER.unpack_from(trailer, 0x28)
    list_at, list_bytes = _TRAILER.unpack_from(trailer, 0xD8)
    (sectors,) = struct.unpack_from(">Q", trailer, 0x1EC)
    if data_at > at or resources_at + resources_bytes > at or list_at + list_bytes > at:
        refuse("dmg", "its trailer points past itself")
    if not resources_bytes and not list_bytes:
        refuse("dmg", "it describes no blocks")
    return Header(format="dmg", virtual_size=bytes_of("dmg", sectors))
