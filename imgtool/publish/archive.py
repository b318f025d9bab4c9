"""Tar archives that say nothing of when or where they were made: the same files are the same bytes."""

from __future__ import annotations

import contextlib
import os
import tarfile

from imgtool.image.names import printable
from imgtool.publish.oci.blob import Blob, Part
from imgtool.publish.oci.errors import RegistryError

_BLOCK = tarfile.BLOCKSIZE


def archive(*members: tuple[tarfile.TarInfo, int | None]) -> Blob:
    """An archive of folders, and of the files open at the descriptors beside them, each of its entry's size."""
    parts: list[bytes | Part] = []
    for entry, fd in members:
        parts.append(entry.tobuf(tarfile.PAX_FORMAT))
        if fd is not None:
            parts += [Part(fd, 0, entry.size), bytes(-entry.size % _BLOCK)]
    return Blob(*parts, bytes(2 * _BLOCK))


def folder_entry(name: str, *, mode: int = 0o755, owner: int = 0) -> tarfile.TarInfo:
    return _entry(name, tarfile.DIRTYPE, mode, owner, 0)


def file_entry(name: str, size: int, *, mode: int = 0o644, owner: int = 0) -> tarfile.TarInfo:
    return _entry(name, tarfile.REGTYPE, mode, owner, size)


def _entry(name: str, kind: bytes, mode: int, owner: int, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.size = kind, mode, size
    entry.uid = entry.gid = owner
    return entry


def archive_of(stack: contextlib.ExitStack, folder: str, names: list[str]) -> Blob:
    """An archive of the files and folders `names` in `folder`, of what is there of them; regular files only. Files
    stay open until `stack` ends."""
    members: list[tuple[tarfile.TarInfo, int | None]] = []
    for name in sorted(_below(folder, names)):
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            members.append((folder_entry(name), None))
        else:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            stack.callback(os.close, fd)
            members.append((file_entry(name, os.fstat(fd).st_size), fd))
    return archive(*members)


def _below(folder: str, names: list[str]) -> list[str]:
    found = []
    for name in names:
        path = os.path.join(folder, name)
        if os.path.isdir(path) and not os.path.islink(path):
            found += [name, *_below(folder, [os.path.join(name, one) for one in os.listdir(path)])]
        elif os.path.isfile(path) and not os.path.islink(path):
            found.append(name)
    return found


def unpack(path: str, folder: str, allowed: list[str]) -> None:
    """Unpacks regular files and folders of the archive at `path` into `folder`, where nothing of that name is.
    RegistryError for anything else in it, and for a name that is not one of `allowed` or in one of these folders."""
    try:
        with tarfile.open(path, "r:") as tar:
            for entry in tar:
                parts = entry.name.split("/")
                if parts[0] not in allowed or ".." in parts or "" in parts or "\0" in entry.name:
                    raise RegistryError(f"an archive holds {printable(entry.name)}, which has no place there")
                _unpack(tar, entry, os.path.join(folder, *parts))
    except (tarfile.TarError, EOFError) as error:
        raise RegistryError(f"an archive is damaged: {printable(str(error))}") from error


def _unpack(tar: tarfile.TarFile, entry: tarfile.TarInfo, target: str) -> None:
    if entry.isdir():
        os.mkdir(target)
        return
    content = tar.extractfile(entry) if entry.isreg() else None
    if content is None:
        raise RegistryError(f"an archive holds {printable(entry.name)}, which is no file")
    with open(target, "xb") as file:
        while piece := content.read(1 << 20):
            file.write(piece)
