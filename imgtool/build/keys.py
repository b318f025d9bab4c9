"""Keys: the name under which a layer is kept, made of everything that can change what is in it, and of nothing else.

A key is the SHA-256 of a `KeyDocument` in canonical JSON. What cannot change the result has a type of its own,
`Inert`: it is read from the recipe beside the document and never gets into it. The document is kept with the layer,
so that the next build can say which very input changed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from imgtool.build import inputs
from imgtool.build.inputs import Entry, files_of, target_of
from imgtool.build.memory import Memory
from imgtool.build.recipe import Copy, Guest, Layer, Recipe, executor_of, seconds_of, timeout_of
from imgtool.errors import ConfigError
from imgtool.image.names import printable
from imgtool.machine.values.network import User

SCHEMA = 1
"""Changes when the same document would have another result: when steps are done in another way."""


class Disk(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The image that the layers are overlays of, and how they are made."""

    size: int
    """Bytes."""
    format: str = "qcow2"
    options: dict[str, str] = {}


class Hardware(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What of the machine a guest can see and remember. Files are given by the SHA-256 of their bytes."""

    architecture: str
    machine: dict[str, Any]
    firmware: dict[str, Any]
    cpu: dict[str, Any]
    networks: list[dict[str, Any]]
    """The cards' models and addresses."""
    drives: list[dict[str, Any]]
    cdrom: str | None
    kernel: str | None
    initrd: str | None
    dtb: str | None
    append: str | None
    tpm: bool
    cloud_init: dict[str, Any] | None
    arguments: list[str]


class CopyInput(msgspec.Struct, frozen=True, kw_only=True):
    to: str
    owner: str | None
    mode: str | None
    files: list[Entry]


class ScriptInput(msgspec.Struct, frozen=True, kw_only=True):
    sha256: str
    mode: str
    interpreter: list[str]


class Step(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What is done in the guest."""

    copy: list[CopyInput]
    run: list[str]
    script: ScriptInput | None
    reboot: bool
    wait: list[str]
    seal: list[str]
    fetch: list[str]
    env: dict[str, str]
    secrets: list[str]
    """Their names, never more."""
    executor: str


class KeyDocument(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """All that a layer's content depends on."""

    schema: int
    parent: str
    """The content digest of what the layer stands on."""
    disk: Disk
    machine: Hardware
    ready: str | None
    step: Step

    def key(self) -> str:
        """64 hexadecimal digits."""
        return hashlib.sha256(canonical(self)).hexdigest()


class Inert(msgspec.Struct, frozen=True, kw_only=True):
    """What a layer is made with that cannot change what is in it."""

    name: str
    max_age: float | None
    timeout: float


def canonical(value: Any) -> bytes:
    """One spelling: keys sorted, no spaces, ASCII; a name that is not UTF-8 keeps its bytes as surrogates."""
    plain = msgspec.to_builtins(value)
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def plain(value: Any) -> Any:
    """`value` as it reads once it was written down: comparable with what a file holds."""
    return json.loads(canonical(value))


def inert(layer: Layer) -> Inert:
    max_age = None if layer.max_age is None else seconds_of(layer.max_age)
    return Inert(name=layer.name, max_age=max_age, timeout=timeout_of(layer))


def document(
    recipe: Recipe, layer: Layer, *, parent: str, disk: Disk, hardware: Hardware, memory: Memory
) -> KeyDocument:
    """The key document of `layer`, when it stands on the content `parent`. ConfigError for an input that cannot be
    read."""
    return KeyDocument(
        schema=SCHEMA,
        parent=parent,
        disk=disk,
        machine=hardware,
        ready=recipe.machine.ready,
        step=step(recipe, layer, memory),
    )


def step(recipe: Recipe, layer: Layer, memory: Memory) -> Step:
    return Step(
        copy=[copied(copy, memory) for copy in layer.copy],
        run=list(layer.run),
        script=_script(layer, memory),
        reboot=layer.reboot,
        wait=list(layer.wait),
        seal=list(layer.seal),
        fetch=[fetch.from_ for fetch in layer.fetch],
        env=layer.env,
        secrets=sorted(layer.secrets),
        executor=executor_of(recipe, layer),
    )


def copied(copy: Copy, memory: Memory) -> CopyInput:
    """ConfigError for what cannot be copied."""
    files = inputs.copied(copy, memory)
    entries = [found.entry for found in files]
    if copy.mode is not None:  # then what they have here, by another umask, counts for nothing
        entries = [replace(entry, mode="") for entry in entries]
    return CopyInput(to=target_of(copy, files), owner=copy.owner, mode=copy.mode, files=entries)


def _script(layer: Layer, memory: Memory) -> ScriptInput | None:
    if layer.script is None:
        return None
    if os.path.isdir(layer.script):
        raise ConfigError(f"the script {printable(layer.script)} is a folder", path=layer.script)
    (found,) = files_of(layer.script, memory)
    assert found.entry.sha256 is not None
    return ScriptInput(sha256=found.entry.sha256, mode=found.entry.mode, interpreter=list(layer.interpreter))


PLACES = ("fda", "fdb", "hda", "hdb", "hdc", "hdd")
"""Disks that are named by where they are, like `cdrom`."""


def hardware(machine: Guest, architecture: str, memory: Memory) -> Hardware:
    """What of `machine` counts. Left out: its name, accelerator, CPU count and topology, memory, display, ports, host
    folders, and whatever else lies on the host's side."""

    def sha256(path: str | None) -> str | None:
        return None if path is None else memory.sha256(path)

    firmware = plain(machine.firmware)
    firmware.pop("vars", None)
    if machine.firmware.bios is not None:
        firmware["bios"] = sha256(machine.firmware.bios)
    cloud_init = None
    if machine.cloud_init is not None:
        cloud_init = plain(machine.cloud_init)
        for name in ("user-data", "meta-data", "network-config"):
            if name in cloud_init:
                cloud_init[name] = sha256(cloud_init[name])
        if "ssh-key" in cloud_init:
            cloud_init["ssh-key"] = [sha256(path) for path in machine.cloud_init.ssh_keys]
    # Without a word there is one card, as with `network = ["user"]`.
    cards = (User(),) if machine.networks is None else machine.networks
    networks = [{"model": card.model, "mac": card.mac} for card in cards]
    drives = []
    for drive in machine.drives:
        shown = plain(drive)
        drives.append(
            {key: shown[key] for key in ("if", "media", "serial") if key in shown} | {"file": sha256(drive.file)}
        )
    # Only where there are some: layers that were made without go by the keys they had.
    drives += [{"place": place, "file": sha256(file)} for place in PLACES if (file := getattr(machine, place))]
    return Hardware(
        architecture=architecture,
        machine=plain(machine.machine),
        firmware=firmware,
        cpu=plain(machine.cpu),
        networks=networks,
        drives=drives,
        cdrom=sha256(machine.cdrom),
        kernel=sha256(machine.kernel),
        initrd=sha256(machine.initrd),
        dtb=sha256(machine.dtb),
        append=machine.append,
        tpm=machine.tpm is not None,
        cloud_init=cloud_init,
        arguments=list(machine.arguments),
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What changed between two key documents (as builtins), for people: one line an input."""
    return list(_changes(before, now, ""))


def _changes(before: Any, now: Any, place: str) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            yield from _changes(before.get(key), now.get(key), f"{place}.{key}" if place else key)
    elif place.endswith(".files") and isinstance(before, list) and isinstance(now, list):
        yield from _file_changes(before, now, place.removesuffix(".files"))
    elif _records(before) and _records(now):
        for number in range(max(len(before), len(now))):
            old = before[number] if number < len(before) else None
            new = now[number] if number < len(now) else None
            yield from _changes(old, new, f"{place}[{number}]")
    elif before != now:
        if place == "parent":
            yield "what it stands on has another content"
        else:
            yield f"{place}: {_shown(before)} → {_shown(now)}"


def _records(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _file_changes(before: list[dict[str, Any]], now: list[dict[str, Any]], place: str) -> Iterator[str]:
    old = {entry["path"]: entry for entry in before}
    new = {entry["path"]: entry for entry in now}
    for path in sorted({*old, *new}):
        name = f"{place}: {printable(path) or 'the file'}"
        if path not in old:
            yield f"{name} is new"
        elif path not in new:
            yield f"{name} is gone"
        else:
            for field, what in _FIELDS.items():
                if old[path].get(field) != new[path].get(field):
                    yield f"{name}: {what} {_shown(old[path].get(field))} → {_shown(new[path].get(field))}"


_FIELDS = {"kind": "kind", "sha256": "bytes", "mode": "mode", "target": "link target"}


def _shown(value: Any) -> str:
    if value is None or value == []:
        return "none"
    if isinstance(value, str) and len(value) == 64 and not value.strip("0123456789abcdef"):
        return value[:12]
    text = printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=True))
    return text if len(text) <= 100 else f"{text[:99]}…"
