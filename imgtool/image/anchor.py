"""Anchors: what an overlay remembers of its parent, so that a parent changed behind its back is noticed.

An anchor is a header extension of the overlay, of a type that no QEMU knows. QEMU keeps unknown extensions byte for
byte whatever it does to the image (write, commit, rebase, amend, resize, snapshot, check -r), so the anchor goes
where the overlay goes: through cp, mv, rsync and every qemu-img verb but convert, which makes a new image. Only qcow2
has extensions; overlays of other formats carry none.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from imgtool.errors import ImageFormatError
from imgtool.image.formats.qcow2 import EXT_BACKING_FORMAT, EXT_DATA_FILE, EXT_END, Extension, Qcow2Details
from imgtool.image.header import Header, read_header
from imgtool.image.reference import parse_data_file

EXT_ANCHOR = 0x494D4741
"""`IMGA`, the type of the extension."""

_MAX_ANCHOR = 4096
_MAX_METADATA = 32 << 20
_SAMPLES = 16
_SAMPLE_BYTES = 4096
_EXTENSION = struct.Struct(">II")
_BACKING = struct.Struct(">QI")

Verdict = Literal["same", "touched", "changed", "stale"]


class DataFile(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The external data file of a parent: writing it leaves the parent's own file as it was."""

    size: int
    mtime_ns: int
    inode: int


