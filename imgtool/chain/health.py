"""What a qcow2 says of its own state, gathered while a scan has it open: marks of damage, a missing end, anchors."""

from __future__ import annotations

import os
from typing import NamedTuple

from imgtool.chain.anchors import AnchorState, state_of
from imgtool.chain.findings import finding
from imgtool.chain.graph import Image
from imgtool.image.anchor import Anchor, read_anchor
from imgtool.image.header import Header, Qcow2Details
from imgtool.image.names import printable

_OFFSET = 0x00FFFFFFFFFFFE00
_COMPRESSED = 1 << 62
_LOOKED_AT = 512
"""Bytes of reference counts past the end of the file that are looked at: 256 clusters of 64 KiB."""

_MOST_TABLES = 16 << 20
"""Bytes of L2 tables that are read of one image; its newest tables first, which lead to its newest clusters."""


class Anchored(NamedTuple):
    image: Image
    anchor: Anchor
    reference: bytes
    parent_format: str | None


class Health:
    """`notice` is to be handed to a scan; afterwards the images carry findings, and `anchored` is filled."""

    def __init__(self) -> None:
        self.anchored: list[Anchored] = []
        self._states: dict[tuple[object, ...], AnchorState] = {}
        self._stats: dict[str, os.stat_result | None] = {}

    def notice(self, image: Image, fd: int, header: Header, status: os.stat_result) -> None:
        details = header.details
        if not isinstance(details, Qcow2Details):
            return
        if details.incompatible:
            _tell_marks(image, details)
        if _may_be_truncated(fd, details, status.st_size) and _is_truncated(fd, details, status.st_size):
            image.add(finding("truncated", f"it ends after {status.st_size} bytes, and uses clusters beyond"))
        if header.backing is not None:
            anchor = read_anchor(fd, header)
            if anchor is not None:
                self.anchored.append(Anchored(image, anchor, header.backing, header.backing_format))

    def state(self, one: Anchored) -> AnchorState:
        """As `imgtool.chain.anchors.standing`. Overlays of one base mostly remember the same of it: it is looked at
        once."""
        parent = one.image.parent
        if parent is None or not parent.startswith("/") or one.image.has("not-trusted"):
            return "none"
        anchor = one.anchor
        if anchor.reference != one.reference:
            return "stale"
        if parent not in self._stats:
            try:
                self._stats[parent] = os.stat(parent)
            except OSError:
                self._stats[parent] = None
        status = self._stats[parent]
        if status is None:
            return "none"
        if status.st_size == anchor.size and status.st_mtime_ns == anchor.mtime_ns:
            return "same"
        key = (parent, anchor.size, anchor.metadata, anchor.inode, anchor.samples, anchor.sampled, one.parent_format)
        if key not in self._states:
            self._states[key] = state_of(anchor, one.reference, parent, parent_format=one.parent_format)
        return self._states[key]


def _tell_marks(image: Image, details: Qcow2Details) -> None:
    if details.corrupt:
        image.add(finding("corrupt", "it is marked as damaged"))
    if details.dirty:
        image.add(finding("dirty", "it was not closed: its reference counts may be wrong"))
    if details.unknown_incompatible:
        names = [name for name in details.features if name not in _KNOWN]
        image.add(finding("unknown-feature", f"it needs {', '.join(map(printable, names))}, unknown to QEMU"))


_KNOWN = frozenset(
    (
        *("dirty", "corrupt", "data-file", "compression-type", "extended-l2"),
        *("lazy-refcounts", "bitmaps", "data-file-raw"),
    )
)


def _may_be_truncated(fd: int, details: Qcow2Details, size: int) -> bool:
    """Whether clusters behind the end of the file are counted as used. They may be leaked ones."""
    cluster = details.cluster_size
    if details.l1_offset + 8 * details.l1_entries > size and details.l1_entries:
        return True
    bits = details.refcount_bits
    per_block = cluster * 8 // bits
    block, entry = divmod(-(-size // cluster), per_block)
    if block >= details.refcount_table_clusters * cluster // 8:
        return False
    where = os.pread(fd, 8, details.refcount_table_offset + 8 * block)
    offset = int.from_bytes(where) & _OFFSET
    if len(where) < 8 or offset >= size:
        return True
    if not offset:
        return False
    at = entry * bits // 8
    return bool(os.pread(fd, min(_LOOKED_AT, cluster - at), offset + at).strip(b"\0"))


def _is_truncated(fd: int, details: Qcow2Details, size: int) -> bool:
    """Whether a table of the disk, or a cluster that one names, begins behind the end of the file."""
    if details.l1_offset + 8 * details.l1_entries > size:
        return True
    cluster = details.cluster_size
    table = os.pread(fd, 8 * details.l1_entries, details.l1_offset)
    offsets = {int.from_bytes(table[at : at + 8]) & _OFFSET for at in range(0, len(table), 8)} - {0}
    if offsets and max(offsets) + cluster > size:
        return True
    for offset in sorted(offsets, reverse=True)[: _MOST_TABLES // cluster]:
        if _leads_past(os.pread(fd, cluster, offset), details, size):
            return True
    return False


def _leads_past(table: bytes, details: Qcow2Details, size: int) -> bool:
    step = 16 if details.extended_l2 else 8
    # what a compressed cluster's entry says of its length stands above its offset
    compressed = (1 << 62 - ((details.cluster_size - 1).bit_length() - 8)) - 1
    for at in range(0, len(table), step):
        entry = int.from_bytes(table[at : at + 8])
        if not entry:
            continue
        offset = entry & compressed if entry & _COMPRESSED else entry & _OFFSET
        if offset >= size and not (details.external_data and not entry & _COMPRESSED):
            return True
    return False
