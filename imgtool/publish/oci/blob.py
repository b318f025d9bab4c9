"""Blobs that are put together from parts of files, without a copy of them anywhere."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from imgtool.errors import ImageError

PIECE = 1 << 20


class Part(NamedTuple):
    """`length` bytes of the file open at `fd`, from `offset`."""

    fd: int
    offset: int
    length: int


class Blob:
    """Bytes and parts of files, one after the other. The files stay open, and are the caller's."""

    def __init__(self, *parts: bytes | Part) -> None:
        self._parts = [part for part in parts if _length(part)]
        self.size = sum(map(_length, self._parts))

    def read(self, offset: int, length: int) -> bytes:
        """The `length` bytes from `offset`, fewer only at the end. ImageError when a file became shorter."""
        found = []
        at = 0
        for part in self._parts:
            size = _length(part)
            start, end = max(offset - at, 0), min(offset + length - at, size)
            if start < end:
                found.append(_read(part, start, end))
            at += size
        return b"".join(found)

    def pieces(self, offset: int = 0) -> Iterator[bytes]:
        while offset < self.size:
            piece = self.read(offset, PIECE)
            yield piece
            offset += len(piece)

    def digest(self, progress: Callable[[int], None] = lambda _: None) -> str:
        """`sha256:HEX` of it all; `progress` gets the bytes of each piece."""
        found = hashlib.sha256()
        for piece in self.pieces():
            found.update(piece)
            progress(len(piece))
        return f"sha256:{found.hexdigest()}"


def _length(part: bytes | Part) -> int:
    return part.length if isinstance(part, Part) else len(part)


def _read(part: bytes | Part, start: int, end: int) -> bytes:
    if isinstance(part, bytes):
        return part[start:end]
    chunks: list[bytes] = []
    at = start
    while at < end:
        chunk = os.pread(part.fd, end - at, part.offset + at)
        if not chunk:
            raise ImageError("the file became shorter while it was read")
        chunks.append(chunk)
        at += len(chunk)
    return b"".join(chunks)
