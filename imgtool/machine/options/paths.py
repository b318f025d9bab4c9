"""File names in a configuration, made absolute from the folder they were written in."""

from __future__ import annotations

import os.path
from typing import Any, TypeVar

import msgspec

from imgtool.machine.options.fields import kinds

T = TypeVar("T", bound=msgspec.Struct)


def with_absolute_paths(value: T, directory: str) -> T:
    """`value` and all structs inside with every file name absolute. `no`, which is QEMU's word for no script, stays;
    a file of that name is `./no`."""
    changes: dict[str, Any] = {}
    for field in msgspec.structs.fields(value):
        old = getattr(value, field.name)
        new = _resolved(old, kinds(type(value))[field.encode_name].unit == "path", directory)
        if new is not old:
            changes[field.name] = new
    return msgspec.structs.replace(value, **changes) if changes else value


def _resolved(value: Any, is_path: bool, directory: str) -> Any:
    if isinstance(value, msgspec.Struct):
        return with_absolute_paths(value, directory)
    if isinstance(value, tuple):
        return tuple(_resolved(item, is_path, directory) for item in value)
    if is_path and isinstance(value, str) and value != "no":
        return os.path.abspath(os.path.join(directory, value))
    return value
