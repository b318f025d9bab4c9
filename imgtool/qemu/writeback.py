"""Having the disk take what a program writes while the program still writes it.

Nothing is lost without it: who wants a file on disk calls fsync afterwards. But qemu-img fills the page cache in a
third of the time that the disk needs to take it, and the kernel would wait with that. Writing past the page cache
(`-t none`) waits for each piece instead, which took longer on every disk tried.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator

_EVERY = 0.02
"""Seconds. What is done before that starts no thread's work at all."""
_WRITE = 2
"""SYNC_FILE_RANGE_WRITE of sync_file_range(2): start writing what is dirty, and do not wait for it."""


@contextlib.contextmanager
def written_early(path: str, *, keep: bool = True) -> Iterator[None]:
    """Inside the `with` block, what anyone writes to the file at `path` is soon on its way to the disk. Only on
    Linux; that it cannot be done is no error. The page cache keeps it for those who read it next; without `keep` it
    is left to others."""
    if not sys.platform.startswith("linux"):
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_push, args=(path, _started if keep else _handed_over, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _push(path: str, step: Callable[[int], bool], ended: threading.Event) -> None:
    if ended.wait(_EVERY):
        return
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return
    try:
        while step(fd) and not ended.wait(_EVERY):
            pass
    finally:
        os.close(fd)


def _started(fd: int) -> bool:
    import ctypes

    start = getattr(ctypes.CDLL(None), "sync_file_range", None)
    whole = ctypes.c_int64(0)
    return start is not None and start(fd, whole, whole, _WRITE) == 0


def _handed_over(fd: int) -> bool:
    """Starts writing what is dirty, and takes from the page cache what is on disk: posix_fadvise(2)."""
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError:
        return False
    return True
