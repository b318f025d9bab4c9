"""What is wrong with a configuration, said before any process starts.

Every problem is a ConfigError with what is wrong and what to do about it. Nothing is changed silently: what imgtool
would have to guess at is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, zip_longest

import msgspec

from imgtool.errors import ConfigError
from imgtool.machine.argv import compile_argv
from imgtool.machine.board import board
from imgtool.machine.checks import devices, memory, network, numa, processor, slots, start, storage
from imgtool.machine.checks.context import Context, Problems, attempt
from imgtool.machine.compile.display import display_type
from imgtool.machine.compile.memory import memory_size
from imgtool.machine.config import Machine
from imgtool.machine.host import Host
from imgtool.machine.layout import layout
from imgtool.qemu.capabilities import Capabilities
from imgtool.sizes import format_size

CHECKS: tuple[Callable[[Context], Problems], ...] = (
    processor.check_identity,
    processor.check_machine,
    processor.check_cpu,
    processor.check_smp,
    memory.check_memory,
    memory.check_hugepages,
    numa.check_numa,
    storage.check_drives,
    slots.check_slots,
    start.check_firmware,
    start.check_tpm,
    start.check_boot,
    start.check_kernel,
    network.check_networks,
    devices.check_display,
    devices.check_vga,
    devices.check_ports,
    devices.check_virtio,
    devices.check_watchdog,
    devices.check_shares,
    devices.check_rtc_audio,
    devices.check_cloud_init,
    devices.check_safety,
)


def problems(machine: Machine, host: Host, *, force: bool = False) -> list[ConfigError]:
    """Everything that is wrong with `machine` on `host`; empty when it can be started. `force` lets pass what only
    might go wrong: more memory than the host has."""
    found: list[ConfigError] = []
    drives = attempt(lambda: layout(machine, host), found) or []
    context = Context(machine, host, board(machine, host), drives, force)
    for check in CHECKS:
        found += check(context)
    if not found:
        command = attempt(lambda: compile_argv(machine, host), found)
        if command is not None:
            found += lacking(command.argv[: len(command.argv) - len(machine.arguments)], host.capabilities)
    return found


def lacking(argv: tuple[str, ...], known: Capabilities) -> Problems:
    """The devices and objects on a command line that this QEMU was built without."""
    kinds = {
        "-device": ("device", "driver", {name for item in known.devices for name in (item.name, *item.aliases)}),
        "-object": ("object", "qom-type", set(known.objects)),
    }
    for option, value in pairwise(argv):
        what, key, names = kinds.get(option, ("", "", set()))
        if not names:
            continue
        name = msgspec.json.decode(value)[key] if value.startswith("{") else value.partition(",")[0]
        if name not in names:
            yield ConfigError(
                f"this QEMU ({known.version.text}) has no {what} {name}",
                hint="a newer QEMU, or one built with more, may have it: --qemu-system names the program",
            )


def validate(machine: Machine, host: Host, *, force: bool = False) -> None:
    """Raises the first of the `problems`, and in its hint says how many more there are."""
    found = problems(machine, host, force=force)
    if not found:
        return
    first = found[0]
    if len(found) > 1:
        rest = "; ".join(error.message for error in found[1:])
        raise ConfigError(first.message, hint=f"{first.hint or ''}\nalso: {rest}".strip(), path=first.path)
    raise first


def warnings(machine: Machine, host: Host) -> list[str]:
    """What is allowed and yet worth a word."""
    found = []
    known = host.capabilities.machine(machine.machine.type)
    if known is not None and known.deprecated:
        found.append(f"machine {known.name} is deprecated: a later QEMU will not have it")
    model = host.capabilities.cpu_model(machine.cpu.model or "")
    if model is not None and model.deprecated:
        found.append(f"CPU model {model.name} is deprecated: a later QEMU will not have it")
    size, free = memory_size(machine), host.memory_free
    if free is not None and size > free:
        found.append(
            f"the machine's memory is {format_size(size)}, and the host has only {format_size(free >> 20 << 20)} free"
        )
    display = machine.display
    if display_type(machine, host) in ("vnc", "spice") and display.password is False:
        outside = display.address not in (None, "127.0.0.1", "::1", "localhost")
        if outside and display.path is None and not display.verify_peer:
            found.append(f"anyone who reaches {display.address} can use the machine's screen: it asks no password")
    return [*found, *_open_doors(machine.arguments)]


_EVERYWHERE = re.compile(r"(?:tcp|telnet):(?:0|0\.0\.0\.0|\[::\])?:(\d+)")


def _open_doors(arguments: Sequence[str]) -> Iterator[str]:
    """A debugger's port or a monitor, given to QEMU itself, that listens to everybody: whoever is in there can do
    what QEMU can."""
    for option, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        name = option.lstrip("-") if option.startswith("-") else ""
        what, value = ("gdb", "tcp::1234") if name == "s" else (name, following)
        found = _EVERYWHERE.match(value)
        serves = what == "gdb" or re.search(r",server(?!=off)", value) is not None
        if found is not None and serves and what in ("gdb", "monitor", "qmp", "qmp-pretty"):
            instead = f"-{what} tcp:127.0.0.1:{found[1]}{value[found.end() :]}"
            yield f"anyone who reaches this host can command the machine by {option}; {instead} keeps it here"
