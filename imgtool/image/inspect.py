"""Inspecting an untrusted image before any program gets it: natively, within bounds, opening nothing else."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Any

import msgspec

from imgtool.errors import ImageFormatError
from imgtool.image.findings import Finding, Verdict, finding, verdict_of
from imgtool.image.formats import FORMATS, raw
from imgtool.image.formats.base import Header
from imgtool.image.formats.qcow2 import Qcow2Details
from imgtool.image.header import parse
from imgtool.image.links import NETWORK_PROTOCOLS, PROTOCOLS, ROLE_NAMES, Link, is_below, links
from imgtool.image.names import PathLike, absolute, printable
from imgtool.image.probing import candidates
from imgtool.image.reference import Reference
from imgtool.image.source import READ_LIMIT, CutShortError, Source, opened
from imgtool.image.suspicions import in_header, in_raw

STREAM_LIMIT = READ_LIMIT
"""Bytes of a stream that are buffered and looked at."""


class NamedImage(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """Another file, device or server that the image names."""

    role: str
    """`backing`, `data-file` or `extent`."""
    name: str
    """As the image has it."""
    format: str | None
    """The format that the image says it has; None when it says none."""
    reference: Reference | None
    """What the name means; None when it makes no sense."""


class Inspection(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What an image is, and what is suspicious about it."""

    path: str | None
    """The file, as it was called; None for a stream."""
    format: str | None
    """None when it cannot be told, since the header is damaged."""
    virtual_size: int | None
    """Bytes; None too for what only the end of a cut stream tells."""
    file_size: int | None
    """Bytes of the file or device; None for a stream that went on."""
    encryption: str | None
    """`aes` or `luks`; None when the image is not encrypted."""
    snapshots: int
    """How many internal snapshots it has."""
    features: tuple[str, ...]
    """The names of a qcow2's feature bits that are set."""
    contents: tuple[str, ...]
    """For raw: `gpt` or `mbr`, and the file systems whose signature is there."""
    properties: dict[str, Any]
    """What the format has to say beyond this, as numbers and strings."""
    references: tuple[NamedImage, ...]
    """Other files, devices and servers that it names."""
    findings: tuple[Finding, ...]
    """What is suspicious about it, or worth knowing."""
    verdict: Verdict
    """The gravest that was found: `safe` to open, or why not."""

    @property
    def safe(self) -> bool:
        return self.verdict == "safe"


def inspect(image: int | PathLike, *, path: str | None = None, format: str | None = None) -> Inspection:
    """Inspects `image`: a path, or a descriptor open for reading of a regular file, a block device, or a pipe, of
    which the first 4 MiB are taken. Relative names in it lead from the directory of `path`, an absolute path that
    says what a descriptor leads to, or from the current directory without it. With `format` the image is taken for
    that and nothing else. Raises nothing for what it holds: the result says what is wrong. A path that cannot be
    opened is an ImageNotFoundError or ImageUnreadableError."""
    if not isinstance(image, int):
        with opened(image) as fd:
            return inspect(fd, path=path or absolute(image), format=format)
    try:
        source = _source(image)
    except ImageFormatError as error:
        return _conclude(path, None, None, [], [finding("not-an-image", error.message)])
    return inspect_source(source, path=path, format=format)


def inspect_source(source: Source, *, path: str | None = None, format: str | None = None) -> Inspection:
    """As `inspect`, from any source of bytes."""
    findings: list[Finding] = []
    found = candidates(source.head, name=path)
    if format is None and len(found) > 1:
        findings.append(finding("two-formats", f"the image is both {' and '.join(found)}"))
        format = found[0]
    try:
        header = parse(source, format=format, name=path)
    except CutShortError as error:
        return _conclude(
            path, source, format or (found[0] if found else None), [], [finding("cut-short", error.message)]
        )
    except ImageFormatError as error:
        findings.append(finding("malformed", error.message))
        kind = format if format in FORMATS else found[0] if found else None
        return _conclude(path, source, kind, [], findings)
    directory = os.path.dirname(path) if path else os.getcwd()
    named = links(header, directory=directory)
    for link in named:
        findings += in_link(link, directory=directory)
    try:
        findings += in_raw(raw.contents(source), source) if header.format == "raw" else in_header(header, source)
        findings += _in_names(header, source)
    except CutShortError as error:
        findings.append(finding("cut-short", error.message))
    except ImageFormatError as error:
        findings.append(finding("malformed", error.message))
    return _conclude(path, source, header, named, findings)


def _source(fd: int) -> Source:
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISFIFO(mode) and not stat.S_ISSOCK(mode):
            source = Source.of(fd, limit=2 * READ_LIMIT)
            _ = source.size
            return source
        pieces = bytearray()
        while len(pieces) < STREAM_LIMIT:
            piece = os.read(fd, STREAM_LIMIT - len(pieces))
            if not piece:
                break
            pieces += piece
        whole = len(pieces) < STREAM_LIMIT or not os.read(fd, 1)
    except OSError as error:
        raise ImageFormatError(f"it cannot be read: {error.strerror}") from error
    return Source.of_bytes(bytes(pieces), whole=whole, limit=2 * READ_LIMIT)


