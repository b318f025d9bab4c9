"""QEMU's two notations for an option's value: JSON, and key=value with commas doubled.

JSON cannot say a name that is not UTF-8; key=value can say any, but has no null and no nesting of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from imgtool.image.names import option_value

Value = Mapping[str, Any]


def is_utf8(value: Any) -> bool:
    """Whether every string inside can be written in JSON."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
    if isinstance(value, Mapping):
        return all(is_utf8(item) for item in value.values())
    if isinstance(value, list | tuple):
        return all(is_utf8(item) for item in value)
    return True


def compact(value: Value) -> dict[str, Any]:
    """`value` without the keys that are None."""
    return {key: item for key, item in value.items() if item is not None}


def encode(value: Value, *, json: bool, head: str) -> str:
    """`value` in JSON where `json` says that the option takes it and the strings allow it, else key=value. `head` is
    the key whose value stands first and bare there: `driver`, `type`, `qom-type`."""
    if json and is_utf8(value):
        return msgspec.json.encode(dict(value)).decode()
    return ",".join(_pairs(value, head))


def _pairs(value: Value, head: str) -> Iterator[str]:
    yield option_value(str(value[head]))
    for key, item in value.items():
        if key != head:
            yield from _flat(key, item)


def _flat(key: str, item: Any) -> Iterator[str]:
    if isinstance(item, Mapping):
        for inner, deeper in item.items():
            yield from _flat(f"{key}.{inner}", deeper)
    elif isinstance(item, list | tuple):
        # Only -netdev has lists there, of QAPI's String: the key is given once for each.
        for entry in item:
            yield from _flat(key, entry["str"] if isinstance(entry, Mapping) else entry)
    else:
        yield f"{key}={option_value(word(item))}"


def word(item: Any) -> str:
    """A single value in key=value notation."""
    if isinstance(item, bool):
        return "on" if item else "off"
    return str(item)


def keyed(first: str | None, pairs: Value) -> str:
    """`first,key=value,…` for the options that take no JSON; None is left out."""
    parts = [] if first is None else [option_value(first)]
    parts += [f"{key}={option_value(word(item))}" for key, item in pairs.items() if item is not None]
    return ",".join(parts)
