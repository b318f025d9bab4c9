"""Whether a file may be replaced or removed in one step, and handing its attributes to its successor."""

from __future__ import annotations

import contextlib
import os
import stat

from imgtool.errors import RefusedError
from imgtool.image.attributes import refuse_fixed
from imgtool.image.names import printable


def check_replaceable(path: str) -> None:
    """RefusedError when the file at `path` cannot be replaced in one step: it is none, has further names, which would
    go on showing the old one, or is another user's in a directory where that protects it."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise RefusedError(
            f"{printable(path)} is not a regular file, so it cannot be changed atomically",
            hint="`imgtool convert` copies it into a file",
            path=path,
        )
    if status.st_nlink > 1:
        raise RefusedError(
            f"{printable(path)} has {status.st_nlink} names (hard links), of which only one would change",
            hint="remove the other names, or make copies of them, first",
            path=path,
        )
    check_removable(os.path.realpath(path))
    if not os.access(path, os.W_OK):
        raise RefusedError(f"{printable(path)} may not be written", hint="its permissions forbid it", path=path)


def check_removable(path: str) -> None:
    """RefusedError when the name `path` may not be removed although its directory is writable."""
    refuse_fixed(path)
    refuse_fixed(os.path.dirname(path))
    folder = os.stat(os.path.dirname(path))
    mine = os.geteuid()
    if folder.st_mode & stat.S_ISVTX and mine not in (0, folder.st_uid, os.lstat(path).st_uid):
        raise RefusedError(f"{printable(path)} belongs to another user, and may not be replaced", path=path)


def take_attributes(staged: str, target: str) -> None:
    """Gives `staged` the owner, permissions and attributes of `target`, as far as the user may."""
    status = os.stat(target)
    with contextlib.suppress(PermissionError):
        os.chown(staged, status.st_uid, status.st_gid)
    os.chmod(staged, stat.S_IMODE(status.st_mode))
    with contextlib.suppress(OSError):  # a file system without attributes
        for name in os.listxattr(target):
            with contextlib.suppress(OSError):  # one that this user may not set
                os.setxattr(staged, name, os.getxattr(target, name))
