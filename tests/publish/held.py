"""An image that somebody writes."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_F_OFD_SETLK = 37
_WRITES = 101
"""The byte that QEMU locks where it writes (block/file-posix.c)."""


@contextmanager
def held_for_writing(path: Path) -> Iterator[None]:
    """Within, the image is locked as QEMU locks what it writes."""
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.fcntl(fd, _F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, _WRITES, 1, 0))
        yield
    finally:
        os.close(fd)
