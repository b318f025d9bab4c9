"""What a TOML file may hold, as people read it: a line a key, with what it holds and what it is for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from textwrap import wrap
from typing import Any

_WIDTH = 110
_PLACE = 36
"""Where the words begin, if what stands before them leaves room."""

_PLAIN = {"string": '"…"', "integer": "N", "boolean": "true", "number": "N"}

Schema = Mapping[str, Any]


def lines_of(schema: Schema, *, elsewhere: Mapping[str, str]) -> Iterator[str]:
    """The text for the JSON Schema of a file. A profile's settings are left out of the tables in `elsewhere`: the
    words there stand for them."""
    yield from _Reference(schema["$defs"], elsewhere).of_file(schema["$ref"].rpartition("/")[2])


class _Reference:
    def __init__(self, structs: Mapping[str, Any], elsewhere: Mapping[str, str]) -> None:
        self._structs = structs
        self._elsewhere = elsewhere

    def of_file(self, name: str) -> Iterator[str]:
        about = f"{self._structs[name]['description']} None is what a key is that is left out."
        yield from (f"# {line}" for line in wrap(about, _WIDTH - 2))
        yield from self._keys(name, "")

    def _keys(self, struct: str, place: str) -> Iterator[str]:
        """The keys of a table: those that hold a word or a list of words, then the tables in it."""
        found: Schema = self._structs[struct]
        tables = {}
        for key, value in found["properties"].items():
            if place in self._elsewhere and key in _settings():
                continue
            if self._tables(value):
                tables[key] = value
            else:
                needed = " (needed)" if key in found.get("required", ()) else ""
                yield from _line(f"{key} = {self._written(value)}", value.get("description", "") + needed)
        for key, value in tables.items():
            yield from self._table(f"{place}.{key}" if place else key, value)

    def _table(self, place: str, value: Schema) -> Iterator[str]:
        several = any(one.get("type") == "array" for one in _choices(value))
        words = [text for one in _choices(value) if (text := self._written(one)) and not self._tables(one)]
        also = f" Or: {place.rpartition('.')[2]} = {' | '.join(dict.fromkeys(words))}" if words else ""
        yield ""
        yield from _line(f"[[{place}]]" if several else f"[{place}]", value.get("description", "") + also)
        if place in self._elsewhere:
            yield f"# {self._elsewhere[place]}"
        for number, struct in enumerate(self._tables(value)):
            if number:
                yield ""
            yield from self._keys(struct, place)

    def _tables(self, value: Schema) -> list[str]:
        """The structs of which `value` is one, or a list."""
        items = (item for one in _choices(value) for item in _choices(one.get("items", one)))
        return list(dict.fromkeys(item["$ref"].rpartition("/")[2] for item in items if "$ref" in item))

    def _written(self, value: Schema) -> str:
        """How a value is written: `"…"`, `[N]`, `"zlib" | "zstd"`."""
        return " | ".join(dict.fromkeys(word for one in _choices(value) for word in self._word(one)))

    def _word(self, one: Schema) -> Iterator[str]:
        if "enum" in one:
            yield from (f'"{word}"' for word in one["enum"])
        elif "$ref" in one:
            first = next(iter(self._structs[one["$ref"].rpartition("/")[2]]["properties"]))
            yield f"{{ {first} = … }}"
        elif one.get("type") == "array":
            yield f"[{self._written(one['items'])}]"
        elif one.get("type") == "object":
            yield f"{{ NAME = {self._written(one['additionalProperties'])} }}"
        else:
            types = one.get("type", "string")
            yield from (_PLAIN[name] for name in ([types] if isinstance(types, str) else types))


def _choices(value: Schema) -> list[Schema]:
    """What `value` may be, but for nothing."""
    if "anyOf" in value:
        return [choice for one in value["anyOf"] for choice in _choices(one)]
    return [] if value.get("type") == "null" else [value]


def _settings() -> frozenset[str]:
    from imgtool.machine.config import Machine

    return frozenset(Machine.__struct_encode_fields__)


def _line(start: str, words: str) -> Iterator[str]:
    """`start`, and behind it or below it the words, as a comment."""
    told = wrap(words, _WIDTH - _PLACE - 2)
    if len(start) >= _PLACE or not told:
        yield start
    else:
        yield f"{start:<{_PLACE}}# {told.pop(0)}"
    yield from (f"{'':<{_PLACE}}# {line}" for line in told)
