"""Looking at an image before a program gets it: what is missing, unreadable or no image at all is reported at once,
and QEMU never opens anything that would block it (a FIFO, a terminal)."""

from __future__ import annotations

import errno
import os
import stat

from imgtool.errors import ImageInUseError, ImageNotFoundError, ImageUnreadableError
from imgtool.image.locks import LockState, lock_state
from imgtool.image.names import printable
from imgtool.image.users import users_of

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
}


def check_name(path: str) -> None:
    """ImageNotFoundError where `path` holds a NUL byte: no system call takes it."""
    if "\0" in path:
        raise ImageNotFoundError(f"{printable(path)}: no file can have that name", path=path)


def check_input(path: str, *, what: str = "image", write: bool = False) -> None:
    """Does nothing when `path` is a regular file or block device that can be read (and written, with `write`).

    Else ImageNotFoundError or ImageUnreadableError, whose message calls the file `what`.
    """
    check_name(path)
    shown = printable(path)
    try:
        status = os.stat(path)
    except OSError as error:
        raise _unreachable(error, path, what) from error
    kind = stat.S_IFMT(status.st_mode)
    if kind not in (stat.S_IFREG, stat.S_IFBLK):
        one = f"an {what}" if what[0] in "aeiou" else f"a {what}"
        hint = f"give the {what} in it" if kind == stat.S_IFDIR else f"{one} is a regular file or a block device"
        raise ImageUnreadableError(f"{shown} is {_KINDS.get(kind, 'no file')}", hint=hint, path=path)
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        raise ImageUnreadableError(
            f"{shown} cannot be read: {error.strerror}", hint=_permission_hint(error), path=path
        ) from error
    if write and not os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise ImageUnreadableError(
            f"{shown} cannot be written", hint="its permissions or its file system forbid it", path=path
        )


def _unreachable(error: OSError, path: str, what: str) -> ImageNotFoundError | ImageUnreadableError:
    shown = printable(path)
    if error.errno == errno.ENOENT and os.path.islink(path):
        target = printable(os.fsdecode(os.readlink(path)))
        return ImageNotFoundError(f"{shown} is a link to {target}, which does not exist", path=path)
    if error.errno == errno.ENOENT:
        folder = os.path.dirname(path)
        missing = folder if not os.path.isdir(folder) else path
        hint = "the name may be misspelt" if missing == path else f"there is no directory {printable(folder)}"
        return ImageNotFoundError(f"{what} {shown} does not exist", hint=hint, path=path)
    if error.errno in (errno.ENOTDIR, errno.ENAMETOOLONG):
        return ImageNotFoundError(f"{what} {shown} does not exist: {error.strerror}", path=path)
    return ImageUnreadableError(
        f"{shown} cannot be reached: {error.strerror}", hint=_permission_hint(error), path=path
    )


def _permission_hint(error: OSError) -> str | None:
    return "another user may read it, you may not" if error.errno in (errno.EACCES, errno.EPERM) else None


def lock_of(path: str) -> LockState | None:
    """Whether a QEMU program holds the image at `path`: see `lock_state`. None too when it cannot be opened."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        return lock_state(fd)
    finally:
        os.close(fd)


def in_use(path: str, *, write: bool, cause: BaseException | None = None) -> ImageInUseError | None:
    """The error for an image that another process holds in a way that keeps us from reading it, or from writing it
    with `write`; None when nobody does."""
    state = lock_of(path)
    if state is None or (state == "read" and not write):
        return None
    users = users_of(path)
    how = f"is in use by {users.names or 'another process'}"
    hint = users.ending if write else f"{users.ending}; --force-share reads it all the same"
    found = ImageInUseError(f"{printable(path)} {how}", hint=hint, path=path)
    found.__cause__ = cause
    return found
