"""Recipes: what a golden image is made from, step by step, in TOML.

    [image]
    name = "web"
    from = "debian-12.qcow2"

    [machine]
    memory = "1G"
    ready = "agent"

    [[layer]]
    name = "packages"
    run = ["apt-get update", "apt-get install -y nginx"]

    [output]
    path = "web.qcow2"

Read strictly, as profiles are. In a layer the steps are done in this order whatever the order in the file: `copy`,
`run`, `script`, `reboot`, `wait`, `seal`, `fetch`. `imgtool schema recipe` prints the JSON Schema.
"""

from __future__ import annotations

import os
import re
from typing import Literal

import msgspec
from msgspec.structs import replace

from imgtool.build.executor import Access
from imgtool.image.names import absolute, printable
from imgtool.machine.config import Machine
from imgtool.machine.options.paths import with_absolute_paths
from imgtool.machine.profile import Path as Place
from imgtool.machine.profile import Wrong, find_line, find_word, read_text, reading, to_machine, to_struct
from imgtool.machine.values.base import Config, Path, Size

SealAction = Literal[
    "machine-id", "ssh-host-keys", "cloud-init", "logs", "package-cache", "dhcp-leases", "history", "trim"
]
Compression = Literal["zstd", "zlib", "none"]
OutputFormat = Literal["qcow2", "raw", "vmdk", "vdi", "vhdx", "vpc", "qed", "qcow", "parallels"]
"""What qemu-img makes of a disk without being told more. Compressed are qcow2, qcow and some VMDKs."""
Duration = str | int
"""`90s`, `30m`, `12h`, `7d`, or a number of seconds."""

STEP_SECONDS = 3600.0
"""The time limit of a step whose layer names none."""

OCI = "oci:"
"""How a `from` begins that names an image in a registry."""


class Image(Config, frozen=True, kw_only=True):
    """What the golden image is called and what it starts from."""

    name: str
    """Letters, digits and `_.+-` after a letter or digit, at most 64 of them."""
    from_: str = msgspec.field(name="from")
    """An image; another recipe (`base.toml`) for its output; `oci:REGISTRY/NAME:TAG`."""
    sha256: str | None = None
    """What the SHA-256 of the file `from` has to be, in hex."""
    format: str | None = None
    """The format of `from`; None lets its header decide."""
    size: Size | None = None
    """The disk's size; None is the base's. It is never made smaller."""


class Guest(Machine, frozen=True, kw_only=True):
    """The machine that the layers are built in: a boot profile, and how its guest is reached."""

    ready: str | None = None
    """agent, ssh, cloud-init, or serial:REGEX. None: once its executor answers."""
    executor: Access | None = None
    """How steps get into the guest, where a layer does not say. None is what `ready` says, else auto: the best of
    agent, ssh and serial that the guest has."""
    boot_timeout: Duration = "10m"
    """How long the guest may take until steps can run: `90s`, `10m`, `1h`."""


class Copy(Config, frozen=True, kw_only=True):
    """Files from the host into the guest. Of a folder its contents go into `to`; a file becomes `to`, or goes into it
    when that ends in `/`."""

    from_: Path = msgspec.field(name="from")
    """A file or folder of the host."""
    to: str
    """A path in the guest."""
    owner: str | None = None
    """`user` or `user:group`; None is root."""
    mode: str | None = None
    """Octal, for files; folders get the x that belongs to each r. None is each file's own."""
    exclude: tuple[str, ...] = ()
    """What stays behind of a folder: patterns as in a `.gitignore` that lies in it."""
    exclude_from: tuple[Path, ...] = ()
    """Files of the host with such patterns, which come before those of `exclude`."""


class Fetch(Config, frozen=True, kw_only=True):
    """A file or folder from the guest to the host, also when the layer comes from the cache."""

    from_: str = msgspec.field(name="from")
    """A path in the guest."""
    to: Path
    """A path on the host."""


class Layer(Config, frozen=True, kw_only=True):
    """One step of the build, kept as an overlay."""

    name: str
    """Of the same characters; no two layers of a recipe share one."""
    copy: tuple[Copy, ...] = ()
    """Files of the host for the guest, before anything is run."""
    run: tuple[str, ...] = ()
    """Each by a shell of its own (`/bin/sh -eu`)."""
    script: Path | None = None
    """A file of the host that is run in the guest, by `interpreter`, else by what its `#!` names."""
    interpreter: tuple[str, ...] = ()
    """A program of the guest and its words, before the script's name."""
    reboot: bool = False
    """Restart the guest once the commands are done."""
    wait: tuple[str, ...] = ()
    """Shell commands, each tried again and again until it succeeds."""
    seal: tuple[SealAction, ...] = ()
    """What is taken out of the guest, so that clones do not share it."""
    fetch: tuple[Fetch, ...] = ()
    """Files of the guest for the host, after everything was run."""
    env: dict[str, str] = msgspec.field(default_factory=dict)
    """Environment variables of its commands."""
    secrets: tuple[str, ...] = ()
    """Names of environment variables that the commands get and that are kept nowhere."""
    max_age: Duration | None = None
    """Rebuild when older."""
    timeout: Duration | None = None
    """Of each command."""
    executor: Access | None = None
    """How its steps get into the guest; None is the machine's."""


