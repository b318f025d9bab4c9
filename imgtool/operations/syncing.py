"""Flushing files and directories to disk."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Collection

_FEW = 16
"""Up to so many files are brought to the disk one by one."""


def sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(path: str, made: Callable[[str], object] = lambda path: None) -> None:
    """Makes the directory `path` and what is missing above it; `made` is told each. Their names are on disk then: a
    file in one, whose other name is removed, would go with a name that is not."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for folder in reversed(missing):
        os.mkdir(folder)
        made(folder)
        sync(os.path.dirname(folder))


def sync_all(paths: Collection[str]) -> None:
    """Flushes to disk those of the files `paths` that exist, with their names.

    Many files are flushed with everything else written to their file system: a thousand, one by one, take a hundred
    times as long."""
    directories = sorted({os.path.dirname(path) for path in paths})
    if len(paths) > _FEW and sys.platform.startswith("linux"):
        for directory in directories:
            _sync_file_system(directory)
        return
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            sync(path)
    for directory in directories:
        sync(directory)


def _sync_file_system(directory: str) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if libc.syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), directory)
    finally:
        os.close(fd)
