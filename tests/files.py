"""What tests look at files by."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def as_nobody(*readable: Path) -> Iterator[None]:
    """Root reads everything; within, we are a user that does not."""
    if os.geteuid() != 0:
        yield
        return
    for path in readable:
        for directory in (path, *path.parents):
            if directory != Path("/") and directory.is_dir():
                directory.chmod(directory.stat().st_mode | 0o055)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@contextmanager
def block_device(path: Path) -> Iterator[Path]:
    """Within, a block device that holds what the file does: as root a loop device, else just the file."""
    if os.geteuid() != 0:
        yield path
        return
    made = subprocess.run(["losetup", "--find", "--show", path], stdout=subprocess.PIPE, check=True, text=True)
    device = made.stdout.strip()
    try:
        yield Path(device)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """Within, writing beyond `size` bytes of a file fails, as it does on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def fixed(letter: str, path: Path) -> Iterator[None]:
    """Within, the file or directory is immutable (`i`) or append-only (`a`), for root too."""
    subprocess.run(["chattr", f"+{letter}", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["chattr", f"-{letter}", path], check=True)