def in_link(link: Link, *, directory: str) -> Iterator[Finding]:
    """What is suspicious about one name in the header of an image in `directory`."""
    what = ROLE_NAMES[link.role]
    shown = printable(os.fsdecode(link.name))
    if shown != os.fsdecode(link.name):
        yield finding("control-characters", f"the {what}'s name holds odd characters: {shown}")
    if link.role == "data-file":
        yield finding("data-file", f"its data lies in {shown}")
    elif link.role == "extent":
        yield finding("extent", f"a part of its disk lies in {shown}")
    if link.reference is None:
        yield finding("reference-malformed", f"the {what}: {link.error}")
        return
    if link.reference.kind == "json":
        yield finding("backing-tree", f"the {what} is a tree of block nodes: {shown}")
    if link.role == "backing":
        yield from _in_format(link.format, shown)
    if link.reference.relative:
        yield finding(
            "depends-on-cwd", f"QEMU looks for the {what} {shown} in the current directory, not in the image's"
        )
    if link.role == "data-file" and link.reference.protocol != "file":
        yield finding("data-file-protocol", f"older QEMU reads the data file by a protocol: {shown}")
    if link.role != "extent":
        for leaf in link.leaves:
            yield from _in_leaf(leaf, link, what, directory)


def _in_format(format: str | None, shown: str) -> Iterator[Finding]:
    """The backing format that a header names."""
    if format is None:
        yield finding("backing-format-missing", f"the format of the backing file {shown} is not named")
    elif format not in FORMATS:
        yield finding("backing-format-driver", f"the backing format is {printable(format)}, which is no format")


def _in_leaf(leaf: Reference, link: Link, what: str, directory: str) -> Iterator[Finding]:
    shown = printable(leaf.text)
    if leaf.socket is not None:
        yield finding("backing-device", f"the {what} is behind the socket {printable(leaf.socket)} of the host")
    elif leaf.protocol in NETWORK_PROTOCOLS:
        yield finding("backing-network", f"the {what} is on {printable(leaf.host or 'a server')}: {shown}")
    elif leaf.protocol == "vvfat":
        yield finding("backing-directory", f"the {what} is the directory {printable(leaf.path or '')} of the host")
    elif leaf.protocol == "file" and leaf.path is not None:
        if leaf.path.startswith("/dev/"):
            yield finding("backing-device", f"the {what} is the device {printable(leaf.path)} of the host")
        elif not is_below(leaf.path, directory):
            yield finding("backing-outside", f"the {what} is {printable(leaf.path)}")
        elif link.role == "backing":
            yield finding("backing-file", f"the {what} is {printable(leaf.path)}")
    elif leaf.protocol in PROTOCOLS:
        yield finding(
            "backing-device", f"the {what} is the host's {leaf.protocol} {printable(leaf.path or leaf.text)}"
        )
    else:
        protocol = printable(leaf.protocol or "?")
        yield finding("backing-protocol", f"the {what} is read by a protocol called {protocol}: {shown}")


def _in_names(header: Header, source: Source) -> Iterator[Finding]:
    """A backing name that goes on after its NUL."""
    details = header.details
    if isinstance(details, Qcow2Details) and details.backing_offset:
        length = int.from_bytes(source.at(16, 4))
        name = source.at(details.backing_offset, min(length, 1023))
        if b"\0" in name.rstrip(b"\0"):
            yield finding("backing-name-cut", f"the backing file's name goes on after a NUL: {_shown(name)}")


def _shown(name: bytes) -> str:
    return printable(os.fsdecode(name[:200]))


def _conclude(
    path: str | None, source: Source | None, kind: Header | str | None, named: list[Link], findings: list[Finding]
) -> Inspection:
    header = kind if isinstance(kind, Header) else None
    details = None if header is None else header.details
    known = source is not None and source.size_known
    contents: tuple[str, ...] = ()
    if header is not None and header.format == "raw" and source is not None:
        try:
            holds = raw.contents(source)
            contents = (*((holds.partitions,) if holds.partitions else ()), *holds.contents)
        except ImageFormatError:
            contents = ()
    from_the_end = header is not None and header.format in ("raw", "luks") and not known
    return Inspection(
        path=path,
        format=header.format if header is not None else kind if isinstance(kind, str) else None,
        virtual_size=None if header is None or from_the_end else header.virtual_size,
        file_size=source.size if source is not None and known else None,
        encryption=_encryption(header),
        snapshots=0 if header is None else header.snapshots,
        features=tuple(details.features) if isinstance(details, Qcow2Details) else (),
        contents=contents,
        properties=_properties(details),
        references=tuple(
            NamedImage(role=link.role, name=os.fsdecode(link.name), format=link.format, reference=link.reference)
            for link in named
        ),
        findings=tuple(findings),
        verdict=verdict_of(findings),
    )


def _encryption(header: Header | None) -> str | None:
    if header is None:
        return None
    encryption: str | None = getattr(header.details, "encryption", None)
    return "luks" if header.format == "luks" else encryption


def _properties(details: msgspec.Struct | None) -> dict[str, Any]:
    if details is None:
        return {}
    return {
        name.replace("_", "-"): value
        for name in details.__struct_fields__
        if isinstance(value := getattr(details, name), int | str)
    }
