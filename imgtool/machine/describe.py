"""A configuration in words, for people who want to see what they asked for before it starts."""

from __future__ import annotations

from imgtool.image.names import printable
from imgtool.machine.board import board
from imgtool.machine.compile.display import display_type, vga_model
from imgtool.machine.compile.memory import cpu_argument, memory_size, node_sizes
from imgtool.machine.compile.networks import network_id, networks, nic_driver, stable_mac
from imgtool.machine.compile.start import wants_uefi
from imgtool.machine.config import Machine
from imgtool.machine.host import Host
from imgtool.machine.layout import Placed, is_ephemeral, layout
from imgtool.machine.smp import Topology, topology
from imgtool.machine.values.network import Passt, User
from imgtool.sizes import format_size


def _count(number: int, one: str) -> str:
    return f"{number} {one}" if number == 1 else f"{number} {one}s"


def topology_words(found: Topology) -> str:
    """`8 logical CPUs: 2 sockets × 2 cores × 2 threads; 4 of them plugged in at the start`."""
    levels = [
        _count(getattr(found, f"{name}s"), name)
        for name in ("socket", "die", "cluster", "core", "thread")
        if name not in ("die", "cluster") or getattr(found, f"{name}s") > 1
    ]
    later = "" if found.cpus == found.maxcpus else f"; {found.cpus} of them plugged in at the start"
    return f"{_count(found.maxcpus, 'logical CPU')}: {' × '.join(levels)}{later}"


def describe(machine: Machine, host: Host) -> list[tuple[str, str]]:
    """A heading and a line for each thing the machine has. Raises what `compile_argv` raises."""
    kind = board(machine, host)
    lines = [("machine", kind.name), ("accel", host.accelerator)]
    lines.append(("cpu", cpu_argument(machine.cpu, kind, host) or "the machine's own"))
    lines.append(("smp", topology_words(topology(machine.smp))))
    lines.append(("memory", _memory(machine)))
    for node, size in zip(machine.numa.nodes, node_sizes(machine) if machine.numa.nodes else (), strict=True):
        cpus = f"CPUs {', '.join(node.cpus)}" if node.cpus else "CPUs by QEMU's choice"
        lines.append(("numa", f"{format_size(size)}, {cpus}"))
    lines.append(("firmware", "UEFI" if wants_uefi(machine) else machine.firmware.bios or "the machine's own BIOS"))
    lines += [("drive", _drive(machine, item)) for item in layout(machine, host)]
    for place, network in enumerate(networks(machine)):
        mac = network.mac or stable_mac(machine.name or "", place)
        text = f"{network_id(network, place)}: {network.__struct_config__.tag}, {nic_driver(network, kind)}, {mac}"
        if isinstance(network, User | Passt) and network.hostfwd:
            text += f", forwards {' '.join(network.hostfwd)}"
        lines.append(("network", printable(text)))
    lines.append(("display", f"{display_type(machine, host)}, VGA {vga_model(machine, kind, host)}"))
    return lines


def _memory(machine: Machine) -> str:
    text = format_size(memory_size(machine))
    if machine.memory.maxmem is not None:
        text += f", up to {format_size(machine.memory.maxmem)} in {_count(machine.memory.slots or 0, 'slot')}"
    return text + (", in hugepages" if machine.hugepages is not None else "")


def _drive(machine: Machine, item: Placed) -> str:
    what = "CD-ROM" if item.cdrom else "disk"
    place = f"{item.id}: {item.interface} {what}, bus {item.bus}, unit {item.unit}"
    if item.drive.file is None:
        return f"{place}, empty"
    how = ", read-only" if item.drive.readonly or item.cdrom else ""
    how = ", writes thrown away" if is_ephemeral(machine, item) else how
    return f"{place}, {printable(item.drive.file)}{how}"
