"""Kubernetes' words: names, quantities; and what could not be said in them."""

from __future__ import annotations

import re
from typing import ClassVar

from imgtool.publish import notes

LeftOut = notes.LeftOut

_UNITS = (("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10))
_LONGEST = 63


class Notes(notes.Notes):
    no_words: ClassVar[str] = "KubeVirt has no such setting"


def quantity(count: int) -> str:
    """`2Gi`: bytes as Kubernetes writes them, exactly."""
    for unit, factor in _UNITS:
        if count and count % factor == 0:
            return f"{count // factor}{unit}"
    return str(count)


def object_name(text: str) -> str:
    """`text` as the name of an object: lower-case letters, digits and dashes, at most 63 of them (RFC 1123)."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:_LONGEST].strip("-")
    return plain or "vm"
