"""Sizes in QEMU's notation: `10G` is 10 × 1024³ bytes, a bare number counts bytes.

Source: `qemu_strtosz` in QEMU's util/cutils.c, which every size option of qemu-img and qemu-system goes through.
"""

from __future__ import annotations

import re

from imgtool.errors import UsageError

_EXPONENTS = {"": 0, "b": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5, "e": 6}
_PATTERN = r"(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?P<unit>[bkmgtpe]?)"

MAX_SIZE = 2**63 - 1
"""The largest image: block layer offsets are signed 64-bit numbers of bytes."""


Size = int | str
"""Bytes, or text in QEMU's notation: `10G`."""


def bytes_of(size: Size) -> int:
    """The number of bytes that `size` says. UsageError for text that is no size, and for fewer bytes than none:
    qemu-img would take the minus for an option, or for a size relative to another."""
    count = parse_size(size) if isinstance(size, str) else size
    if count < 0:
        raise UsageError(f"{count} bytes are no size")
    return count


def parse_size(text: str) -> int:
    """The number of bytes that QEMU reads in `text`: `512`, `64k`, `1.5G`, `0x200`. UsageError otherwise."""
    stripped = text.strip()
    if stripped[:2].lower() == "0x" and re.fullmatch("[0-9a-f]+", stripped[2:], re.IGNORECASE):
        size = int(stripped, 16)
    else:
        match = re.fullmatch(_PATTERN, stripped, re.IGNORECASE)
        if match is None:
            raise UsageError(
                f"{text!r} is not a size",
                hint="write a number of bytes, or one with a suffix of 1024: 64k, 512M, 10G, 1.5T",
            )
        whole, _, decimals = match["number"].partition(".")
        unit = match["unit"].lower()
        size, rest = divmod(int(whole + decimals) * 1024 ** _EXPONENTS[unit], 10 ** len(decimals))
        if rest and unit in ("", "b"):
            raise UsageError(f"{text!r} is not a size: bytes cannot be split")
    if size > MAX_SIZE:
        raise UsageError(f"{text!r} is larger than the largest image (8 EiB - 1)")
    return size


def parse_resize(text: str, current: int) -> int:
    """The new size that `qemu-img resize` reads in `text`: `20G`, `+512M`, `-1G`. UsageError otherwise."""
    if text[:1] not in ("+", "-"):
        return parse_size(text)
    delta = parse_size(text[1:])
    size = current + delta if text[0] == "+" else current - delta
    if size < 0:
        raise UsageError(f"{text!r} would make an image of {current} bytes smaller than nothing")
    return size


def format_size(size: int) -> str:
    """`size` bytes in the shortest notation that QEMU reads back exactly: `10G`, `1536M`, `1000`."""
    if size <= 0:
        return str(size)
    for unit in "EPTGMK":
        factor: int = 1024 ** _EXPONENTS[unit.lower()]
        if size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)
