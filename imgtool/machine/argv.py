"""From a configuration to QEMU's command line. Pure: the same machine and host give the same argv.

The machine starts bare (`-nodefaults`, `-no-user-config`): no empty floppy and CD-ROM, no parallel port, no monitor
that nobody asked for, nothing from a file in the user's home. What someone following a tutorial counts on is put back
in so many words and can be left out: a standard VGA card on a PC (`--vga none`), a serial console (`--serial none`),
a user network (`--network none`).
"""

from __future__ import annotations

from msgspec.structs import replace

from imgtool.image.names import option_value
from imgtool.machine.board import Board, board
from imgtool.machine.compile.devices import add_devices, add_ports
from imgtool.machine.compile.display import add_display, display_type
from imgtool.machine.compile.drives import add_drives
from imgtool.machine.compile.encode import keyed, word
from imgtool.machine.compile.memory import add_memory, add_processor
from imgtool.machine.compile.networks import add_networks
from imgtool.machine.compile.parts import Parts
from imgtool.machine.compile.start import add_boot, add_firmware, with_bootindex
from imgtool.machine.config import Machine
from imgtool.machine.host import QMP_SOCKET, Command, Host
from imgtool.machine.layout import layout
from imgtool.machine.values.storage import Drive


def compile_argv(machine: Machine, host: Host) -> Command:
    """QEMU's command line for `machine`, and what has to be in place before it starts. `validate` says beforehand
    what is wrong; what cannot be compiled at all raises ConfigError here too."""
    kind = board(machine, host)
    machine = _with_seed(machine, kind, host)
    machine, placed = with_bootindex(machine, layout(machine, host))
    parts = Parts(host)
    add_processor(parts, machine, kind, host)
    add_memory(parts, machine, host)
    add_firmware(parts, machine, host)
    add_boot(parts, machine)
    add_drives(parts, machine, kind, host, placed)
    add_networks(parts, machine, kind, host)
    add_display(parts, machine, kind, host)
    add_ports(parts, machine, host)
    add_devices(parts, machine, kind, host)
    argv = [host.qemu, "-nodefaults", "-no-user-config", *_identity(machine, kind, host, parts), *parts.argv]
    argv += _monitor(parts)
    argv += _safety(machine, host, parts)
    return Command(
        argv=(*argv, *machine.arguments),
        secrets=tuple(parts.secrets),
        scratch=tuple(parts.scratch),
        taps=tuple(parts.taps),
        helpers=tuple(parts.helpers),
    )


def _identity(machine: Machine, kind: Board, host: Host, parts: Parts) -> list[str]:
    argv = []
    if machine.name is not None:
        argv += ["-name", f"guest={option_value(machine.name)}"]
    if machine.uuid is not None:
        argv += ["-uuid", machine.uuid]
    # A property the user names wins over one that another option asked for.
    properties = {
        **parts.machine,
        **{key.replace("_", "-"): item for key, item in machine.machine.properties.items()},
    }
    argv += ["-machine", keyed(kind.name, {key: word(value) for key, value in properties.items()})]
    # QEMU takes the first one that works: one with properties among the user's own arguments would be passed over.
    if not {"-accel", "--accel"} & set(machine.arguments):
        argv += ["-accel", host.accelerator]
    return argv


def _with_seed(machine: Machine, kind: Board, host: Host) -> Machine:
    """`machine` with the cloud-init seed as a read-only disk, which every guest that has cloud-init can read (its
    label says what it is) and every machine can have."""
    if machine.cloud_init is None or host.seed is None:
        return machine
    interface = "virtio" if kind.virtio else kind.interface
    seed = Drive(file=host.seed, format="raw", interface=interface, readonly=True, id="cloud-init")
    return replace(machine, drives=(*machine.drives, seed))


def _monitor(parts: Parts) -> list[str]:
    where = keyed("socket", {"id": "qmp", "path": parts.runtime(QMP_SOCKET), "server": True, "wait": False})
    return ["-chardev", where, "-mon", "chardev=qmp,mode=control"]


def _safety(machine: Machine, host: Host, parts: Parts) -> list[str]:
    argv = []
    run_as = machine.safety.run_as
    if run_as is not None:
        modern = "user" in host.capabilities.options.get("run-with", ())
        argv += ["-run-with", f"user={option_value(run_as)}"] if modern else ["-runas", run_as]
    if not sandboxed(machine, host):
        return argv
    windowed = display_type(machine, host) in ("gtk", "sdl", "egl-headless", "dbus") or machine.display.gl is not None
    # -runas changes the user after the filter is in place; the bridge helper is setuid; guestfwd's programs begin
    # with setsid, which this filter holds for a privilege; and ncurses 6.5 sets the user it is, to read terminfo.
    privileged = run_as is not None or parts.spawns or display_type(machine, host) == "curses"
    value = {
        "obsolete": "deny",
        "elevateprivileges": "allow" if privileged else "deny",
        "spawn": "allow" if parts.spawns else "deny",
        # GL drivers set the affinity of their threads, and the filter would end QEMU for it.
        "resourcecontrol": "allow" if windowed else "deny",
    }
    return [*argv, "-sandbox", keyed("on", value)]


def sandboxed(machine: Machine, host: Host) -> bool:
    if machine.safety.sandbox is None:
        return "sandbox" in host.capabilities.options
    return machine.safety.sandbox
