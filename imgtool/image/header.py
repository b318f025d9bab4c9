"""Reading an image's header natively: which format it is in, and what it says of itself.

Bounded (`READ_LIMIT` bytes, whatever the header claims), without any process, and in agreement with `qemu-img info`.
"""

from __future__ import annotations

from imgtool.errors import ImageFormatError
from imgtool.image.formats import qcow2, raw
from imgtool.image.formats.base import Details, Header
from imgtool.image.formats.qcow2 import Qcow2Details, Snapshot
from imgtool.image.source import READ_LIMIT, Source

__all__ = [
    "READ_LIMIT",
    "Details",
    "Header",
    "Qcow2Details",
    "Snapshot",
    "probe",
    "read_header",
    "read_snapshots",
]

_PARSERS = {"qcow2": qcow2.parse, "raw": raw.parse}

_SNAPSHOT_LIMIT = 8 << 20


def read_header(fd: int, *, format: str | None = None) -> Header:
    """The header of the image open for reading at `fd`, a regular file or block device.

    With `format` the image is read as that and nothing else; without, its magic numbers decide as in QEMU's probing.
    ImageFormatError when it cannot be read, is not in that format, or is damaged.
    """
    return parse(Source.of(fd), format=format)


def parse(source: Source, *, format: str | None = None) -> Header:
    """As `read_header`, from any source of bytes."""
    head = source.head
    if format is None:
        format = found = probe(head)
    else:
        found = probe(head)
    parser = _PARSERS.get(format)
    if parser is None:
        raise ImageFormatError(
            f"{format!r} is no image format that imgtool reads", hint=f"one of {', '.join(sorted(_PARSERS))}"
        )
    if format not in (found, "raw"):
        raise ImageFormatError(f"not a {format} image: it looks like {found}")
    return parser(source)


def probe(head: bytes) -> str:
    """The format that QEMU's probing finds in an image's first bytes; `raw` when nothing matches."""
    if head.startswith(qcow2.MAGIC) and int.from_bytes(head[4:8]) >= 2:
        return "qcow2"
    return "raw"


def read_snapshots(fd: int, header: Header, *, most: int = 1000) -> list[Snapshot]:
    """The internal snapshots of the image at `fd`, whose header was read before; the first `most` of them."""
    return qcow2.read_snapshots(Source.of(fd, limit=_SNAPSHOT_LIMIT), header, most=most)
