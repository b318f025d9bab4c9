"""The types of `imgtool.image.qapi` from JSON and into it, with what no struct knows kept where it stood."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from imgtool.errors import DecodeError
from imgtool.image.qapi import FORMAT_SPECIFIC, UNKNOWN, FormatSpecific, QapiStruct

T = TypeVar("T")


def decode(kind: type[T], data: bytes) -> T:
    """The value of `kind` (a struct of `imgtool.image.qapi`, or list[…] of one) that the JSON text `data` holds.

    DecodeError, naming the type and the field, when it is no JSON, a field is missing or of another type.
    """
    name = _name(kind)
    try:
        tree = msgspec.json.decode(data.decode("utf-8", errors="replace"))
    except msgspec.DecodeError as error:
        raise DecodeError(f"{name}: not JSON: {error}") from error
    try:
        return msgspec.convert(_gather(kind, tree), kind)
    except msgspec.ValidationError as error:
        raise DecodeError(f"{name}: {error}") from error


def prepare(*kinds: type) -> None:
    """Finds out what `decode` has to know of these struct types before there is something to decode."""
    for kind in kinds:
        msgspec.json.Decoder(kind)
        _shape(kind)


def to_builtins(value: Any) -> Any:
    """`value` (structs of `imgtool.image.qapi`, or anything that holds them) as dicts, lists and plain values with
    QAPI's names."""
    return _scatter(msgspec.to_builtins(value))


def encode(value: Any) -> bytes:
    """`value` as one JSON text. Bytes of a file name that are no UTF-8 become \\udcXX, which Python reads back."""
    tree = to_builtins(value)
    try:
        return msgspec.json.encode(tree)
    except UnicodeEncodeError:
        import json

        return json.dumps(tree, separators=(",", ":")).encode()


def _name(hint: Any) -> str:
    inner = typing.get_args(hint)
    return f"list of {_name(inner[0])}" if inner else str(hint.__name__)


class _Shape(msgspec.Struct, frozen=True):
    """What `_gather` has to know of a struct: its fields' QAPI names, and the struct types found under them."""

    known: frozenset[str]
    nested: Mapping[str, Any]


_shapes: dict[type, _Shape] = {}
_field_tables: dict[type, dict[str, msgspec.structs.FieldInfo]] = {}


def _fields(struct: type) -> dict[str, msgspec.structs.FieldInfo]:
    if struct not in _field_tables:
        _field_tables[struct] = {field.name: field for field in msgspec.structs.fields(struct)}
    return _field_tables[struct]


def _shape(struct: type) -> _Shape:
    if struct not in _shapes:
        known = {field.encode_name: field.type for field in _fields(struct).values() if field.name != "unknown"}
        nested = {name: inner for name, hint in known.items() if (inner := _struct_in(hint)) is not None}
        _shapes[struct] = _Shape(frozenset(known), nested)
    return _shapes[struct]


def _struct_in(hint: Any) -> type | None:
    """The struct type inside `X`, `X | None`, `tuple[X, ...]` or `list[X]`."""
    if isinstance(hint, type) and not isinstance(hint, types.GenericAlias):
        return hint if issubclass(hint, QapiStruct) else None
    return next((found for arg in typing.get_args(hint) if (found := _struct_in(arg)) is not None), None)


def _gather(hint: Any, tree: Any) -> Any:
    """`tree` with every field that its struct does not know moved under `unknown`."""
    struct = _struct_in(hint)
    if struct is None:
        return tree
    if isinstance(tree, list):
        return [_gather(struct, item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    shape = _shape(struct)
    gathered: dict[str, Any] = {}
    unknown: dict[str, Any] = {}
    for key, value in tree.items():
        if key not in shape.known:
            unknown[key] = value
        else:
            gathered[key] = _gather(shape.nested[key], value) if key in shape.nested else value
    if unknown:
        gathered[UNKNOWN] = unknown
    if struct is FormatSpecific:
        _decode_specific(gathered)
    return gathered


def _decode_specific(specific: dict[str, Any]) -> None:
    kind = specific.get("type")
    struct = FORMAT_SPECIFIC.get(kind) if isinstance(kind, str) else None
    if struct is not None and "data" in specific:
        try:
            specific["data"] = msgspec.convert(_gather(struct, specific["data"]), struct)
        except msgspec.ValidationError as error:
            raise DecodeError(f"{struct.__name__}: {error}") from error


def _scatter(tree: Any) -> Any:
    """The opposite of `_gather`."""
    if isinstance(tree, dict):
        scattered = {key: _scatter(value) for key, value in tree.items() if key != UNKNOWN}
        unknown = tree.get(UNKNOWN)
        if isinstance(unknown, dict):
            scattered.update(unknown)
        return scattered
    if isinstance(tree, list | tuple):
        return [_scatter(item) for item in tree]
    return tree
