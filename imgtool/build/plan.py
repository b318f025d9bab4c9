"""What a build would do: which layers are in the store, which are not, and why."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Literal

import msgspec

from imgtool.build.base import Base, disk_size, find_base
from imgtool.build.current import is_current, made_of
from imgtool.build.keys import Disk, Hardware, Inert, KeyDocument, differences, document, hardware, inert, plain
from imgtool.build.memory import Memory
from imgtool.build.recipe import Loaded
from imgtool.build.records import BuiltLayer, Record, read_record
from imgtool.build.store import Layer, Store
from imgtool.build.target import check_output
from imgtool.errors import ConfigError, UsageError
from imgtool.image.links import is_below
from imgtool.image.names import printable
from imgtool.qemu.qemu_img import QemuImg

ARCHITECTURE = "x86_64"


class PlannedLayer(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What would be done for a layer."""

    name: str
    """In the recipe."""
    state: Literal["hit", "miss", "unknown"]
    """unknown: it follows one that is built, and is used if that comes out as what it was made on."""
    key: str | None = None
    """The SHA-256, in hex, of everything that goes into it; None where that is not known yet."""
    folder: str | None = None
    """Of a hit."""
    changes: tuple[str, ...] = ()
    """Why it is no hit: the very inputs that are not as they were at the last build."""
    seconds: float | None = None
    """How long it took last time."""
    size: int | None = None
    """Bytes it took last time, or takes."""


