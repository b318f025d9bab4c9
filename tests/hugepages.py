"""Huge pages for a test, by turns: the host has one number of them."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_RESERVE = Path("/proc/sys/vm/nr_hugepages")


@contextmanager
def reserved(pages: int) -> Iterator[bool]:
    """Within, so many more pages of 2 MiB are there; yields whether they are, for memory may be in pieces."""
    with open(Path(tempfile.gettempdir(), "imgtool-tests-hugepages"), "w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        before = _RESERVE.read_text()
        try:
            _RESERVE.write_text(str(int(before) + pages))
            yield int(_RESERVE.read_text()) >= int(before) + pages
        finally:
            _RESERVE.write_text(before)
