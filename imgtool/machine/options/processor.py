"""`--machine`, `--accel`, `--cpu`, `--smp`, `--memory`, `--hugepages`, `--numa`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

import msgspec

from imgtool.errors import UsageError
from imgtool.image.names import printable
from imgtool.machine.config import Accelerator, Machine
from imgtool.machine.options.fields import build, kinds, read, scalars
from imgtool.machine.options.text import nearest, once, pairs, split
from imgtool.machine.values.base import PropertyValue
from imgtool.machine.values.devices import MachineType
from imgtool.machine.values.processor import (
    Cpu,
    Hugepages,
    Memory,
    Numa,
    NumaCpu,
    NumaDistance,
    NumaHmatCache,
    NumaHmatLb,
    NumaNode,
    Smp,
)

_ELSEWHERE = {
    "accel": "--accel",
    "kernel": "--kernel",
    "initrd": "--initrd",
    "append": "--append",
    "dtb": "--dtb",
    "firmware": "--bios",
    "memory-backend": "--hugepages or --numa",
    "memory": "--memory",
    "smp": "--smp",
    "boot": "--boot",
}
"""Properties of -machine that are options of their own."""


def parse_machine(text: str) -> MachineType:
    """`q35,smm=on`, `type=q35`."""
    found = _properties("--machine", text, first="type")
    kind = found.pop("type", None)
    for key in found:
        option = _ELSEWHERE.get(key.replace("_", "-").partition(".")[0])
        if option is not None:
            raise UsageError(f"--machine: {printable(key)} is an option of its own here", hint=f"use {option}")
    return MachineType(type=str(kind) if kind else None, properties=found)


def parse_accel(text: str) -> str:
    """`auto`, `kvm`, `tcg`, `hvf`."""
    name, comma, _ = text.partition(",")
    if comma and name in get_args(Accelerator):
        raise UsageError(
            f"--accel {name} takes no properties",
            hint=f"what QEMU itself is to be told of it stands behind `--`: -- -accel {printable(text)}",
        )
    if ":" in text:
        raise UsageError(
            f"--accel is one, not {printable(text)!r}",
            hint="--accel auto takes KVM where it works, and TCG elsewhere",
        )
    found: str = read("--accel", "accel", text, kinds(Machine)["accel"])
    return found


def parse_cpu(text: str) -> Cpu:
    """`MODEL,+feature,-feature,prop=value`, as in QEMU; the model may be left out."""
    parts = split(text)
    model = None
    if parts[0] and parts[0][0] not in "+-" and "=" not in parts[0]:
        model = parts.pop(0)
    features: list[str] = []
    properties: dict[str, PropertyValue] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if part[:1] in ("+", "-"):
            features.append(part)
        elif key:
            properties[key] = value if equals else "on"
        else:
            raise UsageError(
                "--cpu: nothing stands between two commas", hint="write MODEL,+feature,-feature,prop=value"
            )
    return Cpu(model=model, features=tuple(features), properties=properties)


def _properties(option: str, text: str, *, first: str) -> dict[str, PropertyValue]:
    """Keys that only QEMU knows: not checked here, but against this QEMU by `validate`."""
    found: dict[str, PropertyValue] = {}
    for place, part in enumerate(split(text) if text else []):
        key, equals, value = part.partition("=")
        if not equals:
            if place:
                raise UsageError(f"{option}: {printable(part)!r} has no value", hint=f"write {printable(part)}=on")
            key, value = first, part
        found[key] = value
    return found


def parse_smp(text: str) -> Smp:
    """`4`, or `cpus=8,sockets=2,dies=,clusters=,cores=,threads=,maxcpus=`."""
    return build("--smp", Smp, once("--smp", pairs("--smp", text, first="cpus", keys=scalars(Smp))))


def parse_memory(text: str) -> Memory:
    """`2G`, `size=2G,slots=2,maxmem=8G`; a bare number counts MiB, as with QEMU's -m."""
    return build(
        "--memory", Memory, once("--memory", pairs("--memory", text, first="size", keys=scalars(Memory))), unit="M"
    )


def parse_hugepages(text: str) -> Hugepages:
    """`` (the host's mount), `/dev/hugepages`, `path=…,page-size=2M,prealloc=on,share=on`."""
    words = once("--hugepages", pairs("--hugepages", text, first="path", keys=scalars(Hugepages)))
    return build("--hugepages", Hugepages, words)


def parse_numa(texts: Iterable[str]) -> Numa:
    """All `--numa` options: `node,cpus=0-1,mem=1G`, `dist,src=0,dst=1,val=20`, `cpu,node-id=0,socket-id=1`,
    `hmat-lb,…`, `hmat-cache,…`."""
    nodes: list[NumaNode] = []
    others: dict[str, list[Any]] = {kind: [] for kind in _NUMA}
    for text in texts:
        kind, _, rest = text.partition(",")
        kind = kind.removeprefix("type=")
        option = f"--numa {kind}"
        if kind == "node":
            nodes.append(_node(option, rest))
        elif kind in _NUMA:
            struct = _NUMA[kind]
            words = once(option, pairs(option, rest, first=None, keys=scalars(struct)))
            others[kind].append(build(option, struct, words))
        else:
            close = nearest(kind, ["node", *_NUMA])
            begins = f"it begins with node, {', '.join(_NUMA)}"
            raise UsageError(f"--numa has no {printable(kind)!r}", hint=f"did you mean {close}?" if close else begins)
    return Numa(
        nodes=tuple(nodes),
        distances=tuple(others["dist"]),
        cpus=tuple(others["cpu"]),
        hmat_lb=tuple(others["hmat-lb"]),
        hmat_cache=tuple(others["hmat-cache"]),
    )


_NUMA: dict[str, type[msgspec.Struct]] = {
    "dist": NumaDistance,
    "cpu": NumaCpu,
    "hmat-lb": NumaHmatLb,
    "hmat-cache": NumaHmatCache,
}
"""What --numa tells beside nodes."""


def _node(option: str, text: str) -> NumaNode:
    found = pairs(option, text, first=None, keys=[*kinds(NumaNode), "memdev"])
    if any(key == "memdev" for key, _ in found):
        raise UsageError(
            f"{option}: memdev names a memory backend", hint="say mem=SIZE: imgtool makes the backend itself"
        )
    lists = ("cpus", "host-nodes")
    cpus, host_nodes = (tuple(value for key, value in found if key == name) for name in lists)
    words = once(option, found, repeated=lists)
    return build(option, NumaNode, words, unit="M", cpus=cpus, host_nodes=host_nodes)
