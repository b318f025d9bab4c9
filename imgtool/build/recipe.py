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

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

import msgspec
from msgspec.structs import replace

from imgtool.build.arguments import Argument, expanded, resolve
from imgtool.build.executor import Access
from imgtool.image.names import absolute
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
WEB = ("https://", "http://")
"""How one does that names a file of the web."""


class Image(Config, frozen=True, kw_only=True):
    """What the golden image is called and what it starts from."""

    name: str
    """Letters, digits and `_.+-` after a letter or digit, at most 64 of them."""
    from_: str = msgspec.field(name="from")
    """An image; another recipe (`base.toml`) for its output; `oci:REGISTRY/NAME:TAG`; `https://…`. What is not on
    this host needs a digest."""
    sha256: str | None = None
    """What the SHA-256 of the file `from` has to be, in hex; of a registry's image that of its manifest."""
    sha512: str | None = None
    """What the SHA-512 of the file `from` has to be, in hex."""
    format: str | None = None
    """The format of `from`; None lets its header decide."""
    size: Size | None = None
    """The disk's size; None is the base's. It is never made smaller."""
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    """What the image's manifest and a registry say of it, by names such as `org.opencontainers.image.version`."""


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
    args: tuple[str, ...] = ()
    """Names of the recipe's arguments that its commands get as environment variables."""
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
    args: tuple[str, ...] = ()
    """Names of the recipe's arguments that its commands get as environment variables."""
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


_ALONE = msgspec.Meta(extra_json_schema={"also": "item"})
"""A list of tables of which one may be written alone; see `imgtool.cli.schema_input`."""


class Recipe(Config, frozen=True, kw_only=True):
    """A golden image, from its base to its file."""

    args: dict[str, str | int | bool | Argument] = msgspec.field(default_factory=dict)
    """Values that whoever builds it may give, by name: `VERSION = "1.4"` with a default, or a table of `default`,
    `values` (all that are possible) and `help`; `{}` has to be given."""
    image: Image
    """What it is called and what it starts from."""
    machine: Guest = Guest()
    """The machine that the layers are built in."""
    layers: tuple[Layer, ...] = msgspec.field(name="layer", default=())
    """From the base upwards."""
    checks: tuple[Check, ...] = msgspec.field(name="check", default=())
    """What must hold before the image gets its name."""
    outputs: Annotated[tuple[Output, ...], _ALONE] = msgspec.field(name="output", default=())
    """The finished image, in each format that is wanted; none builds the layers alone."""


class Loaded(msgspec.Struct, frozen=True):
    """A recipe as it was read, file names absolute."""

    path: str
    text: str
    recipe: Recipe
    arguments: dict[str, str] = msgspec.field(default_factory=dict)
    """The value of each of its arguments."""
    given: Mapping[str, str] = msgspec.field(default_factory=dict)
    """Those that were given, to it and to the recipes that it starts from."""

    @property
    def variant(self) -> str:
        """What tells apart images that one recipe makes by its arguments; empty for a recipe without any."""
        outputs = self.recipe.outputs
        return "" if not self.arguments else outputs[0].path if outputs else self.recipe.image.name

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


def load_recipe(path: str, given: Mapping[str, str] = MappingProxyType({})) -> Loaded:
    """The recipe at `path`, its file names relative to its folder; `given` are values of arguments, of which it takes
    those that it has. ConfigError, with the line, when it is wrong."""
    text = read_text(path, "a recipe")
    where = absolute(path)
    parsed, arguments = _parsed(text, where, given)
    recipe = with_absolute_paths(parsed, os.path.dirname(where))
    if not recipe.image.from_.startswith((OCI, *WEB)):
        base = os.path.join(os.path.dirname(where), recipe.image.from_)
        recipe = replace(recipe, image=replace(recipe.image, from_=os.path.abspath(base)))
    return Loaded(where, text, recipe, arguments, given)


def parse_recipe(text: str, name: str = "recipe") -> Recipe:
    """The recipe that a TOML text is, file names as they are written. ConfigError as `load_recipe`."""
    return _parsed(text, name, {})[0]


def _parsed(text: str, name: str, given: Mapping[str, str]) -> tuple[Recipe, dict[str, str]]:
    from imgtool.build.recipe_checks import check

    with reading(text, name) as written:
        arguments = resolve(written, given)
        stated = written.pop("args", {})
        document = expanded(written, arguments)
        table = document.pop("machine", {})
        if not isinstance(table, dict):
            place: Place = ("machine", 0) if isinstance(table, list) else ("machine",)
            raise Wrong(place, "machine is a table: [machine]", 'its type is said in it: machine = "q35"')
        machine = to_machine(table, Guest, ("machine",))
        with _one_output(document):
            recipe = replace(to_struct({**document, "args": stated}, Recipe), machine=machine)
            check(recipe)
    layers = tuple(replace(layer, env=_env(layer, arguments)) for layer in recipe.layers)
    checks = tuple(replace(check, env=_env(check, arguments)) for check in recipe.checks)
    return replace(recipe, layers=layers, checks=checks), arguments


def _env(step: Layer | Check, arguments: Mapping[str, str]) -> dict[str, str]:
    return {**step.env, **{name: arguments[name] for name in step.args}}


@contextlib.contextmanager
def _one_output(document: dict[str, Any]) -> Iterator[None]:
    """Has a list where one table is written alone; within, what is wrong with it is said as if there were no list."""
    alone = isinstance(document.get("output"), dict)
    if alone:
        document["output"] = [document["output"]]
    try:
        yield
    except Wrong as wrong:
        if alone and wrong.place[:2] == ("output", 0):
            wrong.message = wrong.message.replace("output[0]", "output")
            wrong.hint = None if wrong.hint is None else wrong.hint.replace("output[0]", "output")
        raise


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
