"""What an image's name for another image means: backing files and data files, parsed as QEMU parses them.

A name is a plain file name unless it has a colon before its first slash; then the part before is a protocol
(`nbd:…`, `https://…`, `file:…`) or `json:` with the options of a whole tree of block nodes.
Source: QEMU's block.c (path_has_protocol, bdrv_find_protocol, parse_json_protocol) and each driver's name parser.
"""

from __future__ import annotations

import os
from typing import Literal

import msgspec

from imgtool.errors import ImageFormatError

Kind = Literal["file", "json", "protocol"]


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """Where a name leads. A tree of block nodes (`json:`, `blkverify:`) has its leaves in `children`."""

    text: str
    """The name as written, non-UTF-8 bytes as lone surrogates. The leaf of a tree has a name made up for it."""
    kind: Kind
    protocol: str | None
    """`file`, `nbd`, `https`, `vvfat`, `host_device`, …; for a tree of one leaf that leaf's,
    for one of several the driver that joins them."""
    path: str | None = None
    """The absolute local path, when what is meant is one file, device or directory of this host."""
    format: str | None = None
    """The format that a `json:` tree names; None where the name says nothing about it."""
    host: str | None = None
    port: int | None = None
    socket: str | None = None
    """The absolute path of a unix socket."""
    export: str | None = None
    """What is asked of the server: an NBD export, a path below a URL's host, an iSCSI target and LUN, pool/image …"""
    user: str | None = None
    role: str = "file"
    """For a child: what it is to its parent (`file`, `backing`, `data-file`, `raw`, `children.0`, …)."""
    children: tuple[Reference, ...] = ()
    """The leaves below a tree of more than one leaf."""

    @property
    def leaves(self) -> tuple[Reference, ...]:
        """Every file, device or server that opening this would touch."""
        return self.children or (self,)


def parse(name: bytes, *, directory: str) -> Reference:
    """What `name` means in an image that lies in `directory` (absolute, as the image's path was given).

    ImageFormatError when QEMU could not make sense of it either.
    """
    text = os.fsdecode(name)
    if not text or "\0" in text:
        raise ImageFormatError("the name of the image referred to is empty or holds a NUL")
    protocol = protocol_of(text)
    if protocol is None:
        return Reference(text=text, kind="file", protocol="file", path=os.path.join(directory, text))
    if protocol == "file":
        # after `file:` a relative name is one of the current directory: QEMU joins no directory to a protocol's name
        return Reference(text=text, kind="file", protocol="file", path=os.path.abspath(text[5:]))
    return Reference(text=text, kind="json" if protocol == "json" else "protocol", protocol=protocol)


def protocol_of(text: str) -> str | None:
    """The part before a colon that comes before any slash; None for a plain file name."""
    head, colon, _ = text.partition(":")
    return head if colon and "/" not in head else None
