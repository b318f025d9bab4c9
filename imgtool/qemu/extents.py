"""Where the bytes of a disk are: `qemu-img map` over a chain whose images are named one by one."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from imgtool.errors import CommandError, DecodeError
from imgtool.qemu import img_argv
from imgtool.qemu.img_argv import ImageOpts, OptionValue, Source
from imgtool.qemu.img_base import ImgBase
from imgtool.qemu.inputs import check_input, in_use

_MAX_WORD = 100_000
"""Bytes of one word of a command line; Linux takes 128 KiB."""

PLAIN = ("raw", "qcow2")
"""Formats whose `offset` in a map is one in the very file that is named."""


class Layer(NamedTuple):
    """One image of a chain, as it is to be opened."""

    path: str
    format: str
    data_file: str | None = None


class Extent(msgspec.Struct, frozen=True, gc=False):
    """One range of the disk, as `qemu-img map --output=json` describes it: QAPI's MapEntry, decoded fast."""

    start: int
    length: int
    depth: int
    """Which layer supplies it, 0 the topmost."""
    zero: bool
    data: bool
    present: bool | None = None
    """Whether a layer holds it, as data or as zeros; None from QEMU before 6.1."""
    offset: int | None = None
    """Where it is in that layer's file; None where it is compressed, encrypted or nowhere."""

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def held(self) -> bool:
        """Whether some layer holds this range; what no layer holds reads as zeros. Zeros that a layer holds on
        purpose are told from those nobody wrote by QEMU 6.1 and later only."""
        return self.data if self.present is None else self.present


_DECODER: msgspec.json.Decoder[list[Extent]] = msgspec.json.Decoder(list[Extent])


def options_of(layers: Sequence[Layer], prefix: str = "") -> dict[str, OptionValue] | None:
    """QEMU's options that open `layers`, topmost first, whatever their headers say of backing and data files. None
    where that cannot be: a block device, or a chain too deep for a command line."""
    options: dict[str, OptionValue] = {}
    for depth, layer in enumerate(layers):
        if not stat.S_ISREG(os.stat(layer.path).st_mode):
            return None
        here = prefix + "backing." * depth
        options |= {f"{here}driver": layer.format, f"{here}file.driver": "file", f"{here}file.filename": layer.path}
        if layer.data_file is not None:
            options |= {f"{here}data-file.driver": "file", f"{here}data-file.filename": layer.data_file}
    return options if sum(len(key) + len(str(value)) + 4 for key, value in options.items()) < _MAX_WORD else None


def open_as(layers: Sequence[Layer]) -> tuple[Source, str | None]:
    """`layers` for qemu-img: the source, and the format to name beside it."""
    options = options_of(layers)
    if options is None:
        return layers[0].path, layers[0].format
    return ImageOpts.of(options), None


def read_extents(img: ImgBase, layers: Sequence[Layer], *, force_share: bool = False) -> list[Extent]:
    """The disk of `layers` from its beginning to its end, without gaps. Raises as `QemuImg.map`."""
    source, format = open_as(layers)
    argv = img_argv.map(img.program, source, format=format, force_share=force_share)
    for layer in layers:
        check_input(layer.path)
    try:
        done = img._read(argv, [source], formats=[format], force_share=force_share, limits=img.long_limits)
    except CommandError as error:
        for layer in layers if not force_share else ():
            busy = in_use(layer.path, write=False, cause=error)
            if busy is not None:
                raise busy from error
        raise
    try:
        return _DECODER.decode(done.stdout)
    except msgspec.DecodeError as error:
        raise DecodeError(f"qemu-img map: {error}") from error
