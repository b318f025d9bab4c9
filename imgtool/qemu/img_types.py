"""Arguments to qemu-img beyond plain paths: image options, references that are not paths, bitmap actions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct

from imgtool.errors import UsageError
from imgtool.image.names import PathLike, option_value
from imgtool.image.reference import protocol_of

Cache = Literal["none", "writeback", "writethrough", "directsync", "unsafe"]
Repair = Literal["leaks", "all"]
OptionValue = str | int | bool


class ImageOpts(Struct, frozen=True):
    """An image as QEMU's option string (`--image-opts`): `driver=qcow2,file.driver=file,file.filename=/x`."""

    text: str

    @classmethod
    def of(cls, options: Mapping[str, OptionValue]) -> ImageOpts:
        """The option string of `options`, whose values may hold any character."""
        return cls(join_options(options))

    @classmethod
    def of_chain(cls, images: Sequence[tuple[str, str]]) -> ImageOpts:
        """A chain spelled out as (path, format), the overlay first: the headers' own backing files are not opened."""
        options: dict[str, OptionValue] = {}
        for depth, (path, format) in enumerate(images):
            prefix = "backing." * depth
            options |= {f"{prefix}driver": format, f"{prefix}file.driver": "file", f"{prefix}file.filename": path}
        return cls.of(options)


Source = PathLike | ImageOpts


class Verbatim(Struct, frozen=True):
    """A backing reference that is no path: `nbd://host/disk`, `json:{…}`."""

    text: str


Backing = PathLike | Verbatim


class SnapshotParam(Struct, frozen=True):
    """An internal snapshot by its ID, its name, or both."""

    id: str | None = None
    name: str | None = None


class Merge(Struct, frozen=True):
    """The bitmap action that merges the bitmap `source` in."""

    source: str


BitmapAction = Literal["add", "remove", "clear", "enable", "disable"] | Merge


def join_options(options: Mapping[str, OptionValue]) -> str:
    """`options` as QEMU's `key=value,…`, commas in values doubled, True and False as on and off."""
    return ",".join(f"{key}={option_value(_word(value))}" for key, value in options.items())


def _word(value: OptionValue) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def parse_options(text: str) -> dict[str, str]:
    """What `-o text` says: the opposite of `join_options`. A key without a value means on; UsageError when a key
    is empty."""
    options: dict[str, str] = {}
    for item in text.replace(",,", "\0").split(","):
        key, equals, value = item.replace("\0", ",").partition("=")
        if not key:
            raise UsageError(f"{text!r} is not a list of options", hint="write -o name=value,name=value")
        options[key] = value if equals else "on"
    return options


def backing_reference(backing: Backing) -> str:
    """`backing` as it is to stand in the image: a path as it was given, but with `./` where it would be taken for a
    protocol or an option."""
    if isinstance(backing, Verbatim):
        return backing.text
    path = os.fsdecode(backing)
    if not path:
        raise UsageError("the name of the backing file is empty")
    return f"./{path}" if path.startswith("-") or protocol_of(path) is not None else path
