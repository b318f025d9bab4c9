"""CPU, topology, memory and NUMA."""

from __future__ import annotations

from typing import Any

from imgtool.errors import ConfigError
from imgtool.machine.board import Board
from imgtool.machine.compile.encode import compact, word
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
    if named and all(named):
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
        parts.object(_backend("ram0", size, machine, host, None))
        parts.machine["memory-backend"] = "ram0"
    for distance in machine.numa.distances:
        parts.add("-numa", f"dist,src={distance.src},dst={distance.dst},val={distance.val}")
    for place in machine.numa.cpus:
        ids = {name: getattr(place, f"{name}_id") for name in ("node", "socket", "die", "cluster", "core", "thread")}
        parts.add("-numa", ",".join(["cpu", *(f"{name}-id={at}" for name, at in ids.items() if at is not None)]))


def _add_nodes(parts: Parts, machine: Machine, host: Host) -> None:
    sizes = node_sizes(machine)
    for place, (node, size) in enumerate(zip(machine.numa.nodes, sizes, strict=True)):
        nodeid = place if node.nodeid is None else node.nodeid
        # `mem=` is gone from newer machine types; a backend for each node works with all.
        parts.object(_backend(f"ram-node{nodeid}", size, machine, host, node))
        words = [f"node,nodeid={nodeid}", *(f"cpus={item}" for item in node.cpus), f"memdev=ram-node{nodeid}"]
        if node.initiator is not None:
            parts.machine["hmat"] = True
            words.append(f"initiator={node.initiator}")
        parts.add("-numa", ",".join(words))


def _backend(name: str, size: int, machine: Machine, host: Host, node: NumaNode | None) -> dict[str, Any]:
    """A memory backend. QAPI: MemoryBackendProperties."""
    pages = machine.hugepages
    share: bool | None = True if shares_memory(machine) else None
    value: dict[str, Any] = {"qom-type": "memory-backend-ram", "id": name, "size": size}
    if pages is not None:
        path = pages.path or (host.hugepages.path if host.hugepages else None)
        value |= {"qom-type": "memory-backend-file", "mem-path": path, "prealloc": pages.prealloc is not False}
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
