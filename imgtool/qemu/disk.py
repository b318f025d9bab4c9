"""Reading a few bytes of what a guest sees, natively where they lie plainly in a file."""

from __future__ import annotations

import os
import tempfile
from bisect import bisect_right
from collections.abc import Sequence

from imgtool.qemu import img_argv
from imgtool.qemu.extents import PLAIN, Extent, Layer, options_of, read_extents
from imgtool.qemu.img_argv import ImageOpts
from imgtool.qemu.img_base import ImgBase

_BLOCK = 64 << 10
"""Bytes that qemu-img unpacks at once."""


class Disk:
    """The disk of `layers`, topmost first. Nothing is locked: what a guest writes meanwhile may be seen half."""

    def __init__(
        self,
        img: ImgBase,
        layers: Sequence[Layer],
        virtual_size: int,
        *,
        extents: Sequence[Extent] | None = None,
        force_share: bool = False,
    ) -> None:
        self.virtual_size = virtual_size
        self.extents = list(extents) if extents is not None else read_extents(img, layers, force_share=force_share)
        self._img, self._layers, self._force_share = img, layers, force_share
        self._starts = [extent.start for extent in self.extents]
        self._unpacked: dict[int, bytes] = {}

    def read(self, offset: int, length: int) -> bytes:
        """So many bytes at `offset`; fewer only past the end of the disk. Raises as `QemuImg.convert` where they have
        to be unpacked."""
        length = max(0, min(length, self.virtual_size - offset))
        parts = []
        while length > 0:
            piece = self._piece(offset, length)
            parts.append(piece)
            offset, length = offset + len(piece), length - len(piece)
        return b"".join(parts)

    def _piece(self, offset: int, length: int) -> bytes:
        index = bisect_right(self._starts, offset) - 1
        extent = self.extents[index] if index >= 0 else None
        if extent is None or extent.end <= offset:
            return bytes(length)
        length = min(length, extent.end - offset)
        if extent.zero or not extent.data:
            return bytes(length)
        layer = self._layers[extent.depth]
        if extent.offset is None or layer.format not in PLAIN:
            return self._unpack(offset)[:length]
        with open(layer.data_file or layer.path, "rb", buffering=0) as file:
            return os.pread(file.fileno(), length, extent.offset + offset - extent.start).ljust(length, b"\0")

    def _unpack(self, offset: int) -> bytes:
        """The disk from `offset` to the end of its block."""
        block = offset // _BLOCK
        if block not in self._unpacked:
            self._unpacked[block] = self._convert(block * _BLOCK)
        return self._unpacked[block][offset % _BLOCK :]

    def _convert(self, start: int) -> bytes:
        below = options_of(self._layers, "file.")
        if below is None:
            top = self._layers[0]
            below = {"file.driver": top.format, "file.file.filename": top.path}
        size = min(_BLOCK, self.virtual_size - start)
        source = ImageOpts.of({"driver": "raw", "offset": start, "size": size, **below})
        with tempfile.NamedTemporaryFile(prefix="imgtool-") as scratch:
            argv = img_argv.convert(
                self._img.program,
                [source],
                scratch.name,
                output_format="raw",
                cache="unsafe",
                force_share=self._force_share,
            )
            self._img._read(argv, [source], force_share=self._force_share, limits=self._img.limits)
            with open(scratch.name, "rb") as file:
                return file.read()
