"""What the code says about each field of a document, for its JSON Schema."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

import msgspec


def describe(schema: dict[str, Any], *shapes: Any) -> None:
    """Gives the properties in the `$defs` of `schema`, which is that of `shapes`, the words that stand below the
    fields of their structs. msgspec hands on the words of the structs alone."""
    known = schema.get("$defs", {})
    for struct in dict.fromkeys(struct for shape in shapes for struct in _structs(shape)):
        found = known.get(struct.__name__)
        if found is None:
            continue
        if "description" in found:
            found["description"] = inspect.cleandoc(found["description"])
        config = struct.__struct_config__
        if config.tag_field is not None:
            found["properties"][config.tag_field]["description"] = f"What kind this is: always `{config.tag}`."
        words = _words(struct)
        for field in msgspec.structs.fields(struct):
            if field.name in words and field.encode_name in found.get("properties", {}):
                found["properties"][field.encode_name]["description"] = words[field.name]


def _structs(shape: Any) -> list[type[msgspec.Struct]]:
    """The structs that a document of this shape may hold."""
    found: dict[type[msgspec.Struct], None] = {}

    def visit(kind: Any) -> None:
        if isinstance(kind, msgspec.inspect.StructType):
            if kind.cls in found:
                return
            found[kind.cls] = None
            for field in kind.fields:
                visit(field.type)
        elif isinstance(kind, msgspec.inspect.Type):
            for name in ("type", "item_type", "item_types", "types", "key_type", "value_type"):
                inner = getattr(kind, name, None)
                for one in inner if isinstance(inner, tuple) else (inner,):
                    visit(one)

    visit(msgspec.inspect.type_info(shape))
    return list(found)


def _words(struct: type[msgspec.Struct]) -> dict[str, str]:
    """Field → the string below it, in `struct` and the structs it is made from."""
    words: dict[str, str] = {}
    for kind in reversed(struct.__mro__):
        if issubclass(kind, msgspec.Struct) and kind is not msgspec.Struct:
            words.update(_described(kind))
    return words


def _described(struct: type[msgspec.Struct]) -> Iterator[tuple[str, str]]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(struct)))
    except (OSError, TypeError):  # installed without its source
        return
    definition = tree.body[0]
    assert isinstance(definition, ast.ClassDef)
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            yield field.target.id, " ".join(below.value.value.split())