class Check(Config, frozen=True, kw_only=True):
    """Commands that must succeed in a throwaway clone of the result."""

    run: tuple[str, ...]
    """Each by a shell of its own (`/bin/sh -eu`)."""
    env: dict[str, str] = msgspec.field(default_factory=dict)
    """Environment variables of its commands."""
    timeout: Duration | None = None
    """Of each command."""
    executor: Access | None = None
    """How they get into the guest; None is the machine's."""


class Output(Config, frozen=True, kw_only=True):
    """The finished image."""

    path: Path
    """The finished image's file."""
    format: OutputFormat = "qcow2"
    """Its format, as QEMU calls it."""
    compression: Compression | None = None
    """None is zstd for qcow2, and none for other formats."""
    flatten: bool | None = None
    """One image that stands on nothing; the default."""
    thin: bool | None = None
    """An overlay on the base instead."""
    options: dict[str, str] = msgspec.field(default_factory=dict)
    """qemu-img's `-o`."""


class Recipe(Config, frozen=True, kw_only=True):
    """A golden image, from its base to its file."""

    image: Image
    """What it is called and what it starts from."""
    machine: Guest = Guest()
    """The machine that the layers are built in."""
    layers: tuple[Layer, ...] = msgspec.field(name="layer", default=())
    """From the base upwards."""
    checks: tuple[Check, ...] = msgspec.field(name="check", default=())
    """What must hold before the image gets its name."""
    output: Output | None = None
    """The finished image; None builds the layers alone."""


class Loaded(msgspec.Struct, frozen=True):
    """A recipe as it was read, file names absolute."""

    path: str
    text: str
    recipe: Recipe

    @property
    def directory(self) -> str:
        return os.path.dirname(self.path)

    def line(self, *place: str | int) -> int:
        """Where `place` stands in the text: `("layer", 0, "run", 2)`. An element of a list is looked for itself."""
        line = find_line(self.text, place)
        if place and isinstance(place[-1], int) and place[-2] in ("run", "wait"):
            owner = self.recipe.layers if place[0] == "layer" else self.recipe.checks
            words: tuple[str, ...] = getattr(owner[int(place[1])], str(place[-2]))
            return find_word(self.text, line, words, place[-1])
        return line


def load_recipe(path: str) -> Loaded:
    """The recipe at `path`, its file names relative to its folder. ConfigError, with the line, when it is wrong."""
    text = read_text(path, "a recipe")
    where = absolute(path)
    recipe = with_absolute_paths(parse_recipe(text, where), os.path.dirname(where))
    if not recipe.image.from_.startswith(OCI):
        base = os.path.join(os.path.dirname(where), recipe.image.from_)
        recipe = replace(recipe, image=replace(recipe.image, from_=os.path.abspath(base)))
    return Loaded(where, text, recipe)


def parse_recipe(text: str, name: str = "recipe") -> Recipe:
    """The recipe that a TOML text is, file names as they are written. ConfigError as `load_recipe`."""
    with reading(text, name) as document:
        table = document.pop("machine", {})
        if not isinstance(table, dict):
            place: Place = ("machine", 0) if isinstance(table, list) else ("machine",)
            raise Wrong(place, "machine is a table: [machine]", 'its type is said in it: machine = "q35"')
        machine = to_machine(table, Guest, ("machine",))
        recipe = replace(to_struct(document, Recipe), machine=machine)
        _check(recipe)
    return recipe


def executor_of(recipe: Recipe, step: Layer | Check) -> Access:
    """The way into the guest for `step`: decided by the recipe alone, for it is part of the layer's key. `auto`
    leaves it to the guest, and what that has follows from what the layer stands on."""
    machine = recipe.machine
    if step.executor or machine.executor:
        return step.executor or machine.executor or "auto"
    return _READY.get((machine.ready or "").partition(":")[0], "auto")


_READY: dict[str, Access] = {"agent": "agent", "ssh": "ssh", "serial": "serial"}
"""What a guest has of which it is said that this makes it ready."""


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def seconds_of(duration: Duration) -> float:
    """Seconds. ValueError when it is no duration."""
    if isinstance(duration, int):
        return float(duration)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw]?)", duration.strip())
    if match is None:
        raise ValueError(duration)
    return float(match[1]) * _UNITS[match[2] or "s"]


