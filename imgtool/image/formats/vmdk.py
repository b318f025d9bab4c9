"""VMware's VMDK: sparse files, and descriptors that name other files. Source: VMware's "Virtual Disk Format 5.0", and
what block/vmdk.c of QEMU makes of it."""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

import msgspec

from imgtool.image.formats import magics
from imgtool.image.formats.base import SECTOR, Details, Header, bytes_of, refuse, until_nul
from imgtool.image.source import Source

PROBED = 512

_HEADER = struct.Struct("<4sIIQQQQIQQQ")
_COMPRESSION_AT = 77
_DEFLATE = 1
_OLD_HEADER = struct.Struct("<4sIIIIII")
_AT_END = 2**64 - 1
_FOOTER_BYTES = 3 * SECTOR
_MARKER = struct.Struct("<QII")
_FOOTER_MARKER = 3

_DESCRIPTION_AT = SECTOR
_DESCRIPTION_BYTES = 20 * SECTOR
_MAX_DESCRIPTOR = (1 << 20) - 1
_MAX_NAME = 4095
MAX_EXTENTS = 4096
"""QEMU has no bound; VMware splits a disk into files of 2 GB, which makes this one of 8 TB."""
_MAX_GRAIN_SECTORS = 0x200000
_MAX_L1_ENTRIES = 32 << 20
_NO_PARENT = 0xFFFFFFFF

