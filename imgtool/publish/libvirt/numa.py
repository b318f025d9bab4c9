"""NUMA nodes, and what the guest's ACPI table HMAT says of their memory.

libvirt (6.6) makes the table where there are `<interconnects>`, and finds the initiator of a node by them.
"""

from __future__ import annotations

from typing import get_args
from xml.etree.ElementTree import Element

from imgtool.machine.config import Machine
from imgtool.machine.values.processor import HmatHierarchy, NumaHmatLb
from imgtool.publish.libvirt.words import Notes, kib, put

HIERARCHIES = get_args(HmatHierarchy)
"""By libvirt's numbers for them."""
ASSOCIATIVITIES = {"none": "none", "direct": "direct", "complex": "full"}
CACHE_POLICIES = {"none": "none", "write-back": "writeback", "write-through": "writethrough"}


def add_nodes(cpu: Element, machine: Machine, notes: Notes) -> None:
    wanted = machine.numa
    for place, _ in enumerate(wanted.cpus):
        notes.add(f"numa.cpu[{place}]", "libvirt names a node's CPUs by their numbers")
    if not wanted.nodes:
        return
    numa = put(cpu, "numa")
    for place, node in enumerate(wanted.nodes):
        setting = f"numa.node[{place}]"
        size = kib(node.mem or 0, f"{setting}.mem", notes)
        cell = put(numa, "cell", id=node.nodeid, cpus=",".join(node.cpus) or None, memory=size, unit="KiB")
        near = [one for one in wanted.distances if one.src == node.nodeid]
        if near:
            distances = put(cell, "distances")
            for one in near:
                put(distances, "sibling", id=one.dst, value=one.val)
        _add_caches(cell, machine, node.nodeid, notes)
        if node.policy is not None and not node.host_nodes:
            notes.add(f"{setting}.policy", "a policy is about host-nodes, and it names none")
        if node.initiator not in (None, initiator_of(node.nodeid, wanted.hmat_lb)):
            notes.add(f"{setting}.initiator", "libvirt takes the one with the least latency, or the most bandwidth")
        notes.rest(node, setting, ["nodeid", "cpus", "mem", "host_nodes", "policy", "initiator"])
    _add_interconnects(numa, machine, notes)


def initiator_of(node: int | None, told: tuple[NumaHmatLb, ...]) -> int | None:
    """The initiator that libvirt gives a node: the one of the least latency, else of the most bandwidth."""
    latencies = [(one.latency, one.initiator) for one in told if one.target == node and one.latency is not None]
    if latencies:
        return min(latencies, key=lambda pair: pair[0])[1]
    bandwidths = [(one.bandwidth, one.initiator) for one in told if one.target == node and one.bandwidth is not None]
    return max(bandwidths, key=lambda pair: pair[0])[1] if bandwidths else None


def _add_caches(cell: Element, machine: Machine, node: int | None, notes: Notes) -> None:
    for place, one in enumerate(machine.numa.hmat_cache):
        if one.node_id != node:
            continue
        cache = put(
            cell,
            "cache",
            level=one.level,
            associativity=ASSOCIATIVITIES[one.associativity],
            policy=CACHE_POLICIES[one.policy],
        )
        put(cache, "size", value=kib(one.size, f"numa.hmat-cache[{place}].size", notes), unit="KiB")
        put(cache, "line", value=one.line, unit="B")


def _add_interconnects(numa: Element, machine: Machine, notes: Notes) -> None:
    told = machine.numa.hmat_lb
    if not told:
        return
    interconnects = put(numa, "interconnects")
    for place, one in enumerate(told):
        access, _, kind = one.data_type.partition("-")
        cache = HIERARCHIES.index(one.hierarchy) or None
        element = put(interconnects, kind, initiator=one.initiator, target=one.target, cache=cache, type=access)
        if one.bandwidth is not None:
            element.set("value", str(kib(one.bandwidth, f"numa.hmat-lb[{place}].bandwidth", notes)))
            element.set("unit", "KiB")
        else:
            element.set("value", str(one.latency or 0))
