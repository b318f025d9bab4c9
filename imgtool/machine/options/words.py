"""Settings in words: what the command line and a profile hold before it is typed.

Wherever a profile could have a table it may have the option string instead (`machine = "q35,smm=on"`,
`drive = ["file=a.qcow2,if=virtio"]`), and the command line always does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from imgtool.errors import UsageError
from imgtool.image.names import printable
from imgtool.machine.config import Machine
from imgtool.machine.options import devices, processor
from imgtool.machine.options.fields import kinds, read
from imgtool.machine.options.network import parse_network, parse_networks
from imgtool.machine.options.paths import with_absolute_paths
from imgtool.machine.options.storage import parse_drive

_ONE: dict[str, Callable[[str], msgspec.Struct]] = {
    "machine": processor.parse_machine,
    "cpu": processor.parse_cpu,
    "smp": processor.parse_smp,
    "memory": processor.parse_memory,
    "hugepages": processor.parse_hugepages,
    "boot": devices.parse_boot,
    "display": devices.parse_display,
    "tpm": devices.parse_tpm,
    "rng": devices.parse_rng,
    "balloon": devices.parse_balloon,
    "vsock": devices.parse_vsock,
    "watchdog": devices.parse_watchdog,
    "rtc": devices.parse_rtc,
    "audio": devices.parse_audio,
    "cloud-init": devices.parse_cloud_init,
}
"""Settings that are one table."""

_MANY: dict[str, Callable[[str], msgspec.Struct]] = {
    "drive": parse_drive,
    "serial": lambda text: devices.parse_port("--serial", text),
    "parallel": lambda text: devices.parse_port("--parallel", text),
    "share": devices.parse_share,
}
"""Settings that are a list of tables."""

_SWITCHES = ("tpm", "rng", "balloon", "watchdog", "hugepages")
"""Tables that are whole without a word in them: `rng = true`."""


TABLES = {
    "uefi": ("firmware", "uefi"),
    "uefi-vars": ("firmware", "vars"),
    "secure-boot": ("firmware", "secure-boot"),
    "bios": ("firmware", "bios"),
    "sandbox": ("safety", "sandbox"),
    "run-as": ("safety", "run-as"),
    "cloud-init": ("cloud-init", "user-data"),
    "meta-data": ("cloud-init", "meta-data"),
    "network-config": ("cloud-init", "network-config"),
    "ssh-key": ("cloud-init", "ssh-key"),
    "hostname": ("cloud-init", "hostname"),
    "user": ("cloud-init", "user"),
}
"""Options of `boot` that are a key of a table here."""

_QEMU = {
    "m": "memory",
    "cpus": "smp",
    "vcpus": "smp",
    "snapshot": "ephemeral",
    "disk": "drive",
    "image": "drive",
    "net": "network",
    "netdev": "network",
    "nic": "network",
    "nic-model": "network",
    "vnc": "display",
    "spice": "display",
    "virtfs": "share",
    "enable-kvm": "accel",
}
"""Words of QEMU and of other launchers: what holds the same here."""


def placed(name: str) -> str | None:
    """The setting, dotted where it is a key of a table, that is meant by `name`, which is none."""
    return ".".join(TABLES[name]) if name in TABLES else _QEMU.get(name)


def spellings(name: str) -> tuple[str, ...]:
    """What `typed` reads the setting `name` from, beside tables, as JSON Schema calls it. Arrays are of strings."""
    found = []
    if name in _ONE:
        found += ["string", "integer"]
    if name in _SWITCHES:
        found.append("boolean")
    if name in _MANY or name in ("network", "numa"):
        found.append("string")
    if name == "numa":
        found.append("array")
    return tuple(found)


def typed(name: str, value: Any) -> Any:
    """The setting `name` with its option strings read into plain tables, as `msgspec.convert` takes them. What holds
    no option string is returned as it is. UsageError from the option's parser."""
    if name == "vga" and isinstance(value, str):
        return read("--vga", name, value, kinds(Machine)[name])
    if name == "accel" and isinstance(value, str):
        return processor.parse_accel(value)
    if name in _SWITCHES and isinstance(value, bool):
        return {} if value else None
    if name in _ONE and isinstance(value, str | int) and not isinstance(value, bool):
        return _plain(_ONE[name](str(value)))
    if name in _MANY:
        return [
            _plain(_MANY[name](item)) if isinstance(item, str) else item
            for item in (value if isinstance(value, list | tuple) else [value])
        ]
    if name == "network":
        return _networks(value)
    if name == "numa" and isinstance(value, list | tuple | str):
        return _plain(processor.parse_numa([value] if isinstance(value, str) else value))
    return value


def _networks(value: Any) -> list[Any]:
    items = list(value) if isinstance(value, list | tuple) else [value]
    if all(isinstance(item, str) for item in items):
        return [_plain(network) for network in parse_networks(items)]
    return [_plain(parse_network(item)) if isinstance(item, str) else item for item in items]


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value)


def from_words(words: Mapping[str, Any], directory: str | None = None) -> Machine:
    """A machine from settings by their names in a profile, each a value or an option string. File names are made
    absolute from `directory`, which None makes the current one. UsageError when an option string is wrong, or a value
    is of another type."""
    try:
        machine = msgspec.convert({name: typed(name, value) for name, value in words.items()}, Machine)
    except msgspec.ValidationError as error:
        raise UsageError(f"this is no machine: {error}") from error
    return with_absolute_paths(machine, os.getcwd() if directory is None else directory)


def with_first_disk(words: Mapping[str, Any], image: str, format: str | None) -> dict[str, Any]:
    """`words` with `image` in front of the drives. UsageError for a text file that QEMU would take for a raw disk."""
    if format is None and image.endswith(".toml"):
        raise _no_disk(image)
    disk = {"file": image, "if": "virtio", **({"format": format} if format else {})}
    return {**words, "drive": [disk, *typed("drive", words.get("drive", []))]}


def _no_disk(image: str) -> UsageError:
    name = printable(image)
    hint = (
        f"a layer of a recipe is {name}@LAYER, a machine's settings are read by --profile; --format raw makes it one"
    )
    return UsageError(f"{name} is not a disk", hint=hint)


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a profile (`under`) with those of the command line on top.

    A single value replaces the profile's, a table is merged key by key; drives, shares and arguments are added to
    the profile's, and any other list (networks, ports, NUMA) takes its place.
    """
    merged = {name: typed(name, value) for name, value in under.items()}
    for name, value in over.items():
        new = typed(name, value)
        old = merged.get(name)
        if name in _ADDED and isinstance(old, list | tuple):
            merged[name] = [*old, *new]
        elif name in _ONE | {"firmware": None, "safety": None} and isinstance(old, dict) and isinstance(new, dict):
            merged[name] = _merge_tables(old, new)
        else:
            merged[name] = new
    return merged


_ADDED = ("drive", "share", "arguments")


def _merge_tables(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    both = {**old, **new}
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            both[key] = {**old[key], **value}
    return both