def timeout_of(step: Layer | Check) -> float:
    return STEP_SECONDS if step.timeout is None else seconds_of(step.timeout)


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OWNER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\$?(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?")
_STEPS = ("copy", "run", "script", "reboot", "wait", "seal", "fetch")


def _check(recipe: Recipe) -> None:
    """What the types do not say. Wrong, with the place, for the first thing that is not right."""
    if not _NAME.fullmatch(recipe.image.name):
        raise Wrong(("image", "name"), f"image.name cannot be {printable(recipe.image.name)!r}", _NAME_HINT)
    pin = recipe.image.sha256
    if pin is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", pin):
        raise Wrong(("image", "sha256"), "image.sha256 is not 64 hexadecimal digits")
    _check_ready(recipe.machine.ready)
    seen: dict[str, int] = {}
    for number, layer in enumerate(recipe.layers):
        place: Place = ("layer", number)
        if not _NAME.fullmatch(layer.name):
            raise Wrong((*place, "name"), f"a layer cannot be called {printable(layer.name)!r}", _NAME_HINT)
        if layer.name in seen:
            raise Wrong((*place, "name"), f"two layers are called {layer.name!r}", "give one of them another name")
        seen[layer.name] = number
        _check_layer(layer, place)
    _check_duration(("machine", "boot-timeout"), recipe.machine.boot_timeout)
    for number, check in enumerate(recipe.checks):
        _check_duration(("check", number, "timeout"), check.timeout)
        _check_variables(check.env, ("check", number, "env"))
        if not check.run:
            raise Wrong(("check", number), "a check that runs nothing", "give it run = [COMMAND, …]")
    if recipe.output is not None:
        _check_output(recipe.output)
    elif recipe.checks:
        raise Wrong(("check", 0), "checks try out the output, and there is none", "add [output] with its path")


def _check_output(output: Output) -> None:
    thin = output.thin or output.flatten is False
    if not output.path:
        raise Wrong(("output", "path"), "output.path is empty")
    if output.thin and output.flatten:
        raise Wrong(("output", "thin"), "output.thin and output.flatten exclude each other", "leave one out")
    if thin and output.format != "qcow2":
        raise Wrong(("output", "format"), "an overlay on the base (output.thin) is always a qcow2")
    compressing = ("qcow2",) if output.compression == "zstd" else ("qcow2", "qcow", "vmdk")
    if output.compression not in (None, "none") and output.format not in compressing:
        raise Wrong(
            ("output", "compression"),
            f"{output.format} knows no compression by {output.compression}",
            f"{', '.join(compressing)} does; else leave it out",
        )


_NAME_HINT = "letters, digits and `_.+-` after a letter or digit, at most 64 of them"


def _check_layer(layer: Layer, place: Place) -> None:
    if not any(getattr(layer, step) for step in _STEPS):
        raise Wrong(place, f"the layer {layer.name!r} does nothing", f"give it one of: {', '.join(_STEPS)}")
    if layer.interpreter and layer.script is None:
        raise Wrong((*place, "interpreter"), "interpreter is for a script", "add script = FILE next to it")
    for number, copy in enumerate(layer.copy):
        at = (*place, "copy", number)
        if not copy.to.startswith("/"):
            raise Wrong((*at, "to"), f"{printable(copy.to)!r} is not an absolute path in the guest")
        if copy.mode is not None and not re.fullmatch(r"0?[0-7]{3,4}", copy.mode):
            raise Wrong((*at, "mode"), f"{printable(copy.mode)!r} is not an octal mode", 'such as "0644"')
        if copy.owner is not None and not _OWNER.fullmatch(copy.owner):
            raise Wrong((*at, "owner"), f"{printable(copy.owner)!r} is not an owner", "`user` or `user:group`")
    for number, fetch in enumerate(layer.fetch):
        if not fetch.from_.startswith("/"):
            raise Wrong(
                (*place, "fetch", number, "from"), f"{printable(fetch.from_)!r} is not an absolute path in the guest"
            )
    _check_variables(layer.env, (*place, "env"))
    for name in layer.secrets:
        if not _VARIABLE.fullmatch(name):
            raise Wrong((*place, "secrets"), f"{printable(name)!r} cannot be the name of a variable")
        if name in layer.env:
            raise Wrong((*place, "secrets"), f"{name} is in env too, which is written down", "leave it in one place")
    _check_duration((*place, "max-age"), layer.max_age)
    _check_duration((*place, "timeout"), layer.timeout)


def _check_ready(ready: str | None) -> None:
    if ready is None or ready in ("agent", "ssh", "cloud-init"):
        return
    kind, colon, pattern = ready.partition(":")
    if kind != "serial" or not colon:
        raise Wrong(
            ("machine", "ready"),
            f"machine.ready cannot be {printable(ready)!r}",
            "agent, ssh, cloud-init, or serial:REGEX",
        )
    try:
        re.compile(pattern)
    except re.error as error:
        raise Wrong(("machine", "ready"), f"{printable(pattern)!r} is no regular expression: {error}") from None


def _check_variables(env: dict[str, str], place: Place) -> None:
    for name in env:
        if not _VARIABLE.fullmatch(name):
            raise Wrong((*place, name), f"{printable(name)!r} cannot be the name of a variable")


def _check_duration(place: Place, duration: Duration | None) -> None:
    try:
        seconds = 1.0 if duration is None else seconds_of(duration)
    except (ValueError, OverflowError):
        raise Wrong(
            place, f"{printable(str(duration))!r} is not a duration", "such as 90s, 30m, 12h, 7d, 2w"
        ) from None
    if seconds < 0 or (seconds == 0 and place[-1] != "max-age"):
        raise Wrong(place, f"{place[-1]} cannot be {duration}", "such as 90s, 30m, 12h, 7d, 2w")
