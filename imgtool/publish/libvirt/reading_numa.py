"""NUMA nodes, and what is said of their memory, out of domain XML."""

from __future__ import annotations

from typing import Any
from xml.etree.ElementTree import Element

import msgspec

from imgtool.machine.values.processor import Numa, NumaDistance, NumaHmatCache, NumaHmatLb, NumaNode
from imgtool.publish.libvirt.numa import ASSOCIATIVITIES, CACHE_POLICIES, HIERARCHIES, initiator_of
from imgtool.publish.libvirt.reading_words import in_bytes, number
from imgtool.publish.libvirt.words import Notes

_POLICIES = {"strict": "bind", "preferred": "preferred", "interleave": "interleave"}


def read_numa(root: Element, notes: Notes) -> Numa:
    tunes = {tune.get("cellid"): tune for tune in root.findall("numatune/memnode")}
    told = tuple(_interconnects(root, notes))
    nodes: list[NumaNode] = []
    distances: list[NumaDistance] = []
    caches: list[NumaHmatCache] = []
    for cell in root.findall("cpu/numa/cell"):
        name = cell.get("id", str(len(nodes)))
        node = number(cell, "id")
        node = len(nodes) if node is None else node
        tune = tunes.get(name)
        policy = None if tune is None else _POLICIES.get(tune.get("mode", "strict"))
        nodes.append(
            NumaNode(
                nodeid=node,
                cpus=tuple((cell.get("cpus") or "").split(",")) if cell.get("cpus") else (),
                mem=in_bytes(number(cell, "memory") or 0, cell.get("unit")),
                initiator=None if cell.get("cpus") else initiator_of(node, told),
                host_nodes=() if tune is None else tuple(tune.get("nodeset", "").split(",")),
                policy=policy,  # type: ignore[arg-type]
            )
        )
        for sibling in cell.findall("distances/sibling"):
            to, far = number(sibling, "id"), number(sibling, "value")
            distances += [NumaDistance(src=node, dst=to or 0, val=far or 10)]
        caches += _caches(cell, node, notes)
    if root.find("numatune/memory") is not None:
        notes.add("numatune/memory", "imgtool binds the memory of NUMA nodes, each by itself")
    return Numa(nodes=tuple(nodes), distances=tuple(distances), hmat_lb=told, hmat_cache=tuple(caches))


def _interconnects(root: Element, notes: Notes) -> list[NumaHmatLb]:
    found = []
    for place, one in enumerate(root.findall("cpu/numa/interconnects/*")):
        value = number(one, "value") or 0
        if one.tag == "bandwidth":
            value = in_bytes(value, one.get("unit"))
        depth = number(one, "cache") or 0
        words = {
            "initiator": number(one, "initiator"),
            "target": number(one, "target"),
            "hierarchy": HIERARCHIES[depth] if 0 <= depth < len(HIERARCHIES) else None,
            "data-type": f"{one.get('type')}-{one.tag}",
            one.tag: value,
        }
        found += _as(NumaHmatLb, words, f"cpu/numa/interconnects/{one.tag}[{place}]", notes)
    return found


def _caches(cell: Element, node: int, notes: Notes) -> list[NumaHmatCache]:
    associativities = {word: name for name, word in ASSOCIATIVITIES.items()}
    policies = {word: name for name, word in CACHE_POLICIES.items()}
    found = []
    for place, cache in enumerate(cell.findall("cache")):
        size, line = cache.find("size"), cache.find("line")
        words = {
            "node-id": node,
            "size": None if size is None else in_bytes(number(size, "value") or 0, size.get("unit")),
            "level": number(cache, "level"),
            "associativity": associativities.get(cache.get("associativity", "")),
            "policy": policies.get(cache.get("policy", "")),
            "line": None if line is None else in_bytes(number(line, "value") or 0, line.get("unit", "B")),
        }
        found += _as(NumaHmatCache, words, f"cpu/numa/cell[{node}]/cache[{place}]", notes)
    return found


def _as(kind: Any, words: dict[str, Any], setting: str, notes: Notes) -> list[Any]:
    """A `kind` of these words; none, which is noted, where they make none."""
    try:
        return [msgspec.convert(words, kind)]
    except msgspec.ValidationError:
        notes.add(setting, "imgtool does not understand it")
        return []
