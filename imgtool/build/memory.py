"""Digests remembered by what a file is: device, inode, size and times. A file that was not touched is not read again.

What a digest is worth depends on the times: a file changed twice within one tick of the clock looks the same. So a
file is digested only when its last change is older than a tick, and never remembered on file systems whose clock is
too coarse to tell.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from imgtool.errors import ConfigError
from imgtool.image.names import printable
from imgtool.image.userdirs import user_dir
from imgtool.image.whole import write_whole

if TYPE_CHECKING:
    from imgtool.qemu.digest import ContentMap

_TICK_NS = 20_000_000
"""Linux stamps files by the tick of its timer, 10 ms at the coarsest."""
_COARSE_NS = 2_000_000_000
_CHUNK = 1 << 20
_MOST_MAPS = 100


class Memory:
    """Digests of files of this host, in small files of a cache folder. Losing them costs time and nothing else."""

    def __init__(self, directory: str | None = None) -> None:
        """`directory` is the user's cache folder of imgtool unless given."""
        self._directory = directory

    @property
    def directory(self) -> str:
        if self._directory is None:
            self._directory = os.path.join(user_dir("cache"), "digests")
        return self._directory

    def digest(self, kind: str, paths: Sequence[str], compute: Callable[[], str]) -> str:
        """What `compute` returns of the files `paths`, or returned when they were as they are now. `kind` names the
        digest. OSError when a file is not there."""
        before = _wait_a_tick(paths)
        place = self._place(kind, before)
        with contextlib.suppress(OSError), open(place) as file:
            kept = file.read()
            if kept and "\0" not in kept:  # else the host lost its power before it was on disk
                return kept
        found = compute()
        if _identities(paths) == before and not _is_coarse(before):
            self._write(place, found.encode())
        return found

    def sha256(self, path: str) -> str:
        """The SHA-256 of the bytes of the file at `path`, in hex. ConfigError as `file_digest`."""
        return self.file_digest("sha256", path)

    def file_digest(self, algorithm: str, path: str) -> str:
        """The digest of the bytes of the file at `path`, in hex. ConfigError when it cannot be read, or is no
        regular file: a FIFO could be waited for without end, and a device's bytes change without its times."""
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise ConfigError(
                    f"{printable(path)} is no regular file", hint="write what it holds to a file", path=path
                )
            return self.digest(algorithm, [path], lambda: file_digest(algorithm, path))
        except OSError as error:
            raise ConfigError(f"{printable(path)} cannot be read: {error.strerror}", path=path) from error

    def map_of(self, digest: str) -> ContentMap | None:
        """The map of the disk of this content digest, if it was kept."""
        from imgtool.qemu.digest import ContentMap

        try:
            with open(self._map_place(digest), "rb") as file:
                content = file.read()
            with contextlib.suppress(OSError):
                os.utime(file.name)  # a base whose layers are built again and again stays among the latest
            return ContentMap.decoded(content, digest)
        except OSError:
            return None

    def keep_map(self, content: ContentMap) -> None:
        """Keeps it, and those used last. Of a disk of 10 GiB of data it takes 400 KiB."""
        place = self._map_place(content.digest)
        self._write(place, content.encoded())
        with contextlib.suppress(OSError):
            folder = os.path.dirname(place)
            kept = sorted(os.scandir(folder), key=lambda entry: entry.stat().st_mtime_ns)
            for entry in kept[:-_MOST_MAPS]:
                os.unlink(entry)

    def _map_place(self, digest: str) -> str:
        return os.path.join(self.directory, "maps", digest.rpartition(":")[2])

    def _place(self, kind: str, identities: Sequence[tuple[int, ...]]) -> str:
        name = hashlib.sha256(repr((kind, list(identities))).encode()).hexdigest()[:40]
        return os.path.join(self.directory, name)

    def _write(self, place: str, content: bytes) -> None:
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(place), mode=0o700, exist_ok=True)
            write_whole(place, content)


def file_sha256(path: str) -> str:
    return file_digest("sha256", path)


def file_digest(algorithm: str, path: str) -> str:
    """Of a file's bytes, in hex. OSError when it cannot be read."""
    digest = hashlib.new(algorithm)
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _identities(paths: Sequence[str]) -> list[tuple[int, ...]]:
    return [identity(os.stat(path)) for path in paths]


def _wait_a_tick(paths: Sequence[str]) -> list[tuple[int, ...]]:
    """The files' identities, once none of them can change again without another."""
    found = _identities(paths)
    age = time.time_ns() - max((file[4] for file in found), default=0)
    if 0 <= age < _TICK_NS:
        time.sleep((_TICK_NS - age) / 1e9)
        found = _identities(paths)
    return found


def _is_coarse(identities: Sequence[tuple[int, ...]]) -> bool:
    """Whether a file's clock counts whole seconds, and is too near to now to be told from the next second."""
    now = time.time_ns()
    return any(file[4] % 1_000_000_000 == 0 and now - file[4] < _COARSE_NS for file in identities)
