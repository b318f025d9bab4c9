"""CPU, topology, memory and NUMA."""

from __future__ import annotations

from typing import Any
from xml.etree.ElementTree import Element

from imgtool.machine.compile.memory import host_nodes, shares_memory
from imgtool.machine.config import Machine
from imgtool.machine.values.base import PropertyValue
from imgtool.publish.libvirt.numa import add_nodes
from imgtool.publish.libvirt.words import Notes, kib, put, switch

_OFF = (False, "off", "no", "false")
_ON = (True, "on", "yes", "true")
_MODES = {"host": "host-passthrough", "max": "maximum"}
_POLICIES = {"bind": "strict", "preferred": "preferred", "interleave": "interleave"}


def add_memory(root: Element, machine: Machine, notes: Notes) -> None:
    memory = machine.memory
    if memory.maxmem is not None:
        put(root, "maxMemory", kib(memory.maxmem, "memory.maxmem", notes), slots=memory.slots, unit="KiB")
    size = kib(memory.size or 0, "memory", notes)
    put(root, "memory", size, unit="KiB")
    put(root, "currentMemory", size, unit="KiB")
    _add_backing(root, machine, notes)
    put(
        root,
        "vcpu",
        machine.smp.maxcpus,
        placement="static",
        current=machine.smp.cpus if machine.smp.cpus != machine.smp.maxcpus else None,
    )
    _add_tuning(root, machine, notes)


def _add_backing(root: Element, machine: Machine, notes: Notes) -> None:
    pages, shared = machine.hugepages, shares_memory(machine)
    if pages is None and not shared:
        return
    backing = put(root, "memoryBacking")
    if pages is not None:
        huge = put(backing, "hugepages")
        if pages.page_size is not None:
            put(huge, "page", size=kib(pages.page_size, "hugepages.page-size", notes), unit="KiB")
        if pages.prealloc is False:
            notes.add("hugepages.prealloc", "libvirt always takes huge pages at the start")
        known = ["page_size", "prealloc", "share"]
        notes.rest(pages, "hugepages", known, "libvirt's hugetlbfs mounts are in its qemu.conf")
    elif shared:
        put(backing, "source", type="memfd")
    if shared or (pages is not None and pages.share):
        put(backing, "access", mode="shared")


def _add_tuning(root: Element, machine: Machine, notes: Notes) -> None:
    bound = [node for node in machine.numa.nodes if node.host_nodes]
    if not bound:
        return
    tuning = put(root, "numatune")
    for node in bound:
        mode = _POLICIES.get(node.policy or "bind")
        if mode is None:
            notes.add("numa.node.policy", f"libvirt binds the memory of a node, and has no {node.policy}")
            continue
        nodeset = ",".join(str(number) for number in host_nodes(node))
        put(tuning, "memnode", cellid=node.nodeid, mode=mode, nodeset=nodeset)


def add_cpu(root: Element, features: Element, machine: Machine, notes: Notes) -> None:
    wanted = machine.cpu
    model = wanted.model or "max"
    mode = _MODES.get(model, "custom")
    cpu = put(root, "cpu", mode=mode, match="exact" if mode == "custom" else None, check="none")
    if mode == "custom":
        put(cpu, "model", model, fallback="forbid")
    smp: dict[str, Any] = {"sockets": machine.smp.sockets, "dies": machine.smp.dies}
    if machine.smp.clusters not in (None, 1):
        smp["clusters"] = machine.smp.clusters  # libvirt 10.1
    put(cpu, "topology", **smp, cores=machine.smp.cores, threads=machine.smp.threads)
    policies = {feature[1:]: "require" if feature[0] == "+" else "disable" for feature in wanted.features}
    for name, value in wanted.properties.items():
        if name == "kvm" and value in _OFF:
            put(put(features, "kvm"), "hidden", state="on")
        elif value in _ON or value in _OFF:
            policies[name] = "require" if value in _ON else "disable"
        else:
            notes.add(f"cpu.properties.{name}")
    for name, policy in policies.items():
        put(cpu, "feature", policy=policy, name=name)
    add_nodes(cpu, machine, notes)


def machine_words(properties: dict[str, PropertyValue]) -> list[str]:
    """Properties of the machine that have no element: QEMU takes `-machine` more than once, and merges them."""
    words = []
    for name, value in properties.items():
        said = switch(value) if isinstance(value, bool) else str(value).replace(",", ",,")
        words += ["-machine", f"{name}={said}"]
    return words
