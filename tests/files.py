"""What tests look at files by."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class State(NamedTuple):
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


def state_of(path: Path) -> State:
    """Which file it is and whether it was written; reading it may change its time of access, which is not in it."""
    stat = path.stat()
    return State(stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
