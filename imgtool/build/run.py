"""A recipe's file and what is wanted of it, in one call: for programs, and for `imgtool build`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from imgtool.build.base import Fetch, fetching
from imgtool.build.built import Built
from imgtool.build.engine import Builder
from imgtool.build.plan import BuildPlan, Choice
from imgtool.build.recipe import Loaded, load_recipe
from imgtool.build.session import Decide, OnError
from imgtool.build.store import Store
from imgtool.build.watcher import Watcher
from imgtool.image.names import PathLike, absolute
from imgtool.qemu.qemu_img import QemuImg

if TYPE_CHECKING:
    from imgtool.build.guest import Guest, Start
    from imgtool.build.sharing import Cache


def build_image(
    recipe: PathLike | Loaded,
    *,
    layers: PathLike | None = None,
    arguments: Mapping[str, str] | None = None,
    no_cache: bool = False,
    from_layer: str | None = None,
    to_layer: str | None = None,
    secrets: Mapping[str, str] | None = None,
    on_error: OnError = "clean",
    decide: Decide = lambda _: "give-up",
    force: bool = False,
    cache_from: Cache | None = None,
    cache_to: Cache | None = None,
    watcher: Watcher | None = None,
    fetch: Fetch | None = None,
    qemu_img: QemuImg | None = None,
) -> Built:
    """Brings the image of `recipe`, the path of a TOML file, up to date, after those of the recipes that it starts
    from. Layers that are still right are taken from `layers`, a folder (None: IMGTOOL_LAYERS, or one among the user's
    data).

    `arguments` are values for the arguments that this recipe and those it starts from declare. `no_cache` builds
    every layer, `from_layer` that one and those after it; `to_layer` is the last that is built, and no output is
    made. `secrets` are values by the names under which steps ask for them. When a step fails, `on_error` leaves
    nothing ("clean") or the failed overlay ("keep"), or asks `decide` while the guest still runs ("shell"). `force`
    replaces an output although images stand on it. `cache_from` is where layers made by other machines are looked
    for, such as `imgtool.LayerCache("registry.example.org/cache")`, and `cache_to` is where this image's layers go in
    the end. `watcher` is told of the progress. `fetch` brings bases from registries, as `imgtool.fetch` does.

    ConfigError, with the line, for a recipe or an input that is wrong, StepFailed for a step that fails, and whatever
    images, chains and machines raise. However a build ends, every layer in the store is whole, and what was finished
    is there for the next build.
    """
    choice = Choice(no_cache=no_cache, from_layer=from_layer, to_layer=to_layer)
    made = _builder(
        layers,
        qemu_img,
        watcher=watcher,
        secrets=secrets,
        on_error=on_error,
        decide=decide,
        force=force,
        cache_from=cache_from,
        cache_to=cache_to,
    )
    with _fetching(fetch):
        return made.build(_loaded(recipe, arguments), choice)


def plan_build(
    recipe: PathLike | Loaded,
    *,
    layers: PathLike | None = None,
    arguments: Mapping[str, str] | None = None,
    no_cache: bool = False,
    from_layer: str | None = None,
    to_layer: str | None = None,
    force: bool = False,
    fetch: Fetch | None = None,
    qemu_img: QemuImg | None = None,
) -> BuildPlan:
    """What `build_image` would do: which layers are there, which would be built and why. Changes nothing, except that
    a base which is not here yet is fetched from its registry. Raises what a build would raise before its first step.
    """
    choice = Choice(no_cache=no_cache, from_layer=from_layer, to_layer=to_layer)
    with _fetching(fetch):
        return _builder(layers, qemu_img, force=force).plan(_loaded(recipe, arguments), choice)


def _builder(
    layers: PathLike | None,
    qemu_img: QemuImg | None,
    *,
    watcher: Watcher | None = None,
    secrets: Mapping[str, str] | None = None,
    on_error: OnError = "clean",
    decide: Decide = lambda _: "give-up",
    force: bool = False,
    cache_from: Cache | None = None,
    cache_to: Cache | None = None,
) -> Builder:
    """A Builder that starts real VMs. What starting one takes is loaded when the first one is."""
    store = Store(None if layers is None else absolute(layers))
    qemu_img = qemu_img or QemuImg()

    def start(wanted: Start) -> Guest:
        from imgtool.build.guest import starter

        return starter(qemu_img.programs, store.path(".access"))(wanted)

    return Builder(
        store,
        qemu_img,
        start,
        watcher=watcher,
        secrets=secrets,
        on_error=on_error,
        decide=decide,
        force=force,
        cache_from=cache_from,
        cache_to=cache_to,
    )


def _loaded(recipe: PathLike | Loaded, arguments: Mapping[str, str] | None) -> Loaded:
    return recipe if isinstance(recipe, Loaded) else load_recipe(absolute(recipe), arguments or {})


def _fetching(fetch: Fetch | None) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if fetch is None else fetching(fetch)
