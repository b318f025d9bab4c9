"""The result of a recipe's last build: for `--plan` and `--explain`, for what need not be done again, and for
`layers prune`, which keeps the layers of every recipe that is still there."""

from __future__ import annotations

import contextlib
import hashlib
import os
from typing import Any

import msgspec

from imgtool.build.recipe import Loaded
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
    variant: str = ""
    """Which of the images that the recipe makes by its arguments: `Loaded.variant`."""
    given: dict[str, str] = {}
    """The arguments that were given."""
    image: str
    layers: tuple[BuiltLayer, ...] = ()
    outputs: tuple[BuiltOutput, ...] = ()

    @classmethod
    def of(cls, loaded: Loaded) -> Record:
        """That of a recipe which was not built yet."""
        return cls(
            recipe=loaded.path,
            variant=loaded.variant,
            given=dict(loaded.given),
            image=loaded.recipe.image.name,
        )

    def output(self, path: str) -> BuiltOutput | None:
        return next((output for output in self.outputs if output.path == path), None)

    def with_output(self, output: BuiltOutput) -> Record:
        others = [other for other in self.outputs if other.path != output.path]
        return msgspec.structs.replace(self, outputs=(*others, output))

    def layer(self, name: str) -> BuiltLayer | None:
        return next((layer for layer in self.layers if layer.name == name), None)

    def with_layer(self, number: int, layer: BuiltLayer) -> Record:
        """The record once the layer `number` is `layer`; what was known of those behind it stays until they are
        built again."""
        behind = [one for one in self.layers[number:] if one.name != layer.name]
        return msgspec.structs.replace(self, layers=(*self.layers[:number], layer, *behind))


def read_record(store: Store, loaded: Loaded) -> Record | None:
    return _read(_place(store, loaded.path, loaded.variant))


def write_record(store: Store, record: Record) -> None:
    place = _place(store, record.recipe, record.variant)
    os.makedirs(os.path.dirname(place), exist_ok=True)
    write_whole(place, encode(record), durable=True)


def records(store: Store) -> list[Record]:
    """Those that count: of a recipe which is still there, the last build, and of its other variants those of which an
    output is there."""
    found = []
    seen = set()
    for record in _latest_first(store):
        if not os.path.exists(record.recipe):
            continue
        if record.recipe not in seen or any(os.path.exists(output.path) for output in record.outputs):
            found.append(record)
        seen.add(record.recipe)
    return found


def last_record(store: Store, recipe: str) -> Record | None:
    """That of the last build of the recipe at the path `recipe`, whatever its arguments were."""
    return next((record for record in _latest_first(store) if record.recipe == recipe), None)


def touch_record(store: Store, record: Record) -> None:
    """Marks it as that of the last build."""
    with contextlib.suppress(FileNotFoundError):  # nothing was written down of a recipe without layers and output
        os.utime(_place(store, record.recipe, record.variant))


def _latest_first(store: Store) -> list[Record]:
    found: list[tuple[int, Record]] = []
    with contextlib.suppress(FileNotFoundError), os.scandir(store.path(_FOLDER)) as entries:
        for entry in entries:
            record = _read(entry.path) if entry.name.endswith(".json") else None
            if record is not None:
                found.append((os.stat(entry.path).st_mtime_ns, record))
    return [record for _, record in sorted(found, key=lambda one: one[0], reverse=True)]


def _place(store: Store, recipe: str, variant: str) -> str:
    name = os.fsencode(recipe) + (b"\0" + os.fsencode(variant) if variant else b"")
    return store.path(_FOLDER, hashlib.sha256(name).hexdigest()[:32] + ".json")


def _read(path: str) -> Record | None:
    try:
        with open(path, "rb") as file:
            return decode(file.read(), Record)
    except (OSError, ValueError):
        return None
