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
        new = old
        if isinstance(old, msgspec.Struct):
            new = with_absolute_paths(old, directory)
        elif isinstance(old, tuple) and old and isinstance(old[0], msgspec.Struct):
            new = tuple(with_absolute_paths(item, directory) for item in old)
        elif isinstance(old, str | tuple) and old and kinds(type(value))[encoded].unit == "path":
            new = _absolute(old, directory)
        if new is not old:
            changes[name] = new
    return msgspec.structs.replace(value, **changes) if changes else value


def _absolute(value: Any, directory: str) -> Any:
    if isinstance(value, tuple):
        return tuple(_absolute(item, directory) for item in value)
    return value if value == "no" else os.path.abspath(os.path.join(directory, value))
