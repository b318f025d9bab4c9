"""NUMA: nodes, what belongs to them, and how far they are."""

from __future__ import annotations

from collections import Counter

from imgtool.errors import ConfigError
from imgtool.machine.checks.context import Context, Problems, attempt
from imgtool.machine.compile.memory import cpu_range, has_hmat, host_nodes, node_numbers, node_sizes
from imgtool.machine.smp import LEVELS, topology
from imgtool.machine.values.processor import Numa


def check_numa(context: Context) -> Problems:
    numa = context.machine.numa
    if not numa.nodes:
        if numa != Numa():
            yield ConfigError(
                "--numa speaks of nodes, but there is none", hint="add --numa node,cpus=…,mem=… for each"
            )
        return
    if not context.board.numa:
        yield ConfigError(f"machine {context.board.name} has no NUMA", hint="take --machine q35")
    problems: list[ConfigError] = []
    attempt(lambda: node_sizes(context.machine), problems)
    yield from problems
    numbers = node_numbers(context.machine)
    twice = [number for number, times in Counter(numbers).items() if times > 1]
    if twice:
        yield ConfigError(f"NUMA node {twice[0]} is there twice", hint="give each a nodeid= of its own")
    elif sorted(numbers) != list(range(len(numbers))):
        yield ConfigError(f"NUMA nodes are numbered from 0 without gaps, not {sorted(numbers)}")
    yield from _cpus(context)
    yield from _policies(context)
    yield from _distances(context, set(numbers))
    yield from _places(context, set(numbers))
    if has_hmat(context.machine):
        yield from _initiators(context)
        yield from _hmat(context, set(numbers))


def _cpus(context: Context) -> Problems:
    found = attempt(lambda: topology(context.machine.smp), [])
    nodes = context.machine.numa.nodes
    if found is None or not any(node.cpus for node in nodes) or context.machine.numa.cpus:
        return
    owner: dict[int, int] = {}
    for at, node in enumerate(nodes):
        for text in node.cpus:
            problems: list[ConfigError] = []
            numbers = attempt(lambda text=text: cpu_range(text), problems)  # type: ignore[misc]
            yield from problems
            if numbers is None:
                return
            if numbers[-1] >= found.maxcpus:
                yield ConfigError(
                    f"NUMA node {at} has CPU {numbers[-1]}, but the machine's CPUs are 0 to {found.maxcpus - 1}",
                    hint="raise --smp, or mend cpus=",
                )
                return
            for number in numbers:
                if owner.setdefault(number, at) != at:
                    yield ConfigError(f"CPU {number} is in NUMA node {owner[number]} and in node {at}")
                    return
    left = [number for number in range(found.maxcpus) if number not in owner]
    if left:
        yield ConfigError(
            f"CPU {left[0]} is in no NUMA node" + (f" (nor are {len(left) - 1} more)" if len(left) > 1 else ""),
            hint="every CPU up to maxcpus belongs to a node",
        )


def _policies(context: Context) -> Problems:
    for at, node in enumerate(context.machine.numa.nodes):
        if node.policy not in (None, "default") and not node.host_nodes:
            yield ConfigError(f"NUMA node {at}: policy={node.policy} needs host-nodes=", hint="such as host-nodes=0")
        if node.policy == "default" and node.host_nodes:
            yield ConfigError(f"NUMA node {at}: policy=default takes no host-nodes", hint="policy=bind does")
        problems: list[ConfigError] = []
        attempt(lambda node=node: host_nodes(node), problems)  # type: ignore[misc]
        yield from problems


def _distances(context: Context, numbers: set[int]) -> Problems:
    for item in context.machine.numa.distances:
        missing = {item.src, item.dst} - numbers
        if missing:
            yield ConfigError(f"--numa dist speaks of node {min(missing)}, which is not there")
        elif item.src == item.dst and item.val != 10:
            yield ConfigError(f"a NUMA node's distance to itself is 10, not {item.val}")
        elif item.src != item.dst and not 10 < item.val <= 255:
            yield ConfigError(
                f"--numa dist val={item.val}: the distance of two nodes is 11 to 255",
                hint="20 is twice as far as a node's own memory, 255 is out of reach",
            )
    for pair, times in Counter((one.src, one.dst) for one in context.machine.numa.distances).items():
        if times > 1:
            yield ConfigError(f"--numa dist from node {pair[0]} to node {pair[1]} is there {times} times")


