"""VHDX. Source: Microsoft's [MS-VHDX], and what block/vhdx.c of QEMU accepts."""

from __future__ import annotations

import struct
from functools import cache

from imgtool.image.formats import magics
from imgtool.image.formats.base import SECTOR, Details, Header, bytes_of, refuse
from imgtool.image.source import Source

_HEADERS_AT = (64 << 10, 128 << 10)
_HEADER_BYTES = 4096
_HEADER = struct.Struct("<4sIQ16s16s16sHHIQ")
_REGIONS_AT = 192 << 10
_TABLE_BYTES = 64 << 10
_TABLE = struct.Struct("<4sIII")
_REGION = struct.Struct("<16sQII")
_METADATA = struct.Struct("<8sHH20x")
_ITEM = struct.Struct("<16sIII4x")
_MAX_REGIONS = 2047
_REQUIRED_REGION = 1
_REQUIRED_ITEM = 4
_HAS_PARENT = 2
_FIXED = 1


def _guid(text: str) -> bytes:
    first, second, third, *rest = text.split("-")
    return struct.pack("<IHH", int(first, 16), int(second, 16), int(third, 16)) + bytes.fromhex("".join(rest))


_BAT = _guid("2dc27766-f623-4200-9d64-115e9bfd4a08")
_METADATA_REGION = _guid("8b7ca206-4790-4b9a-b8fe-575f050f886e")
_FILE_PARAMETERS = _guid("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
_VIRTUAL_SIZE = _guid("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
_PAGE_83 = _guid("beca12ab-b2e6-4523-93ef-c309e000c746")
_LOGICAL_SECTOR = _guid("8141bf1d-a96f-4709-ba47-f233a8faab5f")
_PHYSICAL_SECTOR = _guid("cda348c7-445d-4471-9cc9-e9885251c556")
_PARENT_LOCATOR = _guid("a8d35f2d-b30b-454d-abf7-d3d83448ab0c")
_ITEMS = {_FILE_PARAMETERS, _VIRTUAL_SIZE, _PAGE_83, _LOGICAL_SECTOR, _PHYSICAL_SECTOR}


class VhdxDetails(Details, frozen=True, kw_only=True, rename="kebab"):
    block_size: int
    fixed: bool
    log_pending: bool
    """Its log may have to be replayed before QEMU reads it; that needs a writable image."""


def parse(source: Source) -> Header:
    """The header of a VHDX image. Differencing ones are refused, as by QEMU."""
    if not source.head.startswith(magics.VHDX):
        refuse("vhdx", "it does not begin with VHDX's magic number")
    log_pending = _log_pending(source)
    items = _metadata_items(source, _metadata_offset(source))
    block_size, flags = struct.unpack("<II", source.at(items[_FILE_PARAMETERS], 8))
    if flags & _HAS_PARENT:
        refuse("vhdx", "it is a differencing image, which QEMU cannot read")
    (size,) = struct.unpack("<Q", source.at(items[_VIRTUAL_SIZE], 8))
    (sector_size,) = struct.unpack("<I", source.at(items[_LOGICAL_SECTOR], 4))
    if not 1 << 20 <= block_size <= 256 << 20 or block_size & (block_size - 1):
        refuse("vhdx", f"blocks of {block_size} bytes")
    if sector_size != SECTOR:
        refuse("vhdx", f"logical sectors of {sector_size} bytes, where QEMU reads 512 only")
    return Header(
        format="vhdx",
        virtual_size=bytes_of("vhdx", size // SECTOR),
        details=VhdxDetails(block_size=block_size, fixed=bool(flags & _FIXED), log_pending=log_pending),
    )


def _log_pending(source: Source) -> bool:
    """Whether the active header, the valid one with the highest sequence number, names a log."""
    found: list[tuple[int, bytes]] = []
    for at in _HEADERS_AT:
        data = source.at(at, _HEADER_BYTES)
        magic, checksum, sequence, _, _, log, _, version, _, _ = _HEADER.unpack_from(data)
        if magic == b"head" and version == 1 and _crc32c(data, 4) == checksum:
            found.append((sequence, log))
    if not found:
        refuse("vhdx", "neither of its headers is valid")
    return max(found)[1] != bytes(16)


def _metadata_offset(source: Source) -> int:
    data = source.at(_REGIONS_AT, _TABLE_BYTES)
    magic, checksum, count, _ = _TABLE.unpack_from(data)
    if magic != b"regi" or count > _MAX_REGIONS or _crc32c(data, 4) != checksum:
        refuse("vhdx", "its region table is damaged")
    found: dict[bytes, int] = {}
    for index in range(count):
        guid, offset, _, flags = _REGION.unpack_from(data, _TABLE.size + index * _REGION.size)
        if guid in found:
            refuse("vhdx", "its region table names a region twice")
        if guid in (_BAT, _METADATA_REGION):
            found[guid] = offset
        elif flags & _REQUIRED_REGION:
            refuse("vhdx", "it needs a region of an unknown kind")
    if len(found) != 2:
        refuse("vhdx", "its region table is incomplete")
    return found[_METADATA_REGION]


def _metadata_items(source: Source, at: int) -> dict[bytes, int]:
    """Where in the file each of the five items lies."""
    magic, _, count = _METADATA.unpack(source.at(at, _METADATA.size))
    if magic != b"metadata" or count * _ITEM.size > _TABLE_BYTES - _METADATA.size:
        refuse("vhdx", "its metadata table is damaged")
    data = source.at(at + _METADATA.size, count * _ITEM.size)
    found: dict[bytes, int] = {}
    parent = False
    for guid, offset, _, flags in _ITEM.iter_unpack(data):
        if guid in found or (guid == _PARENT_LOCATOR and parent):
            refuse("vhdx", "its metadata table names an item twice")
        if guid in _ITEMS:
            found[guid] = at + offset
        elif guid == _PARENT_LOCATOR:
            parent = True
        elif flags & _REQUIRED_ITEM:
            refuse("vhdx", "it needs metadata of an unknown kind")
    if len(found) != len(_ITEMS) or parent:
        refuse("vhdx", "its metadata table is incomplete, or it is a differencing image")
    return found


def _crc32c(data: bytes, hole: int) -> int:
    """CRC-32C of `data` with the four bytes at `hole`, which hold the checksum itself, taken as zeros."""
    table = _crc_table()
    crc = 0xFFFFFFFF
    for byte in data[:hole] + bytes(4) + data[hole + 4 :]:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


@cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)  # noqa: PLW2901
        table.append(value)
    return tuple(table)