class Anchor(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The parent as it was when the overlay was made or anchored again."""

    reference: bytes
    """The backing file's name as it stood in the overlay; an anchor under another name is stale."""
    size: int
    """Bytes of the parent's file."""
    mtime_ns: int
    """Nanoseconds since 1970."""
    metadata: str
    """Hex SHA-256 of the parent's metadata, see `metadata_digest`."""
    content: str | None = None
    """The digest of what a guest reads from the parent, where it was known."""
    inode: int | None = None
    """Which file it was: one with another number is a copy, or took its place."""
    samples: tuple[int, ...] = ()
    """Offsets in the file where it had data."""
    sampled: str | None = None
    """Hex SHA-256 of the 4 KiB at each of these."""
    data_file: DataFile | msgspec.UnsetType = msgspec.UNSET


def take(
    fd: int, reference: bytes, header: Header | None = None, *, directory: str, content: str | None = None
) -> Anchor:
    """The anchor for an overlay whose backing name is `reference`. Its parent, in `directory`, is open at `fd`."""
    status = os.fstat(fd)
    header = header or read_header(fd)
    samples = _sample_offsets(fd, status.st_size)
    return Anchor(
        reference=reference,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        metadata=metadata_digest(fd, header),
        content=content,
        inode=status.st_ino,
        samples=samples,
        sampled=_sample_digest(fd, samples),
        data_file=_data_file(header, directory),
    )


def _data_file(header: Header, directory: str) -> DataFile | msgspec.UnsetType:
    """That of the image with `header` in `directory`; UNSET where it has none, or none that can be looked at."""
    if header.data_file is None:
        return msgspec.UNSET
    try:
        path = parse_data_file(header.data_file, directory=directory).path
        status = None if path is None else os.stat(path)
    except (ImageFormatError, OSError, ValueError):
        return msgspec.UNSET
    if status is None:
        return msgspec.UNSET
    return DataFile(size=status.st_size, mtime_ns=status.st_mtime_ns, inode=status.st_ino)


def _sample_offsets(fd: int, size: int) -> tuple[int, ...]:
    """Up to `_SAMPLES` places spread over the file, moved to where there is data; never its header, which changes."""
    found: dict[int, None] = {}
    for number in range(1, _SAMPLES + 1):
        offset = number * size // (_SAMPLES + 1)
        try:
            offset = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError:
            break  # nothing but a hole follows, or a device that knows no holes
        if offset >= _SAMPLE_BYTES:
            found[offset // _SAMPLE_BYTES * _SAMPLE_BYTES] = None
    return tuple(found)


def _sample_digest(fd: int, offsets: Iterable[int]) -> str:
    import hashlib

    digest = hashlib.sha256()
    for offset in offsets:
        if 0 <= offset < 1 << 62:  # an anchor comes from an image, and images lie
            digest.update(os.pread(fd, _SAMPLE_BYTES, offset))
    return digest.hexdigest()


def metadata_digest(fd: int, header: Header) -> str:
    """Hex SHA-256 of what says where a parent's data lies: of a qcow2 its header and L1 table, of a qed its header,
    of other formats the first 4 KiB; the virtual size always. That it changed proves that the parent did; that it
    did not proves nothing."""
    import hashlib

    digest = hashlib.sha256(f"{header.format} {header.virtual_size}\n".encode())
    details = header.details
    if isinstance(details, Qcow2Details):
        digest.update(_stable_header(os.pread(fd, min(details.cluster_size, 65536), 0), details))
        digest.update(os.pread(fd, min(details.l1_entries * 8, _MAX_METADATA), details.l1_offset))
    elif header.format == "qed":
        head = os.pread(fd, 56, 0)
        digest.update(head[:16] + head[40:])  # without feature bits, and where the backing file's name stands
    elif header.format != "raw":
        digest.update(os.pread(fd, 4096, 0))
    return digest.hexdigest()


def _stable_header(head: bytes, details: Qcow2Details) -> bytes:
    """A qcow2's header without what changes while the disk does not: feature bits such as `dirty`."""
    stable = head[:8] + head[20:72]  # without where the backing file's name stands
    return stable if details.version < 3 else stable + head[96 : details.header_length]


def read_anchor(fd: int, header: Header) -> Anchor | None:
    """The anchor in the image open at `fd`, or None: no qcow2, no anchor, or one that makes no sense."""
    found = _extension(header)
    if found is None or found.length > _MAX_ANCHOR:
        return None
    try:
        return msgspec.json.decode(os.pread(fd, found.length, found.offset).rstrip(b"\0 "), type=Anchor)
    except (msgspec.MsgspecError, OSError):
        return None


def takes_anchor(header: Header) -> bool:
    """Whether an image can have an anchor: a qcow2 of version 3, or one that brought one along to version 2."""
    details = header.details
    return isinstance(details, Qcow2Details) and (details.version >= 3 or _extension(header) is not None)


def _extension(header: Header) -> Extension | None:
    details = header.details
    if not isinstance(details, Qcow2Details):
        return None
    return next((one for one in details.extensions if one.type == EXT_ANCHOR), None)


def compare(
    anchor: Anchor, reference: bytes, fd: int, header: Header, *, directory: str, closely: bool = False
) -> Verdict:
    """What became of the parent in `directory`, now open at `fd`, since `anchor` was taken by an overlay that names
    it `reference`.

    same: its file was not written, or is a copy that looks the same and has its times. touched: it was written, or
    copied without them, and only comparing contents can say more. changed: its layout or a sample of its bytes is
    another, which is looked at where the file is not plainly the same, or always (`closely`). stale: the overlay was
    put on another parent without anchoring it there.
    """
    if anchor.reference != reference:
        return "stale"
    status = os.fstat(fd)
    unwritten = status.st_size == anchor.size and status.st_mtime_ns == anchor.mtime_ns
    original = anchor.inode in (None, status.st_ino)
    if anchor.data_file is not msgspec.UNSET:
        data = _data_file(header, directory)
        if data is msgspec.UNSET or data.size != anchor.data_file.size:
            return "changed"
        unwritten = unwritten and data.mtime_ns == anchor.data_file.mtime_ns
        original = original and data.inode == anchor.data_file.inode
    if unwritten and not closely and original:
        return "same"
    if metadata_digest(fd, header) != anchor.metadata:
        return "changed"
    if anchor.sampled is not None and _sample_digest(fd, anchor.samples[:_SAMPLES]) != anchor.sampled:
        return "changed"
    return "same" if unwritten else "touched"


def write_anchor(fd: int, anchor: Anchor | None) -> None:
    """Puts `anchor` into the qcow2 open for reading and writing at `fd`, instead of any it has; None takes it out.

    One write of the header. The file is one that nobody uses yet, or a copy that will take an image's place; an image
    that is there already gets its new head by `edited_head` and a journal.
    """
    os.pwrite(fd, edited_head(fd, anchor=anchor), 0)


KEEP: Final = "keep"


def edited_head(
    fd: int,
    *,
    anchor: Anchor | Literal["keep"] | None = KEEP,
    backing: tuple[bytes, str] | Literal["keep"] = KEEP,
    data_file: bytes | Literal["keep"] = KEEP,
) -> bytes:
    """The first bytes that the qcow2 open at `fd` needs to carry `anchor` (None: none), to name `backing`, the
    reference and the format of its backing file, and its external data file. All else stays, and so does the rest of
    the file.

    ImageFormatError when the image is no qcow2, its first cluster has no room, or it takes no anchor.
    """
    header = read_header(fd, format="qcow2")
    details = header.details
    assert isinstance(details, Qcow2Details)
    if isinstance(anchor, Anchor) and not takes_anchor(header):
        raise ImageFormatError(
            "a qcow2 of version 2 has no room for an anchor", hint="`imgtool amend -o compat=1.1` makes it version 3"
        )
    head = os.pread(fd, details.cluster_size, 0)
    extensions = [(one.type, head[one.offset : one.offset + one.length]) for one in details.extensions]
    name = header.backing or b""
    if anchor != KEEP:
        extensions = [(kind, data) for kind, data in extensions if kind != EXT_ANCHOR]
        if anchor is not None:
            extensions.append((EXT_ANCHOR, msgspec.json.encode(anchor)))
    if backing != KEEP:
        name, format = backing
        extensions = [(kind, data) for kind, data in extensions if kind != EXT_BACKING_FORMAT]
        extensions.insert(0, (EXT_BACKING_FORMAT, format.encode()))
    if data_file != KEEP:
        extensions = [(kind, data_file if kind == EXT_DATA_FILE else data) for kind, data in extensions]
    return _compose(head, details, extensions, name, len(header.backing or b""))


def _compose(
    head: bytes, details: Qcow2Details, extensions: list[tuple[int, bytes]], name: bytes, old_name_bytes: int
) -> bytes:
    """The first cluster's used part: header, extensions, the end mark, the backing file's name."""
    words = [
        _EXTENSION.pack(kind, len(data)) + data + bytes(-len(data) % 8)
        for kind, data in [*extensions, (EXT_END, b"")]
    ]
    body = head[: details.header_length] + b"".join(words)
    whole = bytearray(body + name)
    if len(whole) > details.cluster_size:
        raise ImageFormatError("its first cluster has no room for that")
    whole[8:20] = _BACKING.pack(len(body) if name else 0, len(name))
    # What was in use before is cleared, so that no part of an old name is left behind.
    used = max((one.offset + one.length for one in details.extensions), default=0)
    used = max(used, details.backing_offset + old_name_bytes)
    return bytes(whole) + bytes(max(0, used - len(whole)))
