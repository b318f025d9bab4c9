"""LUKS version 1, the one QEMU reads.

Source: the LUKS On-Disk Format Specification 1.2.3, and crypto/block-luks.c of QEMU.
"""

from __future__ import annotations

import struct

import msgspec

from imgtool.image.formats import magics
from imgtool.image.formats.base import SECTOR, Details, Header, bytes_of, refuse, until_nul
from imgtool.image.source import Source

_HEADER = struct.Struct(">6sH32s32s32sII20s32sI40s")
_SLOT = struct.Struct(">II32sII")
_SLOTS = 8
_ACTIVE = 0x00AC71F3
_INACTIVE = 0x0000DEAD
_HEADER_SECTORS = 8  # up to where the first key slot may begin
_STRIPES = 4000
_HASHES = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160")


class KeySlot(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    active: bool
    iterations: int
    offset: int
    """Bytes from the beginning of the file."""


class LuksDetails(Details, frozen=True, kw_only=True, rename="kebab"):
    cipher: str
    mode: str
    """Chaining mode and IV generator: `xts-plain64`."""
    hash: str
    uuid: str
    payload_offset: int
    """Bytes before the encrypted disk."""
    slots: tuple[KeySlot, ...]


def parse(source: Source) -> Header:
    """The header of a LUKS image; the disk is what follows it."""
    (magic, version, cipher, mode, hashing, payload, key_bytes, _, _, iterations, uuid) = _HEADER.unpack(
        source.at(0, _HEADER.size)
    )
    if magic != magics.LUKS:
        refuse("luks", "it does not begin with LUKS's magic number")
    if version != 1:
        refuse("luks", f"version {version}, where QEMU reads version 1 only")
    for text in (cipher, mode, hashing):
        if b"\0" not in text:
            refuse("luks", "a name in its header has no end")
    hash_name = until_nul(hashing).decode("ascii", "replace")
    if hash_name not in _HASHES:
        refuse("luks", "it uses an unknown hash")
    if b"-" not in until_nul(mode):
        refuse("luks", "its cipher mode names no IV generator")
    if payload < _HEADER_SECTORS or not iterations:
        refuse("luks", "its payload overlaps the header, or its key was never stretched")
    slots = _slots(source, payload, key_bytes)
    sectors = source.sectors - payload
    if sectors < 0:
        refuse("luks", "the file ends before its payload")
    return Header(
        format="luks",
        virtual_size=bytes_of("luks", sectors),
        details=LuksDetails(
            cipher=until_nul(cipher).decode("ascii", "replace"),
            mode=until_nul(mode).decode("ascii", "replace"),
            hash=hash_name,
            uuid=until_nul(uuid).decode("ascii", "replace"),
            payload_offset=payload * SECTOR,
            slots=slots,
        ),
    )


def _slots(source: Source, payload: int, key_bytes: int) -> tuple[KeySlot, ...]:
    slots = []
    length = -(-key_bytes * _STRIPES // SECTOR // _HEADER_SECTORS) * _HEADER_SECTORS
    for active, iterations, _, start, stripes in _SLOT.iter_unpack(source.at(_HEADER.size, _SLOT.size * _SLOTS)):
        if active not in (_ACTIVE, _INACTIVE) or stripes != _STRIPES or (active == _ACTIVE and not iterations):
            refuse("luks", "a key slot is damaged")
        if start < 2 or start + length & 0xFFFFFFFF > payload:  # QEMU adds 32-bit numbers
            refuse("luks", "a key slot overlaps the header or the payload")
        slots.append(KeySlot(active=active == _ACTIVE, iterations=iterations, offset=start * SECTOR))
    return tuple(slots)
