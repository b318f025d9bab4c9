"""Compressed loop images, which QEMU reads only. Source: block/cloop.c of QEMU."""

from __future__ import annotations

import struct

from imgtool.image.formats import magics
from imgtool.image.formats.base import SECTOR, Header, bytes_of, refuse
from imgtool.image.source import Source

_SIZES_AT = 128
_MAX_BLOCK = 64 << 20
_MAX_OFFSETS_BYTES = 512 << 20


def parse(source: Source) -> Header:
    """The header of a cloop image. QEMU does not look for its magic when told the format; this does."""
    if not source.head.startswith(magics.CLOOP):
        refuse("cloop", "it does not begin with cloop's script")
    block_size, blocks = struct.unpack(">II", source.at(_SIZES_AT, 8))
    if block_size % SECTOR or not 0 < block_size <= _MAX_BLOCK:
        refuse("cloop", f"blocks of {block_size} bytes")
    if (blocks + 1) * 8 > _MAX_OFFSETS_BYTES:
        refuse("cloop", f"{blocks} blocks are too many")
    # QEMU multiplies these as 32-bit numbers
    return Header(format="cloop", virtual_size=bytes_of("cloop", blocks * (block_size // SECTOR) & 0xFFFFFFFF))
