"""CPU, topology, memory, NUMA."""

from typing import Annotated, Literal

import msgspec

from imgtool.machine.values.base import Config, Count, Index, Path, PropertyValue, Size


class Cpu(Config, frozen=True, kw_only=True):
    """`--cpu MODEL,+feature,-feature,prop=value`."""

    model: str | None = None
    """None lets the accelerator decide: `host` where it can, else `max`."""
    features: tuple[str, ...] = ()
    """`+avx2` and `-svm`, in order: a later one wins."""
    properties: dict[str, PropertyValue] = msgspec.field(default_factory=dict)
    """Of the model, by QEMU's names."""


class Smp(Config, frozen=True, kw_only=True):
    """`--smp`. QAPI: SMPConfiguration. What is left out is worked out by `imgtool.machine.smp`."""

    cpus: Count | None = None
    """How many the guest starts with."""
    maxcpus: Count | None = None
    """How many it can have, with those that are plugged in later."""
    sockets: Count | None = None
    """Of the machine."""
    dies: Count | None = None
    """Of each socket."""
    clusters: Count | None = None
    """Of each die."""
    cores: Count | None = None
    """Of each cluster."""
    threads: Count | None = None
    """Of each core."""


class Memory(Config, frozen=True, kw_only=True):
    """`--memory SIZE,slots=N,maxmem=SIZE`. QAPI: MemorySizeConfiguration."""

    size: Size | None = None
    """Bytes the guest starts with; None is 1 GiB."""
    slots: Index | None = None
    """How many times memory can be plugged in later."""
    maxmem: Size | None = None
    """Bytes it can have, with what is plugged in later."""


class Hugepages(Config, frozen=True, kw_only=True):
    """`--hugepages[=PATH]`: guest memory in a hugetlbfs mount."""

    path: Path | None = None
    """The mount; None takes the host's."""
    page_size: Size | None = None
    """Bytes of one page, where `path` does not say; None is the host's default."""
    prealloc: bool | None = None
    """None is on: a page that is missing later ends the guest by SIGBUS."""
    share: bool | None = None
    """Whether other processes (virtiofsd, DPDK) can map it."""


NumaPolicy = Literal["default", "preferred", "bind", "interleave"]


class NumaNode(Config, frozen=True, kw_only=True):
    """`--numa node,cpus=…,mem=…`. QAPI: NumaNodeOptions, and the memory backend imgtool makes for it."""

    nodeid: Index | None = None
    """None is the place in the list."""
    cpus: tuple[str, ...] = ()
    """Ranges of CPU indexes: `0-1`, `4`."""
    mem: Size | None = None
    """None is an equal share of what the other nodes leave; 0 is a node that has none at the start."""
    initiator: Index | None = None
    """The node whose CPUs are nearest, for a node without CPUs."""
    host_nodes: tuple[str, ...] = ()
    """Ranges of host nodes the memory comes from."""
    policy: NumaPolicy | None = None
    """How memory is taken from `host-nodes`. QAPI: HostMemPolicy."""


class NumaDistance(Config, frozen=True, kw_only=True):
    """`--numa dist,src=A,dst=B,val=N`: 10 is local, 255 unreachable."""

    src: Index
    """The node that reads."""
    dst: Index
    """The node that is read."""
    val: int
    """10 is local, 255 unreachable."""


class NumaCpu(Config, frozen=True, kw_only=True):
    """`--numa cpu,node-id=N,socket-id=…`: a place in the topology that belongs to a node."""

    node_id: Index
    """The node it belongs to."""
    socket_id: Index | None = None
    """Counted from 0."""
    die_id: Index | None = None
    """Of the socket, counted from 0."""
    cluster_id: Index | None = None
    """Of the die, counted from 0."""
    core_id: Index | None = None
    """Of the cluster, counted from 0."""
    thread_id: Index | None = None
    """Of the core, counted from 0."""


HmatData = Literal[
    "access-latency", "read-latency", "write-latency", "access-bandwidth", "read-bandwidth", "write-bandwidth"
]


HmatHierarchy = Literal["memory", "first-level", "second-level", "third-level"]


class NumaHmatLb(Config, frozen=True, kw_only=True):
    """`--numa hmat-lb,…`: how fast a node's CPUs reach a node's memory. QAPI: NumaHmatLBOptions."""

    initiator: Index
    """The node whose CPUs reach for it."""
    target: Index
    """The node whose memory it is."""
    hierarchy: HmatHierarchy
    """The memory itself, or a cache in front of it."""
    data_type: HmatData
    """What is told of it."""
    latency: Count | None = None
    """Nanoseconds."""
    bandwidth: Size | None = None
    """Bytes a second, in whole MiB."""


class NumaHmatCache(Config, frozen=True, kw_only=True):
    """`--numa hmat-cache,…`: a cache in front of a node's memory. QAPI: NumaHmatCacheOptions."""

    node_id: Index
    """The node whose memory it is."""
    size: Size
    """Bytes."""
    level: Annotated[int, msgspec.Meta(ge=1, le=3)]
    """1 is the nearest to the CPUs."""
    associativity: Literal["none", "direct", "complex"]
    """Where in it a line of memory may be."""
    policy: Literal["none", "write-back", "write-through"]
    """When it writes to the memory."""
    line: Annotated[int, msgspec.Meta(ge=0, le=65535)]
    """Bytes of a line."""


class Numa(Config, frozen=True, kw_only=True):
    """All `--numa` options together."""

    nodes: tuple[NumaNode, ...] = msgspec.field(name="node", default=())
    """Each with its CPUs and its memory."""
    distances: tuple[NumaDistance, ...] = msgspec.field(name="dist", default=())
    """Between two nodes; what is left out is 20."""
    cpus: tuple[NumaCpu, ...] = msgspec.field(name="cpu", default=())
    """CPUs by their place in the topology."""
    hmat_lb: tuple[NumaHmatLb, ...] = ()
    """Latencies and bandwidths, for the guest's ACPI table HMAT."""
    hmat_cache: tuple[NumaHmatCache, ...] = ()
    """Caches of memory, for the same table."""
