"""qemu-img's command lines: pure functions, one a subcommand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from imgtool.errors import UsageError
from imgtool.image.names import PathLike, option_value

Cache = Literal["none", "writeback", "writethrough", "directsync", "unsafe"]
Repair = Literal["leaks", "all"]
OptionValue = str | int | bool


class ImageOpts(NamedTuple):
    """An image as QEMU's option string (`--image-opts`): `driver=qcow2,file.driver=file,file.filename=/x`."""

    text: str

    @classmethod
    def of(cls, options: Mapping[str, OptionValue]) -> ImageOpts:
        """The option string of `options`, whose values may hold any character."""
        return cls(join_options(options))


Source = PathLike | ImageOpts


class Merge(NamedTuple):
    """The bitmap action that merges the bitmap `source` in."""

    source: str


BitmapAction = Literal["add", "remove", "clear", "enable", "disable"] | Merge


def join_options(options: Mapping[str, OptionValue]) -> str:
    """`options` as QEMU's `key=value,…`, commas in values doubled, True and False as on and off."""
    words = {True: "on", False: "off"}
    return ",".join(
        f"{key}={words[value] if isinstance(value, bool) else option_value(str(value))}"
        for key, value in options.items()
    )


def parse_options(text: str) -> dict[str, str]:
    """What `-o text` says: the opposite of `join_options`. A key without a value means on; UsageError when a key
    is empty."""
    options: dict[str, str] = {}
    for item in text.replace(",,", "\0").split(","):
        key, equals, value = item.replace("\0", ",").partition("=")
        if not key:
            raise UsageError(f"{text!r} is no list of options", hint="write -o name=value,name=value")
        options[key] = value if equals else "on"
    return options
