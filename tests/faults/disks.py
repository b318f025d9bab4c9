"""What a guest reads from an image, without a process: fast enough to look at every image after every fault."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from pathlib import Path

from imgtool.image.header import Header, Qcow2Details, read_header
from imgtool.image.reference import parse

_OFFSET = 0x00FFFFFFFFFFFE00
_COMPRESSED, _ZERO = 1 << 62, 1


def digest(path: str | Path, format: str | None = None) -> str:
    """The digest of the raw stream."""
    return hashlib.sha256(read_disk(path, format)).hexdigest()


def read_disk(path: str | Path, format: str | None = None) -> bytes:
    """The disk: of a raw image, or of a qcow2 without zstd, subclusters and keys, through its whole chain."""
    where = os.fspath(path)
    fd = os.open(where, os.O_RDONLY | os.O_CLOEXEC)
    try:
        header = read_header(fd, format=format)
        if header.format == "raw":
            data = os.pread(fd, os.fstat(fd).st_size, 0)
            return data + bytes(header.virtual_size - len(data))
        assert header.format == "qcow2", header.format
        below = b""
        if header.backing is not None:
            reference = parse(header.backing, directory=os.path.dirname(where))
            assert reference.path is not None
            below = read_disk(reference.path, header.backing_format)
        disk = bytearray(below[: header.virtual_size])
        disk += bytes(header.virtual_size - len(disk))
        _overlay(fd, header, disk)
        return bytes(disk)
    finally:
        os.close(fd)


def _overlay(fd: int, header: Header, disk: bytearray) -> None:
    details = header.details
    assert isinstance(details, Qcow2Details)
    assert not details.extended_l2
    assert not details.encryption
    size = details.cluster_size
    per_table = size // 8
    l1 = struct.unpack(f">{details.l1_entries}Q", os.pread(fd, details.l1_entries * 8, details.l1_offset))
    for cluster in range(-(-header.virtual_size // size)):
        table = l1[cluster // per_table] & _OFFSET
        if not table:
            continue
        (entry,) = struct.unpack(">Q", os.pread(fd, 8, table + cluster % per_table * 8))
        at = cluster * size
        length = min(size, header.virtual_size - at)
        if entry & _COMPRESSED:
            disk[at : at + length] = _unpacked(fd, entry, size)[:length]
            continue
        if entry & _ZERO:
            disk[at : at + length] = bytes(length)
        elif entry & _OFFSET:
            data = os.pread(fd, length, entry & _OFFSET)
            disk[at : at + length] = data + bytes(length - len(data))


def _unpacked(fd: int, entry: int, size: int) -> bytes:
    """See "Compressed Clusters Descriptor" in QEMU's docs/interop/qcow2.txt."""
    bits = 62 - (size.bit_length() - 1 - 8)
    offset, sectors = entry & (1 << bits) - 1, (entry & _COMPRESSED - 1) >> bits
    packed = os.pread(fd, (sectors + 1) * 512 - offset % 512, offset)
    return zlib.decompressobj(wbits=-12).decompress(packed, size)
