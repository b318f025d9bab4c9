"""What the last build of a recipe came to: for `--plan` and `--explain`, for what need not be done again, and for
`layers prune`, which keeps the layers of every recipe that is still there."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import msgspec

from imgtool.build.store import Store, decode, encode
from imgtool.image.whole import write_whole

_FOLDER = "recipes"


class BuiltLayer(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    name: str
    key: str
    folder: str
    document: dict[str, Any]
    """The KeyDocument, as builtins."""
    seconds: float
    size: int


class BuiltOutput(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    path: str
    identity: tuple[int, ...]
    """Device, inode, size and times of the file that was made: it is up to date while it is still that one."""
    made_of: dict[str, Any]
    """What decided its content."""
    seconds: float
    size: int


class Record(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    recipe: str
    """The recipe's path."""
    image: str
    layers: tuple[BuiltLayer, ...] = ()
    output: BuiltOutput | None = None

    def layer(self, name: str) -> BuiltLayer | None:
        return next((layer for layer in self.layers if layer.name == name), None)

    def with_layer(self, number: int, layer: BuiltLayer) -> Record:
        """The record once the layer `number` is `layer`; what was known of those behind it stays until they are
        built again."""
        behind = [one for one in self.layers[number:] if one.name != layer.name]
        return msgspec.structs.replace(self, layers=(*self.layers[:number], layer, *behind))


def read_record(store: Store, recipe: str) -> Record | None:
    return _read(_place(store, recipe))


def write_record(store: Store, record: Record) -> None:
    place = _place(store, record.recipe)
    os.makedirs(os.path.dirname(place), exist_ok=True)
    write_whole(place, encode(record), durable=True)


def records(store: Store) -> list[Record]:
    """Those whose recipe is still there. The others are forgotten."""
    folder = store.path(_FOLDER)
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    found = []
    for name in names:
        record = _read(os.path.join(folder, name))
        if record is not None and os.path.exists(record.recipe):
            found.append(record)
    return found


def _place(store: Store, recipe: str) -> str:
    return store.path(_FOLDER, hashlib.sha256(os.fsencode(recipe)).hexdigest()[:32] + ".json")


def _read(path: str) -> Record | None:
    try:
        with open(path, "rb") as file:
            return decode(file.read(), Record)
    except (OSError, ValueError):
        return None
