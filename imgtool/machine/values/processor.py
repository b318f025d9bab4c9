"""CPU, topology, memory, NUMA."""

from typing import Literal

import msgspec

from imgtool.machine.values.base import Config, Count, Index, Path, PropertyValue, Size


class Cpu(Config, frozen=True, kw_only=True):
    """`--cpu MODEL,+feature,-feature,prop=value`."""

    model: str | None = None
    """None lets the accelerator decide: `host` where it can, else `max`."""
    features: tuple[str, ...] = ()
    """`+avx2` and `-svm`, in order: a later one wins."""
    properties: dict[str, PropertyValue] = msgspec.field(default_factory=dict)


class Smp(Config, frozen=True, kw_only=True):
    """`--smp`. QAPI: SMPConfiguration. What is left out is worked out by `imgtool.machine.smp`."""

    cpus: Count | None = None
    maxcpus: Count | None = None
    sockets: Count | None = None
    dies: Count | None = None
    clusters: Count | None = None
    cores: Count | None = None
    threads: Count | None = None


class Memory(Config, frozen=True, kw_only=True):
    """`--memory SIZE,slots=N,maxmem=SIZE`. QAPI: MemorySizeConfiguration."""

    size: Size | None = None
    slots: Index | None = None
    maxmem: Size | None = None


class Hugepages(Config, frozen=True, kw_only=True):
    """`--hugepages[=PATH]`: guest memory in a hugetlbfs mount."""

    path: Path | None = None
    """The mount; None takes the host's."""
    page_size: Size | None = None
    prealloc: bool | None = None
    """None is on: a page that is missing later ends the guest by SIGBUS."""
    share: bool | None = None


NumaPolicy = Literal["default", "preferred", "bind", "interleave"]


class NumaNode(Config, frozen=True, kw_only=True):
    """`--numa node,cpus=…,mem=…`. QAPI: NumaNodeOptions, and the memory backend imgtool makes for it."""

    nodeid: Index | None = None
    """None is the place in the list."""
    cpus: tuple[str, ...] = ()
    """Ranges of CPU indexes: `0-1`, `4`."""
    mem: Size | None = None
    """None is an equal share of what the other nodes leave."""
    initiator: Index | None = None
    host_nodes: tuple[str, ...] = ()
    """Ranges of host nodes the memory comes from."""
    policy: NumaPolicy | None = None


class NumaDistance(Config, frozen=True, kw_only=True):
    """`--numa dist,src=A,dst=B,val=N`: 10 is local, 255 unreachable."""

    src: Index
    dst: Index
    val: int


class NumaCpu(Config, frozen=True, kw_only=True):
    """`--numa cpu,node-id=N,socket-id=…`: a place in the topology that belongs to a node."""

    node_id: Index
    socket_id: Index | None = None
    die_id: Index | None = None
    cluster_id: Index | None = None
    core_id: Index | None = None
    thread_id: Index | None = None


class Numa(Config, frozen=True, kw_only=True):
    """All `--numa` options together."""

    nodes: tuple[NumaNode, ...] = msgspec.field(name="node", default=())
    distances: tuple[NumaDistance, ...] = msgspec.field(name="dist", default=())
    cpus: tuple[NumaCpu, ...] = msgspec.field(name="cpu", default=())
