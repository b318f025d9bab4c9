"""Attributes of files and directories that forbid everybody, root too, what permissions allow: see chattr(1)."""

from __future__ import annotations

import os
import stat
import struct

from imgtool.errors import RefusedError
from imgtool.image.names import pasted, printable

_GET_FLAGS = 0x80086601
"""FS_IOC_GETFLAGS of linux/fs.h."""

_IMMUTABLE, _APPEND_ONLY = 0x10, 0x20
_FLAGS = struct.Struct("l")


def refuse_fixed(path: str) -> None:
    """RefusedError when the file at `path` may not be written, replaced or removed, or when nothing in the directory
    may be. Nothing of it shows in permissions, and append-only directories let files in that cannot be taken out."""
    flags = _flags_of(path)
    if flags & (_IMMUTABLE | _APPEND_ONLY):
        word, letter = ("immutable", "i") if flags & _IMMUTABLE else ("append-only", "a")
        raise RefusedError(
            f"{printable(path)} is {word} (chattr +{letter})",
            hint=f"`chattr -{letter} {pasted(path)}` if it was not meant to stay as it is",
            path=path,
        )


def _flags_of(path: str) -> int:
    """None of them where the file system knows none, or does not say."""
    import fcntl

    try:
        mode = os.lstat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            return 0
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return 0
    try:
        answer = fcntl.ioctl(fd, _GET_FLAGS, bytes(_FLAGS.size))
    except OSError:
        return 0
    finally:
        os.close(fd)
    return int(_FLAGS.unpack(answer)[0])
