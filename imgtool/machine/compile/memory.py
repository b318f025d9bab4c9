"""CPU, topology, memory and NUMA."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import msgspec

from imgtool.errors import ConfigError
from imgtool.machine.board import Board
from imgtool.machine.compile.encode import compact, keyed, word
from imgtool.machine.compile.parts import Parts
from imgtool.machine.config import DEFAULT_MEMORY, Machine
from imgtool.machine.host import Host
from imgtool.machine.smp import topology
from imgtool.machine.values.network import VhostUser
from imgtool.machine.values.processor import Cpu, NumaNode
from imgtool.sizes import format_size


def add_processor(parts: Parts, machine: Machine, kind: Board, host: Host) -> None:
    cpu = cpu_argument(machine.cpu, kind, host)
    if cpu is not None:
        parts.add("-cpu", cpu)
    found = topology(machine.smp)
    levels = {"sockets": found.sockets, "dies": found.dies, "clusters": found.clusters}
    # Only some boards (and QEMU versions) know dies and clusters; 1 is what all others have.
    shown = [f"{key}={value}" for key, value in levels.items() if key == "sockets" or value != 1]
    parts.add(
        "-smp",
        ",".join(
            [f"cpus={found.cpus},maxcpus={found.maxcpus}", *shown, f"cores={found.cores},threads={found.threads}"]
        ),
    )


def cpu_argument(cpu: Cpu, kind: Board, host: Host) -> str | None:
    """`-cpu`: `host` where the accelerator can show its own CPU, else `max`; an ISA PC keeps its 486."""
    model = cpu.model
    if model is None:
        if kind.family == "isapc" and not cpu.features and not cpu.properties:
            return None
        model = "max" if host.accelerator == "tcg" else "host"
    properties = [f"{key}={word(value)}" for key, value in cpu.properties.items()]
    return ",".join([model, *cpu.features, *properties])


def memory_size(machine: Machine) -> int:
    """Bytes at the start; without --memory the sum of what NUMA nodes name, else imgtool's default."""
    if machine.memory.size is not None:
        return machine.memory.size
    named = [node.mem for node in machine.numa.nodes]
    if any(named) and None not in named:
        return sum(mem for mem in named if mem is not None)
    return DEFAULT_MEMORY


