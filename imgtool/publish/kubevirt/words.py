"""Kubernetes' words: names, quantities; and what could not be said in them."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from imgtool.image.names import printable

_UNITS = (("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10))
_LONGEST = 63
_NO_WORDS = "KubeVirt has no such setting"


class LeftOut(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """A setting of the machine that the manifests do not have, or have otherwise."""

    setting: str
    """Its place in a profile: `drive[0].throttling`."""
    reason: str


class Notes:
    """Gathers what is left out."""

    def __init__(self) -> None:
        self.found: list[LeftOut] = []

    def add(self, setting: str, reason: str = _NO_WORDS) -> None:
        self.found.append(LeftOut(setting=setting, reason=reason))

    def rest(self, part: msgspec.Struct, place: str, known: Iterable[str] = (), reason: str = _NO_WORDS) -> None:
        """Notes every setting of `part`, which stands at `place` of a profile, that is neither as it is by itself nor
        among the fields `known`, which the caller has taken."""
        fields = msgspec.structs.fields(part)
        taken = set(known)
        for field in fields:
            if field.name in taken or getattr(part, field.name) == _default(field):
                continue
            self.add(f"{place}.{field.encode_name}" if place else field.encode_name, reason)


def _default(field: msgspec.structs.FieldInfo) -> object:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default


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


def shown(path: str) -> str:
    return printable(path)
