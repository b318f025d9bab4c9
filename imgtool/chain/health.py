"""What a qcow2 tells about its own state, gathered while a scan has it open: damage marks, a missing end, anchors."""

from __future__ import annotations

import os
from typing import NamedTuple

from imgtool.chain.anchors import AnchorState, state_of
from imgtool.chain.findings import finding
from imgtool.chain.graph import Image
from imgtool.chain.truncation import is_truncated
from imgtool.image.anchor import Anchor, read_anchor
from imgtool.image.header import Header, Qcow2Details
from imgtool.image.names import printable
from imgtool.image.source import size_of


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
        size = size_of(fd, status)
        if is_truncated(fd, details, size):
            image.add(finding("truncated", f"it ends after {size} bytes, and uses clusters beyond"))
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
