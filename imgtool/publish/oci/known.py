"""What this host remembers of layers: which files hold them, which repositories have them, which uploads are
half done.

    $XDG_CACHE_HOME/imgtool/oci/
        files/DEV-INODE.json     the digest of a file's layer, and what the file was then
        layers/HEX.json          where files with this layer were
        contents/HEX.json        the digest of what a guest reads of this layer
        repositories/HEX.json    which repositories have this layer
        uploads/HASH.json        how an upload that was broken off can go on

All of it may be lost at any time, and nothing of it is believed without a look: a file's digest counts only while
its inode, size and times are those that were noted.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from typing import TypeVar

import msgspec

from imgtool.image.userdirs import user_dir
from imgtool.image.whole import write_whole

T = TypeVar("T")

_MOST = 64
"""Places of one layer that are remembered."""

_SETTLED = 2.0
"""Seconds after which a file's times would show another write: what was written just before it was noted may be
written again in the same tick of the file system's clock."""


class _File(msgspec.Struct, frozen=True):
    identity: tuple[int, int, int, int, int]
    digest: str
    parent: str | None
    noted: float


def _identity(status: os.stat_result) -> tuple[int, int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class Known:
    """Methods raise nothing: what cannot be read is not known, what cannot be written is not remembered."""

    def __init__(self, folder: str | None = None) -> None:
        if folder is None:
            folder = os.path.join(user_dir("cache"), "oci")
        self._folder = folder

    def digest(self, status: os.stat_result, parent: str | None) -> str | None:
        """The layer digest of the file of this status, that stands on the layer `parent`; None when it is not known
        or was not noted safely, as what a device holds never is."""
        if not stat.S_ISREG(status.st_mode):
            return None
        found = self._read("files", f"{status.st_dev}-{status.st_ino}", _File)
        if found is None or found.identity != _identity(status) or found.parent != parent:
            return None
        return found.digest if found.noted - status.st_ctime > _SETTLED else None

    def note(self, path: str, status: os.stat_result, digest: str, parent: str | None) -> None:
        """The file at `path` holds this layer, seen now."""
        file = _File(_identity(status), digest, parent, time.time())
        self._write("files", f"{status.st_dev}-{status.st_ino}", file)
        self._add("layers", _hex(digest), path)

    def places(self, digest: str) -> list[str]:
        """Where files with this layer were, the last noted first."""
        return list(reversed(self._read("layers", _hex(digest), list[str]) or []))

    def content(self, digest: str) -> str | None:
        """The digest of what a guest reads of this layer and all beneath."""
        return self._read("contents", _hex(digest), str)

    def note_content(self, digest: str, content: str) -> None:
        self._write("contents", _hex(digest), content)

    def repositories(self, digest: str, host: str) -> list[str]:
        """The repositories of `host` that had this layer, the last noted first."""
        found = self._read("repositories", _hex(digest), list[str]) or []
        return [name.partition("/")[2] for name in reversed(found) if name.partition("/")[0] == host]

    def note_repository(self, digest: str, repository: str) -> None:
        self._add("repositories", _hex(digest), repository)

    def upload(self, repository: str, digest: str) -> str | None:
        """The location of a broken-off upload."""
        return self._read("uploads", _hash(repository, digest), str)

    def note_upload(self, repository: str, digest: str, location: str | None) -> None:
        """Where it can go on; None when it is over."""
        name = _hash(repository, digest)
        if location is None:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self._folder, "uploads", f"{name}.json"))
        else:
            self._write("uploads", name, location)

    def _add(self, kind: str, name: str, entry: str) -> None:
        try:
            entry.encode()
        except UnicodeEncodeError:
            return  # a name that is no UTF-8 has no place in JSON
        known = [one for one in self._read(kind, name, list[str]) or [] if one != entry]
        self._write(kind, name, [*known, entry][-_MOST:])

    def _read(self, kind: str, name: str, form: type[T]) -> T | None:
        try:
            with open(os.path.join(self._folder, kind, f"{name}.json"), "rb") as file:
                return msgspec.json.decode(file.read(), type=form)
        except (OSError, msgspec.MsgspecError):
            return None

    def _write(self, kind: str, name: str, value: object) -> None:
        folder = os.path.join(self._folder, kind)
        with contextlib.suppress(OSError):
            os.makedirs(folder, mode=0o700, exist_ok=True)
            write_whole(os.path.join(folder, f"{name}.json"), msgspec.json.encode(value))


def _hex(digest: str) -> str:
    return digest.partition(":")[2]


def _hash(*words: str) -> str:
    return hashlib.blake2b("\0".join(words).encode(), digest_size=16).hexdigest()
