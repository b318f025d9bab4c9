"""Reading an image's header natively: which format it is in, and what it says about itself.

Bounded (`READ_LIMIT` bytes, whatever the header claims), without any process, and in agreement with `qemu-img info`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable

from imgtool.errors import ImageFormatError
from imgtool.image.formats import FORMATS, magics, qcow2, raw
from imgtool.image.formats.base import Details, Header
from imgtool.image.formats.qcow2 import Qcow2Details
from imgtool.image.names import PathLike
from imgtool.image.source import HEAD, READ_LIMIT, Source, opened

__all__ = [
    "FORMATS",
    "READ_LIMIT",
    "Details",
    "Header",
    "HeaderReader",
    "Qcow2Details",
    "parse",
    "probe",
    "read_header",
]

_MOST_KNOWN = 64  # beginnings of images that a HeaderReader keeps, 4 KiB each

# the two usual formats are imported up front; the others' modules when an image needs them
_parsers: dict[str, Callable[[Source], Header]] = {"qcow2": qcow2.parse, "raw": raw.parse}


def read_header(image: int | PathLike, *, format: str | None = None, name: str | None = None) -> Header:
    """The header of `image`: a path, or a descriptor open for reading of a regular file or block device.

    With `format` the image is read as that and nothing else; without, its magic numbers decide as in QEMU's probing.
    `name` is the name of what a descriptor leads to, which QEMU consults about one format only: an image is dmg when
    its name ends so. ImageFormatError when it cannot be read, is not in that format, is damaged, or looks like two
    formats at once; for a path the errors of `opened`, too.
    """
    if isinstance(image, int):
        return parse(Source.of(image), format=format, name=name)
    with opened(image) as fd:
        return read_header(fd, format=format, name=name or os.fsdecode(image))


class HeaderReader:
    """Reads the headers of many images. The overlays that one program made on one base begin with the same bytes:
    these are read of each image, and understood once."""

    def __init__(self) -> None:
        self._known: dict[bytes, Header] = {}

    def read(self, fd: int, *, format: str | None = None) -> Header:
        """As `read_header`."""
        if format is not None:
            return read_header(fd, format=format)
        try:
            head = os.pread(fd, HEAD, 0)
        except OSError:
            return read_header(fd)  # which says what is the matter
        known = self._known.get(head)
        if known is not None:
            return known
        source = Source.of(fd, head=head)
        header = parse(source)
        if source.only_head:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[head] = header
        return header


def parse(source: Source, *, format: str | None = None, name: str | None = None) -> Header:
    """As `read_header`, from any source of bytes."""
    if format is None:
        return _parser(probe(source.head, name=name))(source)
    parser = _parser(format)
    try:
        return parser(source)
    except ImageFormatError as error:
        found = probe(source.head, name=name)
        if found == format:
            raise
        raise ImageFormatError(f"not a {format} image: it looks like {found}") from error


def _parser(format: str) -> Callable[[Source], Header]:
    parser = _parsers.get(format)
    if parser is None:
        if format not in FORMATS:
            raise ImageFormatError(f"{format!r} is not an image format", hint=f"one of {', '.join(FORMATS)}")
        parser = importlib.import_module(f"imgtool.image.formats.{format}").parse
        _parsers[format] = parser
    return parser


def probe(head: bytes, *, name: str | None = None) -> str:
    """The format that QEMU's probing finds in an image's first 512 bytes or more (and in its name, for dmg); `raw`
    when nothing matches. ImageFormatError when two formats do."""
    if (
        head.startswith(magics.QCOW2)
        and head[4:8] > b"\0\0\0\1"
        and head[magics.VDI_AT : magics.VDI_AT + 4] != magics.VDI
    ):
        return "qcow2"
    from imgtool.image.probing import candidates

    found = candidates(head, name=name)
    if len(found) > 1:
        raise ImageFormatError(
            f"the image is both {' and '.join(found)}",
            hint="no honest program writes such a file; name the format if you know it",
        )
    return found[0] if found else "raw"
