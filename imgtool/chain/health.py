"""What a qcow2 tells about its own state and its parent's, gathered while a scan has it open."""

from __future__ import annotations

import os
from typing import NamedTuple

from msgspec import UNSET

from imgtool.chain.anchors import AnchorState, state_of
from imgtool.chain.damage import tell_damage
from imgtool.chain.graph import Image
from imgtool.image.anchor import Anchor, read_anchor
from imgtool.image.header import Header


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
        tell_damage(image, fd, header, status)
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
        now = (status.st_size, status.st_mtime_ns, status.st_ino)
        was = (anchor.size, anchor.mtime_ns, anchor.inode)
        if now == was and anchor.data_file is UNSET:
            return "same"
        key = (parent, was, anchor.metadata, anchor.samples, anchor.sampled, anchor.data_file, one.parent_format)
        if key not in self._states:
            self._states[key] = state_of(anchor, one.reference, parent, parent_format=one.parent_format)
        return self._states[key]
