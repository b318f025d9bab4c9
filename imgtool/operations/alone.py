"""One imgtool at a time puts a change into a directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterable, Iterator

from imgtool.errors import ImageInUseError
from imgtool.image.names import printable

_PATIENCE = 60.0
"""Seconds to wait for another imgtool to put its change into the same directory, which takes milliseconds."""


@contextlib.contextmanager
def alone_in(directories: Iterable[str]) -> Iterator[None]:
    """Inside the `with` block, no other imgtool puts a change into one of `directories`: otherwise two that looked at
    the same time would each take away what the other relied on. ImageInUseError when one takes too long. Without
    effect where the file system has no such locks."""
    deadline = time.monotonic() + _PATIENCE
    with contextlib.ExitStack() as stack:
        for fd, directory in _opened(stack, directories):
            while not _locked(fd):
                if time.monotonic() > deadline:
                    raise ImageInUseError(
                        f"another imgtool is changing images in {printable(directory)}",
                        hint="wait for it to end, then run the command again",
                        path=directory,
                    )
                time.sleep(0.02)
        yield


def _opened(stack: contextlib.ExitStack, directories: Iterable[str]) -> list[tuple[int, str]]:
    """Each directory once, whatever its names (a bind mount is one more), and in an order that is everybody's: two
    that wait for each other would wait for ever."""
    found: dict[tuple[int, int], tuple[int, str]] = {}
    for directory in directories:
        fd = _open(directory)
        if fd is not None:
            stack.callback(os.close, fd)
            status = os.fstat(fd)
            found.setdefault((status.st_dev, status.st_ino), (fd, directory))
    return [found[identity] for identity in sorted(found)]


@contextlib.contextmanager
def if_alone_in(directory: str) -> Iterator[bool]:
    """Yields whether no other imgtool is putting a change into `directory` just now; if so, none does inside the
    `with` block."""
    fd = _open(directory)
    try:
        yield fd is not None and _locked(fd)
    finally:
        if fd is not None:
            os.close(fd)


def _open(directory: str) -> int | None:
    try:
        return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks on this file system, or not on directories
        return True
    return True