class BuildPlan(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The answer of `build --plan` and `--explain`."""

    recipe: str
    """The recipe's file."""
    image: str
    """The image's name in the recipe."""
    base: str
    """The file that the first layer stands on."""
    layers: tuple[PlannedLayer, ...]
    """From the base upwards."""
    output: Literal["current", "make", "none"]
    """Whether the finished image is as it should be, would be made, or is not asked for."""
    boots: int
    """VMs that would be started for layers; a check starts one more."""


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What the user wants built although it is there, and what not although it is not."""

    no_cache: bool = False
    from_layer: str | None = None
    """This layer and those after it."""
    to_layer: str | None = None
    """Nothing after this layer, the output included."""

    def forces(self, loaded: Loaded, number: int) -> bool:
        """Whether the layer `number` is not to be taken from the store. UsageError when `from_layer` is no layer."""
        return self.no_cache or (self.from_layer is not None and number >= _number(loaded, self.from_layer))

    def last(self, loaded: Loaded) -> int:
        """The last layer that is wanted; -1 where there is none. UsageError when `to_layer` is no layer."""
        return len(loaded.recipe.layers) - 1 if self.to_layer is None else _number(loaded, self.to_layer)


def _number(loaded: Loaded, name: str) -> int:
    names = [layer.name for layer in loaded.recipe.layers]
    if name not in names:
        raise UsageError(f"the recipe has no layer {printable(name)}", hint=f"it has: {', '.join(names)}")
    return names.index(name)


class Inputs(msgspec.Struct, frozen=True, kw_only=True):
    """What is the same for all layers of one build."""

    loaded: Loaded
    base: Base
    disk: Disk
    hardware: Hardware
    record: Record

    def document(self, number: int, parent: str, memory: Memory) -> KeyDocument:
        """ConfigError, with the line, for an input that cannot be read."""
        recipe = self.loaded.recipe
        layer = recipe.layers[number]
        try:
            return document(recipe, layer, parent=parent, disk=self.disk, hardware=self.hardware, memory=memory)
        except ConfigError as error:
            inputs: list[tuple[tuple[str | int, ...], str]]
            inputs = [(("copy", at), copy.from_) for at, copy in enumerate(layer.copy)]
            inputs += [(("copy", at), file) for at, copy in enumerate(layer.copy) for file in copy.exclude_from]
            inputs.append((("script",), layer.script or ""))
            place = next((place for place, file in inputs if _is_in(error.path, file)), ())
            where = f"{printable(self.loaded.path)}:{self.loaded.line('layer', number, *place)}"
            raise ConfigError(f"{where}: {error.message}", hint=error.hint, path=error.path) from error


def _hardware(loaded: Loaded, memory: Memory) -> Hardware:
    """ConfigError, with the line, for a file of the machine that cannot be read."""
    machine = loaded.recipe.machine
    try:
        return hardware(machine, ARCHITECTURE, memory)
    except ConfigError as error:
        place = _place_of(error.path, plain(machine)) or ()
        where = f"{printable(loaded.path)}:{loaded.line('machine', *place)}"
        raise ConfigError(f"{where}: {error.message}", hint=error.hint, path=error.path) from error


def _place_of(wanted: str | None, value: object) -> tuple[str | int, ...] | None:
    """Where in `value`, as TOML has it, `wanted` stands; None when it does not."""
    if value == wanted:
        return ()
    inside: Iterable[tuple[str | int, object]] = ()
    if isinstance(value, dict):
        inside = value.items()
    elif isinstance(value, list):
        inside = enumerate(value)
    for key, item in inside:
        place = _place_of(wanted, item)
        if place is not None:
            return (key, *place)
    return None


def _is_in(path: str | None, place: str) -> bool:
    return path is not None and place != "" and is_below(path, place)


def gather(loaded: Loaded, store: Store, memory: Memory, qemu_img: QemuImg) -> Inputs:
    base = find_base(loaded, memory, qemu_img)
    return Inputs(
        loaded=loaded,
        base=base,
        disk=Disk(size=disk_size(loaded, base)),
        hardware=_hardware(loaded, memory),
        record=msgspec.structs.replace(read_record(store, loaded) or Record.of(loaded), given=dict(loaded.given)),
    )


def is_fresh(layer: Layer, rules: Inert) -> bool:
    return rules.max_age is None or layer.manifest.created + rules.max_age > time.time()


def why_missed(inputs: Inputs, number: int, found: KeyDocument, *, forced: bool, stale: bool) -> tuple[str, ...]:
    """Why the layer is built: what is not as it was the last time."""
    if forced:
        return ("asked for",)
    name = inputs.loaded.recipe.layers[number].name
    before = inputs.record.layer(name)
    if stale:
        return (f"older than max-age ({inputs.loaded.recipe.layers[number].max_age})",)
    if before is None:
        return ("it was never built",)
    changes = differences(before.document, plain(found))
    return tuple(changes) or ("it is no longer in the store as it was sealed",)


def make_plan(loaded: Loaded, store: Store, memory: Memory, qemu_img: QemuImg, choice: Choice) -> BuildPlan:
    """The plan as it is now; changes nothing. Raises what a build would before its first step."""
    inputs = gather(loaded, store, memory, qemu_img)
    check_output(loaded, inputs.base, qemu_img)
    planned: list[PlannedLayer] = []
    parent: str | None = inputs.base.content
    for number, layer in enumerate(loaded.recipe.layers[: choice.last(loaded) + 1]):
        before = inputs.record.layer(layer.name)
        forced = choice.forces(loaded, number)
        if parent is None:
            planned.append(_unknown(inputs, number, memory, before, forced))
            continue
        found = inputs.document(number, parent, memory)
        key = found.key()
        hit = None if forced else store.find(key)
        fresh = hit is not None and is_fresh(hit, inert(layer))
        if hit is not None and fresh:
            parent = hit.manifest.content
            planned.append(
                PlannedLayer(
                    name=layer.name,
                    state="hit",
                    key=key,
                    folder=hit.folder,
                    seconds=hit.manifest.seconds,
                    size=hit.manifest.size,
                )
            )
            continue
        parent = None
        why = why_missed(inputs, number, found, forced=forced, stale=hit is not None)
        planned.append(_estimated(PlannedLayer(name=layer.name, state="miss", key=key, changes=why), before))
    return BuildPlan(
        recipe=loaded.path,
        image=loaded.recipe.image.name,
        base=inputs.base.path,
        layers=tuple(planned),
        output="none" if choice.to_layer is not None else _output(inputs, parent),
        boots=int(parent is None),
    )


def _unknown(inputs: Inputs, number: int, memory: Memory, before: BuiltLayer | None, forced: bool) -> PlannedLayer:
    """A layer whose parent's content is not known yet."""
    name = inputs.loaded.recipe.layers[number].name
    found = inputs.document(number, "" if before is None else str(before.document.get("parent")), memory)
    if forced:
        return _estimated(PlannedLayer(name=name, state="miss", changes=("asked for",)), before)
    if before is None:
        return PlannedLayer(name=name, state="miss", changes=("it was never built",))
    changes = tuple(differences(before.document, plain(found)))
    if changes:
        return _estimated(PlannedLayer(name=name, state="miss", changes=changes), before)
    beneath = ("the layer below it is rebuilt",)
    return _estimated(PlannedLayer(name=name, state="unknown", changes=beneath), before)


def _estimated(planned: PlannedLayer, before: BuiltLayer | None) -> PlannedLayer:
    if before is None:
        return planned
    return msgspec.structs.replace(planned, seconds=before.seconds, size=before.size)


def _output(inputs: Inputs, content: str | None) -> Literal["current", "make", "none"]:
    outputs = inputs.loaded.recipe.outputs
    if not outputs:
        return "none"
    if content is None:
        return "make"
    current = all(
        is_current(inputs.record, output.path, made_of(inputs.loaded, output, inputs.base, content))
        for output in outputs
    )
    return "current" if current else "make"
