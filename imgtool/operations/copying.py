"""Copying an image file as it is: holes stay holes, and where the file system can share blocks nothing is copied."""

from __future__ import annotations

import errno
import os

_FICLONE = 0x40049409
_PIECE = 64 << 20


def copy_file(source: int, target: int) -> None:
    """Copies the file open at `source` into the empty file open at `target`. OSError as raised by the system."""
    size = os.fstat(source).st_size
    if _share(source, target):
        return
    os.ftruncate(target, size)
    for start, end in _data(source, size):
        _copy_range(source, target, start, end)


def _share(source: int, target: int) -> bool:
    """Whether the file system let both files share their blocks (btrfs, XFS)."""
    import fcntl

    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def _data(fd: int, size: int) -> list[tuple[int, int]]:
    """The parts of the file that are not holes."""
    parts = []
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                break
            return [(at, size)]
        at = os.lseek(fd, start, os.SEEK_HOLE)
        parts.append((start, at))
    return parts


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    at = start
    while at < end:
        try:
            copied = os.copy_file_range(source, target, min(_PIECE, end - at), at, at)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            piece = os.pread(source, min(1 << 20, end - at), at)
            copied = os.pwrite(target, piece, at)
        if copied == 0:
            raise OSError(errno.EIO, "the file became shorter while it was copied")
        at += copied
