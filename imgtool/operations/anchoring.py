"""Keeping anchors true when imgtool changes a parent without changing what a guest reads through its overlays."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from imgtool.image.anchor import Anchor, edited_head, read_anchor, take, write_anchor
from imgtool.image.header import Header, read_header
from imgtool.operations.transaction import Transaction


def follow(change: Transaction, overlay: str, parent_file: str, *, staged: str | None = None) -> None:
    """Anchors `overlay` to the new version of its parent, which is the file `parent_file` for now, as part of
    `change`: in the overlay's own new version `staged`, else in place. An overlay without an anchor gets none.
    """
    with _opened(staged or overlay, os.O_RDWR if staged else os.O_RDONLY) as fd:
        header = read_header(fd)
        anchor = read_anchor(fd, header)
        if anchor is None or header.backing is None:
            return
        new = _anchor_to(parent_file, header.backing)
        if staged is not None:
            write_anchor(fd, new)
        else:
            change.hold(overlay)
            change.patch(overlay, edited_head(fd, anchor=new))


def add_anchor(overlay: str, parent_file: str) -> None:
    """Anchors the qcow2 at `overlay`, which nobody uses yet, to the file `parent_file`. One too old for an anchor is
    left without."""
    with _opened(overlay, os.O_RDWR) as fd:
        header = read_header(fd)
        if header.backing is not None and _can_be_anchored(header):
            write_anchor(fd, _anchor_to(parent_file, header.backing))


def _can_be_anchored(header: Header) -> bool:
    return header.format == "qcow2" and getattr(header.details, "version", 0) >= 3


def _anchor_to(parent_file: str, reference: bytes) -> Anchor:
    with _opened(parent_file, os.O_RDONLY) as fd:
        return take(fd, reference)


@contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
