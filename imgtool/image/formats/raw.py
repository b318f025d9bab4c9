"""Raw images: the bytes of the disk and nothing else."""

from __future__ import annotations

from imgtool.image.formats.base import Header, bytes_of
from imgtool.image.source import Source


def parse(source: Source) -> Header:
    """A raw image of any content; QEMU counts a last partial sector as a whole one."""
    return Header(format="raw", virtual_size=bytes_of("raw", source.sectors))
