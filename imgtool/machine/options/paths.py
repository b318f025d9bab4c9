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
    for name, encoded in zip(value.__struct_fields__, value.__struct_encode_fields__, strict=True):
        old = getattr(value, name)
        if not isinstance(old, str | tuple | msgspec.Struct) or not old:
            continue
        new = _resolved(old, kinds(type(value))[encoded].unit == "path", directory)
        if new is not old:
            changes[name] = new
    return msgspec.structs.replace(value, **changes) if changes else value


def _resolved(value: Any, is_path: bool, directory: str) -> Any:
    if isinstance(value, msgspec.Struct):
        return with_absolute_paths(value, directory)
    if isinstance(value, tuple):
        return tuple(_resolved(item, is_path, directory) for item in value)
    if is_path and isinstance(value, str) and value != "no":
        return os.path.abspath(os.path.join(directory, value))
    return value
