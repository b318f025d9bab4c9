"""Having the disk take what a program writes while the program still writes it.

Nothing is lost without it: who wants a file on disk calls fsync afterwards. But qemu-img fills the page cache in a
third of the time that the disk needs to take it, and the kernel would wait with that.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

_EVERY = 0.03
"""Seconds. What is done before that starts no thread's work at all."""
_WRITE = 2
"""SYNC_FILE_RANGE_WRITE of sync_file_range(2): start writing what is dirty, and do not wait for it."""


@contextlib.contextmanager
def written_early(path: str) -> Iterator[None]:
    """Within, what anyone writes to the file at `path` is on its way to the disk soon. Only on Linux; that it cannot
    be done is no error."""
    if not sys.platform.startswith("linux"):
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_push, args=(path, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _push(path: str, ended: threading.Event) -> None:
    if ended.wait(_EVERY):
        return
    import ctypes

    start = getattr(ctypes.CDLL(None), "sync_file_range", None)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return
    try:
        whole = ctypes.c_int64(0)
        while start is not None and start(fd, whole, whole, _WRITE) == 0 and not ended.wait(_EVERY):
            pass
    finally:
        os.close(fd)
