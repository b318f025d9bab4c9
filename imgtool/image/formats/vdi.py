"""VirtualBox's VDI. Source: block/vdi.c of QEMU."""

from __future__ import annotations

import struct

from imgtool.image.formats import magics
from imgtool.image.formats.base import SECTOR, Details, Header, bytes_of, refuse
from imgtool.image.source import Source

_HEADER = struct.Struct("<4sIIII256sIIIIIIIQIIII16s16s16s16s")
_VERSION = 0x00010001
_BLOCK = 1 << 20
_MAX_BLOCKS = (2**31 - 1) // 4
_STATIC = 2
_NO_UUID = bytes(16)


class VdiDetails(Details, frozen=True, kw_only=True, rename="kebab"):
    static: bool
    """All blocks are allocated."""
    block_size: int
    blocks: int
    allocated_blocks: int


def parse(source: Source) -> Header:
    """The header of a VDI image. Those with a parent or with blocks other than 1 MiB are refused, as by QEMU."""
    (
        magic,
        version,
        _,
        kind,
        _,
        _,
        map_offset,
        data_offset,
        _,
        _,
        _,
        sector_size,
        _,
        size,
        block_size,
        _,
        blocks,
        allocated,
        _,
        _,
        link,
        parent,
    ) = _HEADER.unpack(source.at(magics.VDI_AT, _HEADER.size))
    if magic != magics.VDI:
        refuse("vdi", "VDI's magic number is missing")
    if version != _VERSION:
        refuse("vdi", f"version {version >> 16}.{version & 0xFFFF} is unknown")
    if map_offset % SECTOR or data_offset % SECTOR or sector_size != SECTOR:
        refuse("vdi", "sectors other than 512 bytes, or tables that do not begin at one")
    if block_size != _BLOCK:
        refuse("vdi", f"blocks of {block_size} bytes, where QEMU reads 1 MiB only")
    sectors = -(-size // SECTOR)
    if blocks > _MAX_BLOCKS or sectors * SECTOR > blocks * _BLOCK:
        refuse("vdi", f"{blocks} blocks are too many, or too few for {size} bytes")
    if link != _NO_UUID or parent != _NO_UUID:
        refuse("vdi", "it is a snapshot of another image, which QEMU cannot read")
    return Header(
        format="vdi",
        virtual_size=bytes_of("vdi", sectors),
        details=VdiDetails(static=kind == _STATIC, block_size=block_size, blocks=blocks, allocated_blocks=allocated),
    )
