"""From the words of an option string to the fields of a configuration struct, by the types of the fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from imgtool.errors import UsageError
from imgtool.image.names import printable
from imgtool.machine.options.text import boolean, number, size, suggestion

T = TypeVar("T", bound=msgspec.Struct)


class Kind(msgspec.Struct, frozen=True):
    """What a field holds, None aside."""

    type: inspect.Type
    unit: str | None
    """`bytes` or `path`, where it is one (or a list of them)."""

    @property
    def is_size(self) -> bool:
        return self.unit == "bytes"


class _Kinds(Mapping[str, Kind]):
    """Each looked into when it is asked for: it may be a struct, and hold more of them."""

    def __init__(self, types: dict[str, Any]) -> None:
        self._types = types
        self._known: dict[str, Kind] = {}

    def __getitem__(self, name: str) -> Kind:
        if name not in self._known:
            self._known[name] = _kind(inspect.type_info(self._types[name]))
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._types)

    def __len__(self) -> int:
        return len(self._types)


@cache
def kinds(struct: type[msgspec.Struct]) -> Mapping[str, Kind]:
    """The kinds of the fields of `struct`, by the names they have in options and profiles."""
    return _Kinds({field.encode_name: field.type for field in msgspec.structs.fields(struct)})


def _kind(given: inspect.Type) -> Kind:
    unit: str | None = None
    while True:
        if isinstance(given, inspect.UnionType):
            rest = [item for item in given.types if not isinstance(item, inspect.NoneType)]
            if len(rest) != 1:
                return Kind(given, unit)
            given = rest[0]
        elif isinstance(given, inspect.Metadata):
            unit = unit or (given.extra or {}).get("unit")
            given = given.type
        elif isinstance(given, inspect.VarTupleType):
            return Kind(given, _kind(given.item_type).unit)
        else:
            return Kind(given, unit)


def scalars(struct: type[msgspec.Struct]) -> list[str]:
    """The names of the fields of `struct` that one word can set."""
    simple = (inspect.BoolType, inspect.IntType, inspect.StrType, inspect.LiteralType)
    return [name for name, kind in kinds(struct).items() if isinstance(kind.type, simple)]


def build(option: str, struct: type[T], words: Mapping[str, str], *, unit: str = "", **ready: Any) -> T:
    """The struct whose fields `words` name, each read by its type; `ready` are fields (by their Python names) that
    were read already. UsageError for a word that its field cannot hold."""
    known = kinds(struct)
    names = {field.encode_name: field.name for field in msgspec.structs.fields(struct)}
    given = {names[key]: read(option, key, value, known[key], unit=unit) for key, value in words.items()}
    values = {**given, **ready}
    missing = [
        field.encode_name for field in msgspec.structs.fields(struct) if field.required and field.name not in values
    ]
    if missing:
        raise UsageError(f"{option} needs {' and '.join(missing)}=")
    return struct(**values)


def read(option: str, key: str, value: str, kind: Kind, *, unit: str = "") -> Any:
    """`value` as the field's type has it."""
    if isinstance(kind.type, inspect.BoolType):
        return boolean(option, key, value)
    if isinstance(kind.type, inspect.LiteralType):
        choices = [str(item) for item in kind.type.values]
        if value not in choices:
            what = option if option == f"--{key}" else f"{option}: {key}"
            raise UsageError(f"{what} cannot be {printable(value)!r}", hint=suggestion(value, choices))
        return value
    if isinstance(kind.type, inspect.IntType):
        found = size(option, key, value, unit=unit) if kind.is_size else number(option, key, value)
        low, high = kind.type.ge, kind.type.le
        if low is not None and found < low:
            raise UsageError(f"{option}: {key} is at least {low}, not {found}")
        if high is not None and found > high:
            raise UsageError(f"{option}: {key} is at most {high}, not {found}")
        return found
    return value
