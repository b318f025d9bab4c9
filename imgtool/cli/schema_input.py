"""What a file may be written as, beside the types that it is read into: `memory = "2G"` for a table, one table for a
list of them. msgspec's JSON Schemas know the types alone."""

from __future__ import annotations

from typing import Any

_MACHINES = ("Guest", "Machine")


def widen(schema: dict[str, Any], *, read: bool) -> None:
    """Gives the `$defs` of `schema` the other spellings, if it is that of a file which is `read`. What marks them in
    the types (`also`) goes in any case."""
    structs: dict[str, Any] = schema.get("$defs", {})
    for struct in structs.values():
        for value in struct.get("properties", {}).values():
            _widen_marked(value, read=read)
    if not read:
        return
    from imgtool.machine.options.words import spellings

    for name in _MACHINES:
        properties = structs.get(name, {}).get("properties", {})
        for key, value in properties.items():
            types = spellings(key)
            if types:
                properties[key] = _widened(value, types)


def _widen_marked(value: Any, *, read: bool) -> None:
    if isinstance(value, list):
        for item in value:
            _widen_marked(item, read=read)
    elif isinstance(value, dict):
        for item in value.values():
            _widen_marked(item, read=read)
        also = value.pop("also", None)
        if not read or also is None:
            return
        if also == "item":
            given = {key: value.pop(key) for key in ("type", "items")}
            value["anyOf"] = [given["items"], given]
        else:
            value["type"] = [value["type"], also]


def _widened(value: dict[str, Any], types: tuple[str, ...]) -> dict[str, Any]:
    """A setting that may be an option string, too: in a list of them each item."""
    about: dict[str, Any] = {key: value[key] for key in ("description", "default") if key in value}
    given: dict[str, Any] = {key: item for key, item in value.items() if key not in about}
    for one in (given, *given.get("anyOf", ())):
        if one.get("type") == "array":
            one["items"] = {"anyOf": [one["items"], {"type": "string"}]}
    words = {"array": {"items": {"type": "string"}}}
    return {
        "anyOf": [*given.get("anyOf", [given]), *({"type": name, **words.get(name, {})} for name in types)],
        **about,
    }
