"""Keeping anchors true when imgtool changes a parent without changing what a guest reads through its overlays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from imgtool.chain.anchors import state_of
from imgtool.chain.graph import Image
from imgtool.errors import ImageFormatError, RefusedError
from imgtool.image.anchor import Anchor, edited_head, read_anchor, take, takes_anchor, write_anchor
from imgtool.image.formats import FORMATS
from imgtool.image.header import Header, read_header
from imgtool.image.names import pasted, printable
from imgtool.operations.around import names
from imgtool.operations.meanwhile import gone
from imgtool.operations.plan import Plan, Touched
from imgtool.operations.transaction import Transaction

_TRUE = ("same", "copied")


def follow(
    change: Transaction,
    overlay: str,
    *,
    parent: str,
    becomes: str,
    staged: str | None = None,
    same_content: bool = True,
    accept: bool = False,
) -> None:
    """Anchors `overlay` to the new version of its `parent`, for now the file `becomes`, as part of `change`:
    in the overlay's own new version `staged`, else in place. With `same_content` a guest reads from the new parent
    what it read from the old.

    An overlay without an anchor gets none, and one whose anchor was not true any more keeps it (not with `accept`):
    what was noticed is not to be forgotten.
    """
    with _opened(staged or overlay, os.O_RDWR if staged else os.O_RDONLY) as fd:
        header = read_header(fd)
        anchor = _to_follow(fd, header, parent, accept)
        if anchor is None:
            return
        new = anchor_to(becomes, header, content=anchor.content if same_content else None)
        if staged is not None:
            _write(fd, new)
        else:
            _refuse_sealed(overlay, parent)
            change.hold(overlay)
            change.patch(overlay, _head(fd, new))


def _to_follow(fd: int, header: Header, parent: str, accept: bool) -> Anchor | None:
    """The anchor of the overlay open at `fd`, None where it has none or is to keep the one that it has."""
    anchor = read_anchor(fd, header)
    if anchor is None or header.backing is None:
        return None
    if not accept and state_of(anchor, header.backing, parent, parent_format=header.backing_format) not in _TRUE:
        return None
    return anchor


def followers(image: Image, children: Iterable[Image], *, accept: bool = False, refuse: bool = True) -> list[Image]:
    """Those of `children`, images that stand on `image`, whose anchor is written when a new version of it takes its
    place (`follow`). With `refuse`, RefusedError for one that is sealed: better before the work than after."""
    found = []
    for child in children:
        with _opened(child.path, os.O_RDONLY) as fd:
            anchor = _to_follow(fd, read_header(fd), image.path, accept)
        if anchor is not None:
            if refuse:
                _refuse_sealed(child.path, image.path)
            found.append(child)
    return found


def following(images: Sequence[Image]) -> Plan:
    """What a plan says of `followers`, the images that come along."""
    note = f"of {names(images)} only the header is written, which remembers the image below"
    return Plan(
        commands=(),
        images=tuple(Touched(path=image.path, action="write") for image in images),
        notes=(note,) if images else (),
    )


def take_place(change: Transaction, image: Image, staged: str, children: Iterable[Image]) -> None:
    """`staged`, from which a guest reads the same, becomes `image`, and `children` remember it."""
    change.replace(image.path, staged)
    for child in children:
        follow(change, child.path, parent=image.path, becomes=staged)


def add_anchor(overlay: str, parent_file: str) -> None:
    """Anchors the qcow2 at `overlay`, which nobody uses yet, to the file `parent_file`. One too old for an anchor is
    left without."""
    with _opened(overlay, os.O_RDWR) as fd:
        header = read_header(fd)
        if header.backing is not None and takes_anchor(header):
            write_anchor(fd, anchor_to(parent_file, header))


def add_anchor_if_room(overlay: str, parent_file: str) -> None:
    """As `add_anchor`; where clusters are too small for it the overlay has none."""
    try:
        add_anchor(overlay, parent_file)
    except ImageFormatError:
        drop_anchor(overlay)


def drop_anchor(overlay: str) -> None:
    """Takes the anchor out of the qcow2 at `overlay`, which nobody uses yet, if it has one."""
    with _opened(overlay, os.O_RDWR) as fd:
        if read_anchor(fd, read_header(fd)) is not None:
            write_anchor(fd, None)


def anchor_to(parent_file: str, header: Header, *, content: str | None = None) -> Anchor:
    """The anchor of an overlay that has `header` to the file `parent_file`."""
    assert header.backing is not None
    format = header.backing_format
    with _opened(parent_file, os.O_RDONLY) as fd:
        return take(
            fd,
            header.backing,
            read_header(fd, format=format if format in FORMATS else None),
            directory=os.path.dirname(os.path.abspath(parent_file)),
            content=content,
        )


def _write(fd: int, anchor: Anchor) -> None:
    os.pwrite(fd, _head(fd, anchor), 0)


def _head(fd: int, anchor: Anchor) -> bytes:
    """The header with `anchor`; without any where there is no room for this one: better none than one that lies."""
    try:
        return edited_head(fd, anchor=anchor)
    except ImageFormatError:
        return edited_head(fd, anchor=None)


def _refuse_sealed(overlay: str, parent: str) -> None:
    if not os.stat(overlay).st_mode & 0o222:
        raise RefusedError(
            f"{printable(overlay)} is sealed, and remembers {printable(parent)} as it is now",
            hint=f"`chmod u+w {pasted(overlay)}` if it was not meant to be sealed",
            path=overlay,
        )


@contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    try:
        fd = os.open(path, flags | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise gone(path) from error
    try:
        yield fd
    finally:
        os.close(fd)
