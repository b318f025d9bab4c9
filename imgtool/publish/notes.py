"""What could not be said in another engine's words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import msgspec


class LeftOut(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """A setting of the machine that the other engine does not have, or has otherwise."""

    setting: str
    """Its place in a profile: `drive[0].throttling`."""
    reason: str
    """Why, in words."""


class Notes:
    """Gathers what is left out."""

    no_words: ClassVar[str] = "there is no such setting"

    def __init__(self) -> None:
        self.found: list[LeftOut] = []

    def add(self, setting: str, reason: str | None = None) -> None:
        self.found.append(LeftOut(setting=setting, reason=reason or self.no_words))

    def rest(self, part: msgspec.Struct, place: str, known: Iterable[str] = (), reason: str | None = None) -> None:
        """Notes every setting of `part`, which stands at `place` of a profile, that is neither as it is by itself nor
        among the fields `known`, which the caller has taken."""
        fields = msgspec.structs.fields(part)
        taken = set(known)
        for field in fields:
            if field.name in taken or getattr(part, field.name) == default_of(field):
                continue
            self.add(f"{place}.{field.encode_name}" if place else field.encode_name, reason)


def default_of(field: msgspec.structs.FieldInfo) -> object:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default
