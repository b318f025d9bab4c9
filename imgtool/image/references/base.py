"""What a name leads to, and the small parsers all names share."""

from __future__ import annotations

import os
from typing import Literal, NoReturn

import msgspec

from imgtool.errors import ImageFormatError
from imgtool.image.names import printable

Kind = Literal["file", "json", "protocol"]

MAX_PORT = 65535


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """Where a name leads. A tree of block nodes (`json:`, `blkverify:`) has its leaves in `children`."""

    text: str
    """The name as written, non-UTF-8 bytes as lone surrogates. The leaf of a tree has a name made up for it."""
    kind: Kind
    """file: a path. json: a tree of block nodes. protocol: a server or device, by a URL or a driver's prefix."""
    protocol: str | None
    """QEMU's driver: `file`, `nbd`, `https`, `vvfat`, `host_device`, …; for a tree of one leaf that leaf's, for one
    of several the driver that joins them."""
    path: str | None = None
    """The absolute local path, when what is meant is a file, device or directory of this host; for a tree of several
    leaves that of the file at the end of its `file` branches. (As written, until `below` makes it absolute.)"""
    format: str | None = None
    """The format that a `json:` tree names; None where the name says nothing about it."""
    host: str | None = None
    """The server's name or address."""
    port: int | None = None
    """The server's TCP port; None is the protocol's own."""
    socket: str | None = None
    """The absolute path of a unix socket."""
    export: str | None = None
    """What is asked of the server: an NBD export, the path below a URL's host, target and LUN, pool and image …"""
    user: str | None = None
    """The name to log in by."""
    role: str = "file"
    """For a leaf of a tree: what it is to its parent (`file`, `backing`, `data-file`, `raw`, `children.0`, …)."""
    relative: bool = False
    """Whether `path` or `socket` was relative where QEMU joins no directory to it: QEMU looks for it in the current
    directory of whoever opens the image, imgtool (which starts QEMU there) in the image's own."""
    altered: bool = False
    """For a tree of one leaf: whether its options may let something else be read than the file's own disk, such as a
    part of it, or its disk on another backing file."""
    children: tuple[Reference, ...] = ()
    """The leaves below a tree of more than one."""

    @property
    def leaves(self) -> tuple[Reference, ...]:
        """Every file, device or server that opening this would touch."""
        return self.children or (self,)


def refuse(text: str, why: str) -> NoReturn:
    """ImageFormatError: QEMU could not make sense of this name either."""
    raise ImageFormatError(f"{_shortened(text)} is not a usable reference: {why}")


def _shortened(text: str) -> str:
    shown = printable(text)
    return shown if len(shown) <= 200 else f"{shown[:200]}…"


def protocol_of(text: str) -> str | None:
    """The part before a colon that comes before any slash; None for a plain file name."""
    head, colon, _ = text.partition(":")
    return head if colon and "/" not in head else None


def below(reference: Reference, directory: str) -> Reference:
    """`reference` with its relative paths made absolute, as names in `directory`. Their `..` stay: before them there
    may be symlinks."""
    children = tuple(below(child, directory) for child in reference.children)
    path, socket = (
        name if name is None or name.startswith("/") else os.path.join(directory, name)
        for name in (reference.path, reference.socket)
    )
    relative = (path, socket) != (reference.path, reference.socket) or any(child.relative for child in children)
    if not relative:
        return reference
    return msgspec.structs.replace(reference, path=path, socket=socket, children=children, relative=True)
