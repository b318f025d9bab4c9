"""Copying an image file as it is: holes stay holes, and where the file system can share blocks nothing is copied."""

from __future__ import annotations

import errno
import os

from imgtool.image.source import size_of

_FICLONE = 0x40049409
_PIECE = 64 << 20


def copy_file(source: int, target: int) -> None:
    """Copies the file or block device open at `source` into the empty file open at `target`. OSError as raised by the
    system."""
    size = size_of(source)
    if _share(source, target):
        return
    os.ftruncate(target, size)
    for start, end in data_of(source, size):
        _copy_range(source, target, start, end)


def _share(source: int, target: int) -> bool:
    """Whether the file system let both files share their blocks (btrfs, XFS)."""
    import fcntl

    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def data_of(fd: int, size: int, at: int = 0) -> list[tuple[int, int]]:
    """The parts from `at` on of the file of `size` bytes that are no holes: (start, end). A block device has none."""
    parts = []
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