def node_sizes(machine: Machine) -> list[int]:
    """Each NUMA node's memory: what it names, and for the others equal shares of the rest, in whole MiB. ConfigError
    when that is not the machine's memory."""
    total = memory_size(machine)
    named = [node.mem for node in machine.numa.nodes]
    rest = total - sum(mem for mem in named if mem is not None)
    silent = named.count(None)
    sizes = [f"mem({format_size(mem)})" for mem in named if mem is not None]
    if rest < 0 or (rest and not silent):
        said = format_size(total - rest)
        raise ConfigError(
            f"the NUMA nodes have {' + '.join(sizes)} = {said} ≠ memory({format_size(total)})",
            hint=f"say --memory {said}, or leave mem= out of a node and it takes the rest",
        )
    if silent and rest < silent << 20:
        raise ConfigError("nothing is left of the memory for the NUMA nodes without mem=", hint="raise --memory")
    share = (rest // silent) >> 20 << 20 if silent else 0
    found = [mem if mem is not None else share for mem in named]
    if silent:
        last = max(at for at, mem in enumerate(named) if mem is None)
        found[last] += rest - share * silent
    return found


def shares_memory(machine: Machine) -> bool:
    """Another process (virtiofsd, a vhost-user switch) reads and writes the guest's memory."""
    return any(share.type == "virtiofs" for share in machine.shares) or any(
        isinstance(network, VhostUser) for network in machine.networks or ()
    )


def add_memory(parts: Parts, machine: Machine, host: Host) -> None:
    """-m, the backends behind it, and -numa."""
    size = memory_size(machine)
    value = f"size={format_size(size)}"
    if machine.memory.maxmem is not None:
        value += f",slots={machine.memory.slots or 0},maxmem={format_size(machine.memory.maxmem)}"
    parts.add("-m", value)
    if machine.numa.nodes:
        _add_nodes(parts, machine, host)
    elif machine.hugepages is not None or shares_memory(machine):
        parts.object(backend("ram0", size, machine, _pages(host), None))
        parts.machine["memory-backend"] = "ram0"
    for (src, dst), far in distances(machine).items():
        parts.add("-numa", f"dist,src={src},dst={dst},val={far}")
    for place in machine.numa.cpus:
        parts.add("-numa", keyed("cpu", msgspec.to_builtins(place)))
    _add_hmat(parts, machine)


def _add_hmat(parts: Parts, machine: Machine) -> None:
    """The heterogeneous memory attribute table. QEMU takes a latency only for CPUs that have their node already."""
    if has_hmat(machine):
        parts.machine["hmat"] = True
    for kind, items in (("hmat-lb", machine.numa.hmat_lb), ("hmat-cache", machine.numa.hmat_cache)):
        for item in items:
            parts.add("-numa", keyed(kind, msgspec.to_builtins(item)))


def has_hmat(machine: Machine) -> bool:
    numa = machine.numa
    return bool(numa.hmat_lb or numa.hmat_cache) or any(node.initiator is not None for node in numa.nodes)


def node_numbers(machine: Machine) -> list[int]:
    return [place if node.nodeid is None else node.nodeid for place, node in enumerate(machine.numa.nodes)]


_USUAL_DISTANCE = 20


def distances(machine: Machine) -> dict[tuple[int, int], int]:
    """From node to node: those that the machine names, and those that QEMU wants to hear beside them: all of them
    once there is one, and both ways once a way is longer than the one back."""
    found = {(one.src, one.dst): one.val for one in machine.numa.distances}
    if not found:
        return found
    both_ways = any(found.get((dst, src), value) != value for (src, dst), value in found.items())
    for src, dst in combinations(sorted(node_numbers(machine)), 2):
        there, back = found.get((src, dst)), found.get((dst, src))
        if there is None and (back is None or both_ways):
            there = found[src, dst] = _USUAL_DISTANCE if back is None else back
        if back is None and both_ways and there is not None:
            found[dst, src] = there
    return found


def _add_nodes(parts: Parts, machine: Machine, host: Host) -> None:
    sizes = node_sizes(machine)
    for nodeid, node, size in zip(node_numbers(machine), machine.numa.nodes, sizes, strict=True):
        words = [f"node,nodeid={nodeid}", *(f"cpus={item}" for item in node.cpus)]
        if size:
            # `mem=` is gone from newer machine types; a backend for each node works with all.
            parts.object(backend(f"ram-node{nodeid}", size, machine, _pages(host), node))
            words.append(f"memdev=ram-node{nodeid}")
        if node.initiator is not None:
            words.append(f"initiator={node.initiator}")
        parts.add("-numa", ",".join(words))


def _pages(host: Host) -> str | None:
    return host.hugepages.path if host.hugepages else None


def backend(name: str, size: int, machine: Machine, mount: str | None, node: NumaNode | None) -> dict[str, Any]:
    """A memory backend; `mount` is the host's hugetlbfs. QAPI: MemoryBackendProperties."""
    pages = machine.hugepages
    share: bool | None = True if shares_memory(machine) else None
    value: dict[str, Any] = {"qom-type": "memory-backend-ram", "id": name, "size": size}
    if pages is not None:
        value |= {"qom-type": "memory-backend-file", "mem-path": pages.path or mount}
        value["prealloc"] = pages.prealloc is not False
        share = share or pages.share
    elif share:
        value["qom-type"] = "memory-backend-memfd"
    value["share"] = share
    if node is not None and node.host_nodes:
        value |= {"host-nodes": host_nodes(node), "policy": node.policy or "bind"}
    return compact(value)


def host_nodes(node: NumaNode) -> list[int]:
    return [number for item in node.host_nodes for number in cpu_range(item)]


def cpu_range(text: str) -> range:
    """The numbers of `4` or `0-3`. ConfigError for anything else."""
    first, _, last = text.partition("-")
    try:
        found = range(int(first), int(last or first) + 1)
    except ValueError:
        found = range(0)
    if not found:
        raise ConfigError(f"{text!r} is not a range of numbers", hint="write 0-3, or 4")
    return found
