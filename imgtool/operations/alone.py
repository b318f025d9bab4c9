"""One imgtool at a time puts a change into a directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

from imgtool.errors import ImageInUseError
from imgtool.image.names import printable

_PATIENCE = 60.0
"""Seconds to wait for another imgtool to put its change into the same directory, which takes milliseconds."""


@contextlib.contextmanager
def alone_in(directories: list[str]) -> Iterator[None]:
    """Within, no other imgtool puts a change into one of `directories`: else two that looked at the same time would
    each take away what the other relied on. ImageInUseError when one takes too long. Without effect where the file
    system has no such locks."""
    deadline = time.monotonic() + _PATIENCE
    with contextlib.ExitStack() as stack:
        for directory in directories:
            try:
                fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                continue
            stack.callback(os.close, fd)
            while not _locked(fd):
                if time.monotonic() > deadline:
                    raise ImageInUseError(
                        f"another imgtool is changing images in {printable(directory)}",
                        hint="wait for it to end, then run the command again",
                        path=directory,
                    )
                time.sleep(0.02)
        yield


@contextlib.contextmanager
def if_alone_in(directory: str) -> Iterator[bool]:
    """Whether no other imgtool is putting a change into `directory` just now; within, none does."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        yield _locked(fd)
    finally:
        os.close(fd)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks on this file system, or not on directories
        return True
    return True
