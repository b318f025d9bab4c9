"""Whether a new image is better written past the page cache (`-t none`).

Where the result has to be on disk at the end, that takes half to two thirds of the time if the disk is fast, as much
if it is slow, and leaves memory to others. Whoever reads the result at once is better off with the page cache.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from imgtool.errors import ImgtoolError
from imgtool.image.header import FORMATS, read_header
from imgtool.image.names import absolute
from imgtool.qemu.img_argv import Backing, Cache, ImageOpts, OptionValue, Source
from imgtool.qemu.inputs import check_input

_ALIGNMENT = 4096
"""The coarsest block of a disk or file system. Direct I/O writes whole blocks: a raw image that ends within one would
come out larger."""


def cache_for(
    target: Source,
    sources: Sequence[Source],
    *,
    output_format: str,
    format: str | None = None,
    backing: Backing | None = None,
    options: Mapping[str, OptionValue] = {},
    compressed: bool = False,
    snapshot: bool = False,
    in_place: bool = False,
) -> Cache:
    """What `-t` should say of `target`, a file that is to be made of the disks in `sources`: `none`; or `writeback`
    where that would be slower (compressed data comes in small pieces), could make the file larger or is impossible.
    """
    if isinstance(target, ImageOpts) or in_place or compressed or "data_file" in options:
        return "writeback"
    if backing is not None:
        return "writeback"  # QEMU opens the backing chain as the target, and it may lie where that is impossible
    path = os.path.realpath(absolute(target))  # what a symlink leads to is replaced
    if os.path.exists(path) and not os.path.isfile(path):
        return "writeback"  # a block device, which is written in place
    fits = output_format == "qcow2"
    if output_format == "raw" and not snapshot:
        fits = all(_whole_blocks(source, format) for source in sources)
    return "none" if fits and _takes_direct_io(os.path.dirname(path)) else "writeback"


def _whole_blocks(source: Source, format: str | None) -> bool:
    """Whether the disk in `source` is known to end with a block."""
    if isinstance(source, ImageOpts):
        return False
    try:
        check_input(absolute(source))  # what is no file or disk is not opened
        fd = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            header = read_header(fd, format=format if format in FORMATS else None)
        finally:
            os.close(fd)
    except (OSError, ValueError, ImgtoolError):
        return False
    return header.virtual_size % _ALIGNMENT == 0


def _takes_direct_io(directory: str) -> bool:
    """Asked with a file that never gets a name. False where such files cannot be made (NFS, say)."""
    try:
        os.close(os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC, 0o600))
    except (OSError, ValueError, AttributeError):  # no attribute but on Linux
        return False
    return True