_DESCRIPTOR_TYPES = ("monolithicFlat", "vmfs", "vmfsSparse", "seSparse", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat")
_FLAT = ("FLAT", "VMFS")
_EXTENT_TYPES = (*_FLAT, "SPARSE", "VMFSSPARSE", "SESPARSE")
_VERSION_LINE = re.compile(rb"version=[123]\r?\n")

# sscanf's "%10s %lld %10s \"%511[^\n\r\"]\" %lld": white space is optional, spans lines, and nothing is given back
_EXTENT_LINE = re.compile(
    rb'\s*+(?P<access>\S{1,10}+)\s*+(?P<sectors>[+-]?\d++)\s*+(?P<type>\S{1,10}+)\s*+"(?P<name>[^\n\r"]{1,511}+)'
    rb'(?:"\s*+(?P<offset>[+-]?\d++))?'
)
_CID = re.compile(rb"\s*([+-]?)(?:0[xX])?([0-9a-fA-F]+)")


class Extent(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """A file that holds a part of the disk."""

    type: str
    """`FLAT`, `VMFS`, `SPARSE`, `VMFSSPARSE` or `SESPARSE`."""
    sectors: int
    """As the descriptor says. A sparse extent's own header may say otherwise, and QEMU goes by that."""
    name: bytes
    """As the descriptor has it, relative to the descriptor's directory."""
    offset: int = 0
    """Bytes to skip in a flat file."""


class VmdkDetails(Details, frozen=True, kw_only=True, rename="kebab"):
    create_type: str
    """`monolithicSparse`, `streamOptimized`, or what the descriptor says: `monolithicFlat`, `vmfs`, …"""
    cid: int
    parent_cid: int | None
    extents: tuple[Extent, ...] = ()
    """Other files that QEMU opens to read this disk; none for a disk in one file."""
    cluster_size: int | None = None


class _Body(NamedTuple):
    """What a header or a descriptor says of the disk."""

    create_type: str
    sectors: int
    extents: tuple[Extent, ...] = ()
    cluster_size: int | None = None


def matches_text(head: bytes) -> bool:
    """Whether QEMU's probing takes these first bytes for a descriptor: comments and blank lines, then the version."""
    data = head[:PROBED]
    at = 0
    while at < len(data):
        if data[at] == 0x23:  # '#'
            end = data.find(b"\n", at)
            if end < 0:
                return False
            at = end + 1
        elif data[at] == 0x20:
            while data[at : at + 1] == b" ":
                at += 1
            at += data[at : at + 1] == b"\r"
            if data[at : at + 1] != b"\n":
                return False
            at += 1
        else:
            return _VERSION_LINE.match(data, at) is not None
    return False


def parse(source: Source) -> Header:
    """The header of a VMDK of any kind. The files a descriptor names are listed in the details, not opened."""
    head = source.at(0, 4)
    if source.sectors == 0:
        refuse("vmdk", "the file is empty")
    if head == magics.VMDK:
        body, description_at = _parse_sparse(source), _DESCRIPTION_AT
    elif head == magics.VMDK_OLD:
        body, description_at = _parse_old(source), _DESCRIPTION_AT
    else:
        body, description_at = _parse_descriptor(source, 0), 0
    description = until_nul(source.at(description_at, _DESCRIPTION_BYTES))
    cid = _read_cid(description[: _DESCRIPTION_BYTES - 1], b"CID")
    parent_cid = _read_cid(description[: _DESCRIPTION_BYTES - 1], b"parentCID")
    backing = _read_parent(description)
    return Header(
        format="vmdk",
        virtual_size=bytes_of("vmdk", body.sectors),
        backing=backing,
        backing_format="vmdk" if backing else None,
        details=VmdkDetails(
            create_type=body.create_type,
            cid=cid,
            parent_cid=None if parent_cid == _NO_PARENT else parent_cid,
            extents=body.extents,
            cluster_size=body.cluster_size,
        ),
    )


def _parse_sparse(source: Source) -> _Body:
    data = source.at(0, SECTOR)
    _, _, _, capacity, _, descriptor_at, _, _, _, directory_at, _ = _HEADER.unpack_from(data)
    if not capacity and descriptor_at:
        return _parse_descriptor(source, (descriptor_at << 9) & (1 << 64) - 1)
    if directory_at == _AT_END:
        data = _read_footer(source)
    _, version, _, capacity, grain, _, _, entries, _, directory_at, overhead = _HEADER.unpack_from(data)
    (compression,) = struct.unpack_from("<H", data, _COMPRESSION_AT)
    if version > 3:
        refuse("vmdk", f"version {version} is unknown")
    if entries > 512:
        refuse("vmdk", f"grain tables of {entries} entries")
    covered = entries * grain & 0xFFFFFFFF
    if not covered or grain > _MAX_GRAIN_SECTORS:
        refuse("vmdk", f"grains of {grain} sectors in tables of {entries}")
    if ((capacity + covered - 1) & (1 << 64) - 1) // covered & 0xFFFFFFFF > _MAX_L1_ENTRIES:
        refuse("vmdk", "its grain directory is too large")
    if source.sectors < overhead:
        refuse("vmdk", "the file ends within its own tables")
    if capacity >= 1 << 63:
        refuse("vmdk", "its virtual size is larger than any disk can be")
    kind = "streamOptimized" if compression == _DEFLATE else "monolithicSparse"
    return _Body(kind, capacity, cluster_size=grain * SECTOR)


def _read_footer(source: Source) -> bytes:
    """The header of a stream-optimized file whose grain directory came last: it is repeated near the end."""
    data = source.at(source.sectors * SECTOR - _FOOTER_BYTES, _FOOTER_BYTES)
    _, size, kind = _MARKER.unpack_from(data)
    last = _MARKER.unpack_from(data, 2 * SECTOR)
    header = data[SECTOR : 2 * SECTOR]
    if size or kind != _FOOTER_MARKER or not header.startswith(magics.VMDK) or any(last):
        refuse("vmdk", "its footer is damaged")
    return header


def _parse_old(source: Source) -> _Body:
    _, _, _, sectors, grain, _, entries = _OLD_HEADER.unpack(source.at(0, _OLD_HEADER.size))
    if grain > _MAX_GRAIN_SECTORS or entries > _MAX_L1_ENTRIES:
        refuse("vmdk", "its tables are too large")
    return _Body("vmfsSparse", sectors, cluster_size=grain * SECTOR)


def _parse_descriptor(source: Source, at: int) -> _Body:
    text = until_nul(source.at(at, min(source.sectors * SECTOR, _MAX_DESCRIPTOR)))
    create_type = _option(text, b"createType")
    if create_type is None:
        refuse("vmdk", "its descriptor names no createType")
    kind = create_type.decode("ascii", "replace")
    if kind not in _DESCRIPTOR_TYPES:
        refuse("vmdk", "its createType is one that QEMU does not read")
    extents = _parse_extents(text)
    if not extents:
        refuse("vmdk", "its descriptor names no files")  # qemu-img 7.2 ends in a failed assertion
    return _Body(kind, sum(extent.sectors for extent in extents), extents)


def _option(text: bytes, name: bytes) -> bytes | None:
    """The value of the first `name="value"`, wherever it stands."""
    at = text.find(name)
    if at < 0:
        return None
    start = at + len(name) + 2
    end = text.find(b'"', start)
    return text[start:end] if 0 <= end < start + 128 else None


def _parse_extents(text: bytes) -> tuple[Extent, ...]:
    extents: list[Extent] = []
    blank = 0
    at = 0
    while at < len(text):
        end = text.find(b"\n", at)
        end = len(text) if end < 0 else end + 1
        if text[at:end].isspace():
            blank += 1
        else:
            extent = _parse_extent(text, at)
            if extent is not None:
                # from a blank line sscanf goes on to the next, so that QEMU counts its extent once more
                extents += [extent] * (1 + blank)
            blank = 0
        if len(extents) > MAX_EXTENTS:
            refuse("vmdk", f"its descriptor names over {MAX_EXTENTS} files")
        at = end
    return tuple(extents)


def _parse_extent(text: bytes, at: int) -> Extent | None:
    match = _EXTENT_LINE.match(text, at)
    if match is None or match["access"] != b"RW":
        return None
    kind = match["type"].decode("ascii", "replace")
    sectors = _clamp(match["sectors"])
    offset = None if match["offset"] is None else _clamp(match["offset"])
    if (kind == "FLAT") != (offset is not None) or (offset or 0) < 0:
        refuse("vmdk", "an extent line of its descriptor is wrong")
    if sectors <= 0 or kind not in _EXTENT_TYPES:
        return None
    return Extent(type=kind, sectors=sectors, name=match["name"], offset=(offset or 0) * SECTOR)


def _clamp(digits: bytes) -> int:
    """The number as strtoll gives it."""
    if len(digits) > 20:
        digits = digits[:1] + b"9" * 19 if digits[:1] in b"+-" else b"9" * 19
    return max(-(2**63), min(2**63 - 1, int(digits)))


def _read_cid(description: bytes, name: bytes) -> int:
    at = description.find(name)
    match = None if at < 0 else _CID.match(description, at + len(name) + 1)
    if match is None:
        refuse("vmdk", f"its descriptor has no {name.decode()}")
    value = int(match[2][-16:], 16)
    return (-value if match[1] == b"-" else value) & 0xFFFFFFFF


def _read_parent(description: bytes) -> bytes | None:
    name = b"parentFileNameHint"
    at = description.find(name)
    if at < 0:
        return None
    start = at + len(name) + 2
    end = description.find(b'"', start)
    if end < 0 or end - start > _MAX_NAME:
        refuse("vmdk", "its parent's name has no end")
    return description[start:end] or None
