"""CPUs and memory that are plugged into a running VM."""

from __future__ import annotations

from typing import Any

import msgspec

from imgtool.errors import MachineError, RefusedError, UsageError
from imgtool.machine.compile.memory import backend, node_numbers
from imgtool.machine.options.text import size
from imgtool.machine.outside import hugepages
from imgtool.machine.vm import State, Vm
from imgtool.qemu.qmp import Monitor, QmpCommandError
from imgtool.sizes import format_size


class CpusSet(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What `vm set-cpus` did."""

    name: str
    """The VM's."""
    cpus: int
    """How many it has now."""


class MemorySet(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What `vm set-memory` did."""

    name: str
    """The VM's."""
    memory: int
    """Bytes it has now."""


def set_cpus(vm: Vm, wanted: int) -> int:
    """Plugs CPUs in until the guest has `wanted`, in the order of the topology; returns how many there are then.

    RefusedError when there are more already (a CPU is taken out by the guest, not by force), MachineError when the
    machine was not started with room for so many (`maxcpus=`) or has no CPU hotplug."""
    if wanted < 1:
        raise UsageError("a machine has at least one CPU")
    with Monitor.connect(vm.qmp_socket) as monitor:
        try:
            places = monitor.execute("query-hotpluggable-cpus")
        except QmpCommandError as error:
            raise MachineError(f"{vm.name} cannot be given CPUs while it runs: {error.description}") from None
        have: int = sum(place["vcpus-count"] for place in places if "qom-path" in place)
        most = sum(place["vcpus-count"] for place in places)
        if wanted < have:
            raise RefusedError(
                f"{vm.name} has {_cpus(have)}, and none is taken away while it runs",
                hint="in the guest: echo 0 > /sys/devices/system/cpu/cpuN/online",
            )
        if wanted > most:
            raise MachineError(
                f"{vm.name} has room for {_cpus(most)}, not {wanted}",
                hint=f"boot it with --smp {have},maxcpus={wanted}",
            )
        free = sorted((place for place in places if "qom-path" not in place), key=_order)
        for place in free:
            if have >= wanted:
                break
            name = "cpu-" + "-".join(str(number) for number in _order(place))
            monitor.execute("device_add", {"driver": place["type"], "id": name, **place["props"]})
            have += place["vcpus-count"]
    return have


_LEVELS = ("node-id", "drawer-id", "book-id", "socket-id", "die-id", "cluster-id", "core-id", "thread-id")


def _order(place: dict[str, Any]) -> tuple[int, ...]:
    return tuple(place["props"][level] for level in _LEVELS if level in place["props"])


def _cpus(count: int) -> str:
    return f"{count} CPU{'' if count == 1 else 's'}"


def parse_memory(text: str) -> int:
    """Bytes of `4G`, or of a bare number of MiB, as --memory has it."""
    return size("vm set-memory", "SIZE", text, unit="M")


def set_memory(vm: Vm, state: State, wanted: int, *, node: int | None = None) -> int:
    """Plugs a module of memory in with which the guest has `wanted` bytes; returns how many it has then. The module
    is of the NUMA node `node`, or of the first.

    UsageError for a node that the machine lacks, RefusedError when the guest has more already, MachineError when the
    machine was not started with room for so much (`maxmem=`, `slots=`), or QEMU has no module of that size."""
    room = state.machine.memory
    nodes = node_numbers(state.machine) or [0]
    if node is not None and node not in nodes:
        raise UsageError(
            f"{vm.name} has no NUMA node {node}",
            hint="it has " + ", ".join(map(str, nodes)) if len(nodes) > 1 else "boot it with --numa node,… for each",
        )
    with Monitor.connect(vm.qmp_socket) as monitor:
        found = monitor.execute("query-memory-size-summary")
        have: int = found["base-memory"] + found.get("plugged-memory", 0)
        if wanted == have:
            return have
        if wanted < have:
            raise RefusedError(
                f"{vm.name} has {format_size(have)}, and none is taken away while it runs",
                hint="a balloon (--balloon) lends it to the host: `imgtool vm monitor NAME balloon MIB`",
            )
        modules = [item["data"].get("id") for item in monitor.execute("query-memory-devices")]
        most, slots = room.maxmem or have, room.slots or 0
        if wanted > most:
            what = f"{vm.name} has room for {format_size(most)}, not {format_size(wanted)}"
            raise _no_room(what, have, slots or 4, wanted)
        if len(modules) >= slots:
            raise _no_room(f"all {slots} slots of {vm.name} hold memory already", have, slots + 1, most)
        number = next(number for number in range(len(modules) + 1) if f"dimm{number}" not in modules)
        _plug(monitor, vm, state, number, wanted - have, nodes[0] if node is None else node)
    return wanted


def _no_room(message: str, have: int, slots: int, maxmem: int) -> MachineError:
    words = f"{format_size(have)},slots={slots},maxmem={format_size(maxmem)}"
    return MachineError(message, hint=f"boot it with --memory {words}")


def _plug(monitor: Monitor, vm: Vm, state: State, number: int, added: int, node: int) -> None:
    mount = hugepages(state.machine)
    nodes = dict(zip(node_numbers(state.machine), state.machine.numa.nodes, strict=True))
    place = None if mount is None else mount.path
    memory = backend(f"ram-dimm{number}", added, state.machine, place, nodes.get(node))
    module = {"driver": "pc-dimm", "id": f"dimm{number}", "memdev": memory["id"], "node": node}
    try:
        monitor.execute("object-add", memory)
        try:
            monitor.execute("device_add", module)
        except QmpCommandError:
            monitor.execute("object-del", {"id": memory["id"]})
            raise
    except QmpCommandError as error:
        raise MachineError(
            f"{vm.name} cannot be given {format_size(added)} more: {error.description}",
            hint="a module is a multiple of 128M for most guests",
        ) from None
