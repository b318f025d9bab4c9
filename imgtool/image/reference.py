"""What an image's name for another image means: backing files and data files, parsed as QEMU parses them.

A name is a plain file name unless it has a colon before its first slash; then the part before is a protocol
(`nbd:…`, `https://…`, `file:…`) or `json:` with the options of a whole tree of block nodes.
Source: QEMU's block.c (path_has_protocol, bdrv_find_protocol, parse_json_protocol) and each driver's name parser.
"""

from __future__ import annotations

import os

from imgtool.image.references.base import Kind, Reference, below, protocol_of, refuse

__all__ = ["Kind", "Reference", "parse", "parse_data_file", "protocol_of"]


def parse(name: bytes, *, directory: str) -> Reference:
    """What `name` means in an image that lies in `directory` (absolute, as the image's path was given).

    A relative path is one of that directory. Within a protocol or a `json:` tree QEMU knows no directory and takes it
    for one of the current directory: such a reference is `relative`, and whoever starts QEMU has to see to it that it
    looks in the image's directory. ImageFormatError when QEMU could not make sense of the name either. A protocol
    unknown here is kept by its name: whether to follow it is for a policy to say.
    """
    text = _text(name)
    if protocol_of(text) is None:
        return Reference(text=text, kind="file", protocol="file", path=os.path.join(directory, text))
    from imgtool.image.references.tree import parse_any

    return below(parse_any(text), directory)


def parse_data_file(name: bytes, *, directory: str) -> Reference:
    """What `name` means as the external data file of a qcow2 in `directory`.

    QEMU joins the image's directory to backing files only: a relative data file is `relative`, as in `parse`. Since
    CVE-2024-4467 was mended the name is always a file's; before (QEMU 5.2) it could be a protocol's or a `json:`
    tree, and is read as such here, as the worse of the two.
    """
    from imgtool.image.references.tree import parse_any

    return below(parse_any(_text(name)), directory)


def _text(name: bytes) -> str:
    text = os.fsdecode(name)
    if not text or "\0" in text:
        refuse(text, "it is empty or holds a NUL")
    return text