def _places(context: Context, numbers: set[int]) -> Problems:
    """--numa cpu."""
    found = attempt(lambda: topology(context.machine.smp), [])
    owner: dict[tuple[int | None, ...], int] = {}
    for place in context.machine.numa.cpus:
        if place.node_id not in numbers:
            yield ConfigError(f"--numa cpu speaks of node {place.node_id}, which is not there")
        ids = {level: getattr(place, f"{level.removesuffix('s')}_id") for level in LEVELS}
        for level, at in ids.items():
            if found is not None and at is not None and at >= getattr(found, level):
                has = getattr(found, level)
                yield ConfigError(
                    f"--numa cpu has {level.removesuffix('s')}-id={at}, and there {_are(has, level)}",
                    hint=f"they are counted from 0; --smp {level}={at + 1} makes more",
                )
        other = owner.setdefault(tuple(ids.values()), place.node_id)
        if other != place.node_id:
            yield ConfigError(f"--numa cpu puts the same CPUs into node {other} and node {place.node_id}")


def _are(count: int, level: str) -> str:
    return f"is 1 {level.removesuffix('s')}" if count == 1 else f"are {count} {level}"


def _initiators(context: Context) -> Problems:
    """The table tells from which node's CPUs the memory of each is reached: QEMU's own choice of CPUs comes too late
    for it."""
    numa = context.machine.numa
    with_cpus = _with_cpus(context)
    if not with_cpus:
        yield ConfigError(
            "--numa: initiators and HMAT are about nodes with CPUs, and none names some",
            hint="say cpus= of the nodes, or --numa cpu,node-id=…,socket-id=…",
        )
        return
    for number, node in zip(node_numbers(context.machine), numa.nodes, strict=True):
        if number in with_cpus and node.initiator not in (None, number):
            yield ConfigError(
                f"NUMA node {number} has CPUs, and so is its own initiator", hint="leave initiator= out"
            )
        elif number not in with_cpus and node.initiator is None:
            yield ConfigError(
                f"NUMA node {number} has no CPUs, and no initiator",
                hint=f"initiator={min(with_cpus)} would be the nearest node that has some",
            )
        elif number not in with_cpus and node.initiator not in with_cpus:
            yield ConfigError(
                f"NUMA node {number}: initiator={node.initiator} is no node with CPUs",
                hint=f"such is {', '.join(str(one) for one in sorted(with_cpus))}",
            )


def _with_cpus(context: Context) -> set[int]:
    numa = context.machine.numa
    numbered = zip(node_numbers(context.machine), numa.nodes, strict=True)
    return {number for number, node in numbered if node.cpus} | {place.node_id for place in numa.cpus}


def _hmat(context: Context, numbers: set[int]) -> Problems:
    numa, with_cpus = context.machine.numa, _with_cpus(context)
    told: set[tuple[int, str]] = set()
    for item in numa.hmat_lb:
        kind = item.data_type.rpartition("-")[2]
        other = "bandwidth" if kind == "latency" else "latency"
        if item.target not in numbers:
            yield ConfigError(f"--numa hmat-lb speaks of node {item.target}, which is not there")
        elif with_cpus and item.initiator not in with_cpus:
            yield ConfigError(
                f"--numa hmat-lb: initiator={item.initiator} is no node with CPUs",
                hint=f"such is {', '.join(str(one) for one in sorted(with_cpus))}",
            )
        if getattr(item, kind) is None or getattr(item, other) is not None:
            yield ConfigError(
                f"--numa hmat-lb: data-type={item.data_type} needs {kind}=, and {kind}= alone",
                hint="latency=5 is in nanoseconds, bandwidth=200M in bytes per second",
            )
        if item.bandwidth is not None and item.bandwidth % (1 << 20):
            yield ConfigError("--numa hmat-lb: a bandwidth is a whole number of MiB", hint="bandwidth=200M")
        if item.hierarchy == "memory":
            told.add((item.target, kind))
    for cache in numa.hmat_cache:
        if cache.node_id not in numbers:
            yield ConfigError(f"--numa hmat-cache speaks of node {cache.node_id}, which is not there")
        elif not {(cache.node_id, "latency"), (cache.node_id, "bandwidth")} <= told:
            yield ConfigError(
                f"--numa hmat-cache: latency and bandwidth of node {cache.node_id}'s memory are not told",
                hint=f"add --numa hmat-lb,target={cache.node_id},hierarchy=memory,… for both",
            )
