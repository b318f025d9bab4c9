"""A machine as the text of a profile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from imgtool.machine.config import Machine
from imgtool.machine.options.fields import kinds
from imgtool.publish.notes import default_of
from imgtool.sizes import format_size


def to_toml(machine: Machine) -> str:
    """The profile that `imgtool.machine.profile.parse_profile` reads as `machine`."""
    settings = _plain(machine)
    lines = list(_settings(settings))
    for name in ("drive", "network", "share"):
        for table in settings.get(name) or ():
            lines += ["", f"[[{name}]]", *(f"{_key(key)} = {_value(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _settings(settings: dict[str, Any]) -> Iterator[str]:
    for name, value in settings.items():
        if name not in ("drive", "network", "share") or not value:
            yield f"{_key(name)} = {_value(value)}"


def _plain(part: Any) -> Any:
    """As `msgspec.to_builtins`, sizes in QEMU's notation."""
    if isinstance(part, tuple):
        return [_plain(item) for item in part]
    if not isinstance(part, msgspec.Struct):
        return part
    found = msgspec.to_builtins(part)
    known = kinds(type(part))
    for field in msgspec.structs.fields(part):
        if field.encode_name not in found:
            continue
        value = getattr(part, field.name)
        if value == default_of(field):
            del found[field.encode_name]
            continue
        if isinstance(value, int) and known[field.encode_name].is_size:
            found[field.encode_name] = format_size(value) if value >= 1024 else value
        elif isinstance(value, msgspec.Struct | tuple):
            found[field.encode_name] = _plain(value)
    return found


def _key(name: str) -> str:
    return name if name.replace("-", "").replace("_", "").isalnum() and name.isascii() else _text(name)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bool | int):
        return json.dumps(value)
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + " }"
    return "[" + ", ".join(_value(item) for item in value) + "]"


def _text(text: str) -> str:
    """TOML's basic strings are JSON's, but that DEL is escaped too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
