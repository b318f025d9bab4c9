"""`web.toml@packages`: a layer by its recipe and name."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import msgspec

from imgtool.build.base import base_path
from imgtool.build.recipe import Loaded, load_recipe
from imgtool.build.records import last_record, read_record
from imgtool.build.store import Store
from imgtool.errors import ImageNotFoundError
from imgtool.image.names import absolute, printable
from imgtool.machine.config import Machine


class Resolved(NamedTuple):
    image: str
    """The layer's overlay: sealed, to be booted with writes thrown away."""
    settings: dict[str, Any]
    """The recipe's machine, as `imgtool.machine.options.words.merge` takes it."""
    trusted: tuple[str, ...]
    """Files and folders that the image refers to by imgtool's own doing."""


def is_reference(text: str) -> bool:
    """Whether `text` is `RECIPE.toml@LAYER`, and no file."""
    recipe, at, layer = text.rpartition("@")
    return bool(at and layer and recipe.endswith(".toml")) and not os.path.exists(text)


def resolve(text: str, store: Store) -> Resolved:
    """The layer that the last build of the recipe made or used, or the kept failure of that name. ConfigError for a
    recipe that is wrong, ImageNotFoundError when there is no such layer now."""
    path, _, name = text.rpartition("@")
    before = last_record(store, absolute(path))
    loaded = load_recipe(path, {} if before is None else before.given)
    image = _failed(store, name) if name.startswith("failed-") else _built(store, loaded, name)
    machine = loaded.recipe.machine
    plain = Machine(**{field: getattr(machine, field) for field in Machine.__struct_fields__})
    bases = {layer.manifest.base for layer in store.layers()} | {base_path(loaded)}
    return Resolved(image, msgspec.to_builtins(plain), (store.root, *sorted(bases)))


def _built(store: Store, loaded: Loaded, name: str) -> str:
    names = [layer.name for layer in loaded.recipe.layers]
    if name not in names:
        raise ImageNotFoundError(
            f"{printable(loaded.path)} has no layer {printable(name)}",
            hint=f"it has: {', '.join(names)}",
            path=loaded.path,
        )
    record = read_record(store, loaded)
    built = None if record is None else record.layer(name)
    layer = None if built is None else store.layer(built.folder)
    if layer is None:
        raise ImageNotFoundError(
            f"the layer {name} is not built",
            hint=f"imgtool build {printable(loaded.path)}",
            path=loaded.path,
        )
    return layer.image


def _failed(store: Store, name: str) -> str:
    folder = store.path(os.path.basename(name))
    images = []
    if os.path.isdir(folder):
        images = [one for one in os.listdir(folder) if one.endswith(".qcow2")]
    if not images:
        raise ImageNotFoundError(
            f"there is no kept failure {printable(name)}", hint="`imgtool layers list` shows those there are"
        )
    return os.path.join(folder, images[0])
