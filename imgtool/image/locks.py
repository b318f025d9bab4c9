"""Who holds an image: QEMU's own locks, queried without taking any.

QEMU locks single bytes of the image file with open file description locks: byte 100 + n says that it uses permission
n, byte 200 + n that it allows no one else permission n (block/file-posix.c). Linux only; elsewhere nothing is seen.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Container, Iterable, Iterator
from typing import Literal

import msgspec

if sys.platform.startswith("linux"):
    import fcntl

LockState = Literal["read", "write"]

_PERM_BASE = 100
_SHARED_BASE = 200
_WRITE, _RESIZE = 1, 3  # BLK_PERM_WRITE and BLK_PERM_RESIZE as bit numbers; 0 is CONSISTENT_READ, 2 WRITE_UNCHANGED
_PERM_BITS = 6
_SPAN = _SHARED_BASE + _PERM_BITS - _PERM_BASE

_F_OFD_GETLK = 36
_F_OFD_SETLK = 37
_FLOCK = struct.Struct("hhqqi4x")


def _question(start: int, length: int) -> bytes:
    """What asks whether these bytes are locked: asking for a write lock finds shared ones too, and F_OFD_GETLK wants
    l_pid to be 0."""
    return _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)


if sys.platform.startswith("linux"):
    _ANYBODY = _question(_PERM_BASE, _SPAN)
    _ANY_USER = _question(_PERM_BASE, _PERM_BITS)
    _WRITERS = (_question(_PERM_BASE + _WRITE, 1), _question(_PERM_BASE + _RESIZE, 1))
    _NOBODY = struct.pack("h", fcntl.F_UNLCK)


IMGTOOL = "imgtool"


class Holder(msgspec.Struct, frozen=True):
    """A process that has the image open."""

    pid: int
    program: str
    """The command's name, `IMGTOOL` for another run of it; bytes that are no UTF-8 as lone surrogates."""


def lock_state(fd: int) -> LockState | None:
    """`write` when some QEMU has the image open at `fd` for writing, `read` when only for reading, None when nobody
    has it locked. Any descriptor will do, and no lock is taken. None too where the file system knows no locks."""
    if not sys.platform.startswith("linux") or not _locked(fd, _ANYBODY):
        return None
    return "write" if any(_locked(fd, question) for question in _WRITERS) else "read"


def _locked(fd: int, question: bytes) -> bool:
    """Whether another open file description holds a lock, shared or exclusive, on any of the bytes asked for."""
    try:
        return not fcntl.fcntl(fd, _F_OFD_GETLK, question).startswith(_NOBODY)
    except OSError:
        return False


def is_open(fd: int) -> bool:
    """Whether some QEMU program has the image open at `fd`, for reading or writing. A lock that only forbids others
    something, as that of `forbid_writers`, does not count."""
    return sys.platform.startswith("linux") and _locked(fd, _ANY_USER)


def forbid_writers(fd: int) -> bool:
    """Takes QEMU's lock that lets others only read the image open at `fd`, until `fd` is closed. False when somebody
    writes it. True too where the file system knows no locks."""
    if not sys.platform.startswith("linux"):
        return True
    for permission in (_WRITE, _RESIZE):
        request = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, _SHARED_BASE + permission, 1, 0)
        try:
            fcntl.fcntl(fd, _F_OFD_SETLK, request)
        except BlockingIOError:
            return False
        except OSError:
            return True
    # as QEMU does: first declare what is not allowed, then look whether somebody does it
    return lock_state(fd) != "write"


def holders(path: str) -> list[Holder]:
    """The processes that have the file at `path` open and hold a lock on it; where no lock shows, those that have it
    open for writing. This process is left out. Only what /proc lets us see: other users' processes hide from all but
    root."""
    return holders_of([path])[path]


def holders_of(paths: Iterable[str]) -> dict[str, list[Holder]]:
    """As `holders`, for many files in one look at all processes."""
    found: dict[str, list[Holder]] = {}
    wanted: dict[tuple[int, int], list[str]] = {}
    for path in paths:
        found[path] = []
        try:
            status = os.stat(path)
        except OSError:
            continue
        wanted.setdefault((status.st_dev, status.st_ino), []).append(path)
    if not wanted or not sys.platform.startswith("linux"):
        return found
    writing: dict[str, list[Holder]] = {}
    for pid in _processes():
        uses: dict[tuple[int, int], set[str]] = {}
        for identity, fd in _open_files(pid, wanted):
            uses.setdefault(identity, set()).add(_use(pid, fd))
        for identity, flags in uses.items():
            for path in wanted[identity]:
                if "lock" in flags:
                    found[path].append(Holder(pid, _program(pid)))
                elif "write" in flags:
                    writing.setdefault(path, []).append(Holder(pid, _program(pid)))
    return {path: locking or writing.get(path, []) for path, locking in found.items()}


def _processes() -> Iterator[int]:
    try:
        names = os.listdir("/proc")
    except OSError:
        return
    own = os.getpid()
    for name in names:
        if name.isdigit() and int(name) != own:
            yield int(name)


def _open_files(pid: int, wanted: Container[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], str]]:
    """(which file, descriptor) for each of the process's descriptors that is one of `wanted`."""
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return  # it has ended in the meantime, or belongs to another user
    for name in names:
        try:
            status = os.stat(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
        identity = (status.st_dev, status.st_ino)
        if identity in wanted:
            yield identity, name


def _use(pid: int, fd: str) -> Literal["lock", "write", "read"]:
    try:
        with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii", errors="replace") as lines:
            writes = False
            for line in lines:
                key, _, value = line.partition(":")
                if key == "lock":
                    return "lock"
                if key == "flags":
                    writes = int(value, 8) & os.O_ACCMODE != os.O_RDONLY
    except (OSError, ValueError):
        return "read"
    return "write" if writes else "read"


def _program(pid: int) -> str:
    """The first word of the command line without its folders, `IMGTOOL` where Python runs that; the kernel's
    shortened name when there is none."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            first, *words = file.read(4096).split(b"\0")
        name = os.path.basename(first)
        if name.startswith(b"python") and _runs_imgtool(words):
            return IMGTOOL
        if not name:
            with open(f"/proc/{pid}/comm", "rb") as file:
                name = file.read(64).strip()
    except OSError:
        return "?"
    return os.fsdecode(name)


def _runs_imgtool(words: Iterable[bytes]) -> bool:
    """Whether Python, called with `words`, runs imgtool: its script, or the module."""
    left = iter(words)
    for word in left:
        if not word.startswith(b"-"):
            return os.path.basename(word) == b"imgtool"
        if word in (b"-W", b"-X"):
            next(left, b"")
        elif word.endswith(b"m"):  # -m, -Im
            return next(left, b"") == b"imgtool"
    return False
