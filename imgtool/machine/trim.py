"""A bound for the logs of running VMs. QEMU writes what a guest says on its serial port to a file in the runtime
directory, which is in memory, and has no limit for it: a guest that never stops talking would fill that memory."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

MOST = 64 << 20
"""Bytes that the log of a serial port may take."""
KEPT = 16 << 20
"""Bytes at its end that stay when it has taken more."""

_EVERY = 30.0
"""Seconds."""
_PAGE = 1 << 12
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # linux/falloc.h


@contextlib.contextmanager
def trimmed_logs(folder: str) -> Iterator[None]:
    """Inside the `with` block, `trim_logs` is called now and then."""
    ended = threading.Event()

    def trim() -> None:
        while not ended.wait(_EVERY):
            trim_logs(folder)

    thread = threading.Thread(target=trim, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def trim_logs(folder: str, *, most: int = MOST, kept: int = KEPT) -> None:
    """Gives back the beginnings of the logs in a VM's `folder` that have taken more than `most` bytes. QEMU goes on
    where it is, and so does who reads: what is gone is a hole in the file."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".log") and entry.stat().st_blocks * 512 > most:
                _punch(entry.path, max(0, entry.stat().st_size - kept) // _PAGE * _PAGE)


def _punch(path: str, length: int) -> None:
    """Makes the first `length` bytes a hole, where the system and the file system can."""
    import ctypes

    fallocate = getattr(ctypes.CDLL(None), "fallocate", None)
    if fallocate is None or length == 0:
        return
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, ctypes.c_int64(0), ctypes.c_int64(length))
    finally:
        os.close(fd)
