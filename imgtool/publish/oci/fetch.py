"""Images of registries and of the web as local files that others build on: pulled once, read-only, found again by
their digest."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import msgspec

from imgtool.errors import UsageError
from imgtool.image.names import PathLike, absolute, printable
from imgtool.image.userdirs import user_dir
from imgtool.publish.download import download, is_url, name_of
from imgtool.publish.oci.connection import DEFAULT, Connection
from imgtool.publish.oci.pull import PullRequest
from imgtool.publish.oci.reference import is_digest, parse_reference
from imgtool.qemu.qemu_img import QemuImg
from imgtool.qemu.replace import replacing

Progress = Callable[[float], None]


class _Fetched(msgspec.Struct, frozen=True):
    path: str
    files: dict[str, tuple[int, int]]
    """Each image of the chain, its size and time of last change."""


def default_folder() -> str:
    return os.path.join(user_dir("cache"), "images")


def fetch(
    reference: str,
    digest: str,
    *,
    folder: PathLike | None = None,
    connection: Connection = DEFAULT,
    qemu_img: QemuImg | None = None,
    progress: Progress | None = None,
) -> str:
    """Fetches an image unless it is here already, and returns the path of the local, read-only file. `reference`
    names an image in a registry, whose manifest has the digest `digest`, or is the URL of a file whose bytes have it.
    Images of a registry share the bases that they have in common.

    UsageError for what is not a reference or digest; DownloadError when the URL cannot be read, or leads to another
    file; else as `pull`.
    """
    folder = default_folder() if folder is None else absolute(folder)
    record = os.path.join(folder, f".{digest.replace(':', '-')}.json")
    known = _remembered(record)
    if known is not None:
        return known
    if is_url(reference):
        os.makedirs(folder, mode=0o700, exist_ok=True)
        path = os.path.join(folder, name_of(reference, digest))
        download(reference, digest, path, progress=progress)
        _remember(record, path, [path])
        return path
    parsed = parse_reference(reference)
    if not is_digest(digest):
        raise UsageError(f"{printable(digest)!r} is not a digest", hint="sha256: and 64 hexadecimal digits")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    stem = f"{parsed.name.rpartition('/')[2]}-{digest.partition(':')[2][:12]}"
    pinned = str(parsed._replace(tag=None, digest=digest))
    request = PullRequest(pinned, folder, stem=stem, read_only=True, connection=connection)
    pulled = request.make(qemu_img or QemuImg(), progress=progress)
    _remember(record, pulled.path, [layer.path for layer in pulled.layers])
    return pulled.path


def _remember(record: str, path: str, files: Sequence[str]) -> None:
    found = _Fetched(path, {file: _look(file) for file in files})
    with replacing(record, overwrite=True) as hidden, open(hidden, "wb") as file:
        file.write(msgspec.json.encode(found))


def _remembered(record: str) -> str | None:
    """The image that the record is of, if all its files are as they were."""
    try:
        with open(record, "rb") as file:
            found = msgspec.json.decode(file.read(), type=_Fetched)
        if all(_look(path) == known for path, known in found.files.items()):
            return found.path
    except (OSError, msgspec.MsgspecError):
        pass
    return None


def _look(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns
