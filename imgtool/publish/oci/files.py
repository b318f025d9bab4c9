"""The files that a pull makes: their names, their permissions, how they appear."""

from __future__ import annotations

import os

from imgtool.errors import ImageError, ImageExistsError
from imgtool.image.names import printable


def by_size(folder: str) -> dict[int, list[str]]:
    """The plain files in `folder` by their size."""
    found: dict[int, list[str]] = {}
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_file(follow_symlinks=False) and not entry.name.startswith(".imgtool-"):
                found.setdefault(entry.stat(follow_symlinks=False).st_size, []).append(entry.path)
    return found


def free_name(path: str) -> str:
    stem, suffix = os.path.splitext(path)
    number = 2
    while os.path.lexists(f"{stem}-{number}{suffix}"):
        number += 1
    return f"{stem}-{number}{suffix}"


def allowed_mode(most: int) -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return most & ~mask | 0o400


def write_head(fd: int, head: bytes) -> None:
    written = os.pwrite(fd, head, 0)
    if written != len(head):
        raise ImageError("a header could not be written whole: is the disk full?")


def place(part: str, path: str) -> None:
    """`part` becomes `path`, a new name. ImageExistsError when there is something of that name by now."""
    try:
        os.link(part, path, follow_symlinks=False)  # unlike rename(2), it never replaces
        os.unlink(part)
    except FileExistsError:
        raise ImageExistsError(
            f"{printable(path)} was created by another program in the meantime", path=path
        ) from None
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            raise ImageExistsError(
                f"{printable(path)} was created by another program in the meantime", path=path
            ) from None
        os.rename(part, path)
    fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
