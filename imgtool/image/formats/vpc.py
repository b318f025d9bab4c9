"""VHD, which QEMU calls vpc.

Source: Microsoft's "Virtual Hard Disk Image Format Specification", and block/vpc.c of QEMU.
"""

from __future__ import annotations

import struct

from imgtool.image.formats import magics
from imgtool.image.formats.base import SECTOR, Details, Header, bytes_of, refuse
from imgtool.image.source import Source

_FOOTER = struct.Struct(">8sIIQI4sHH4sQQHBBII16sB")
_CHECKSUM_AT = 64
_DYNAMIC = struct.Struct(">8sQQIII")
_FIXED = 2
_TYPES = {2: "fixed", 3: "dynamic", 4: "differencing"}
_MAX_SECTORS = 0xFF000000  # 2040 GiB
_MAX_GEOMETRY = 65535 * 16 * 255

_BY_SIZE = (b"win ", b"qem2", b"d2v ", b"CTXS", b"tap\0")
_BY_GEOMETRY = (b"vpc ", b"vs  ", b"qemu")
"""Creators whose images are as large as the footer says, and as large as their geometry. All others go by geometry
until QEMU 9, by size from QEMU 10 on; here by geometry."""


class VpcDetails(Details, frozen=True, kw_only=True, rename="kebab"):
    subformat: str
    """`fixed`, `dynamic` or `differencing` (of which QEMU reads the changes only)."""
    creator: str
    """Four characters: `qemu`, `qem2`, `vpc `, `win `, …"""
    size: int
    """Bytes, as the footer says."""
    geometry_size: int
    """Bytes, as cylinders, heads and sectors say."""
    known_creator: bool
    """Whether all versions of QEMU agree which of the two sizes counts."""
    block_size: int | None = None


def parse(source: Source) -> Header:
    """The header of a VHD: at its beginning, or for a fixed one only at its end."""
    footer = source.at(0, SECTOR)
    dynamic = footer.startswith(magics.VPC)
    if not dynamic:
        size = source.sectors * SECTOR
        if size < SECTOR:
            refuse("vpc", "the file is too short")
        footer = source.at(size - SECTOR, SECTOR)
    (magic, _, _, header_at, _, creator, _, _, _, _, size, cylinders, heads, per_track, kind, checksum, _, _) = (
        _FOOTER.unpack_from(footer)
    )
    if magic != magics.VPC or (not dynamic and kind != _FIXED):
        refuse("vpc", "there is no VHD footer at its beginning or end")
    summed = sum(footer) - sum(footer[_CHECKSUM_AT : _CHECKSUM_AT + 4])
    if ~summed & 0xFFFFFFFF != checksum:
        refuse("vpc", "its footer's checksum is wrong")
    geometry = sectors = cylinders * heads * per_track
    if sectors == _MAX_GEOMETRY or creator in _BY_SIZE:
        sectors = size // SECTOR
    if sectors > _MAX_SECTORS:
        refuse("vpc", "it is larger than 2040 GiB")
    return Header(
        format="vpc",
        virtual_size=bytes_of("vpc", sectors),
        details=VpcDetails(
            subformat=_TYPES.get(kind, "dynamic") if dynamic else "fixed",
            creator=creator.decode("latin-1"),
            size=size,
            geometry_size=geometry * SECTOR,
            known_creator=creator in (*_BY_SIZE, *_BY_GEOMETRY),
            block_size=_block_size(source, header_at, sectors) if dynamic else None,
        ),
    )


def _block_size(source: Source, at: int, sectors: int) -> int:
    magic, _, table_at, _, entries, block_size = _DYNAMIC.unpack(source.at(at, _DYNAMIC.size))
    if magic != b"cxsparse":
        refuse("vpc", "its dynamic disk header is missing")
    if block_size < SECTOR or block_size & (block_size - 1):
        refuse("vpc", f"blocks of {block_size} bytes")
    if entries * block_size < sectors * SECTOR or entries > (2**31 - 1) // 4 or table_at + 4 * entries >= 1 << 63:
        refuse("vpc", f"a block table of {entries} entries is too large, or too small for the disk")
    return int(block_size)
