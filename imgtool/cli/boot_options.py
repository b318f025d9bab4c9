"""The options of `imgtool boot` that describe the machine, and the settings they become."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from imgtool.cli.options import FILE_NAME, Word
from imgtool.errors import UsageError

F = TypeVar("F", bound="Callable[..., Any]")

FILES = ("fda", "fdb", "hda", "hdb", "hdc", "hdd", "cdrom", "kernel", "initrd", "dtb")

_WORDS: tuple[tuple[str, str, str], ...] = (
    ("name", "NAME", "The VM's name.  [default: made from IMAGE]"),
    ("uuid", "UUID", "The machine's UUID."),
    ("machine", "TYPE[,PROP=…]", "Machine type and properties; `help` lists the types.  [default: QEMU's own]"),
    (
        "cpu",
        "MODEL[,±FEATURE…]",
        "CPU model and features; `help` lists them.  [default: the host's, or max when emulating]",
    ),
    ("smp", "N|cpus=…", "CPUs and their topology: sockets=, dies=, cores=, threads=, maxcpus=.  [default: 1]"),
    ("memory", "SIZE[,…]", "Memory (2G); slots= and maxmem= leave room for more.  [default: 1G]"),
    ("boot", "ORDER|order=…", "Boot order: a floppy, c disk, d CD-ROM, n network; once=, menu=, …"),
    ("append", "WORDS", "The kernel's command line."),
    (
        "display",
        "TYPE[,…]",
        "The screen: gtk, sdl, curses, vnc, spice, egl-headless, dbus, none; a window if no terminal.",
    ),
    ("vga", "CARD", "The graphics card: std, cirrus, vmware, qxl, virtio, none.  [default: std]"),
    ("keymap", "LAYOUT", "Keyboard layout, such as de."),
    ("vsock", "CID", "A vsock device with this context id."),
    ("rtc", "BASE[,…]", "The clock: utc, localtime, or a date."),
    ("audio", "DRIVER[,…]", "A sound card, played by DRIVER (pa, pipewire, alsa, wav, none, …); model=hda, ac97, …"),
)
"""Options that hold one option string: name, metavar, help."""

_REPEATED: tuple[tuple[str, str, str], ...] = (
    ("drive", "file=…[,…]", "A drive, with the keys of QEMU's -drive, and iothread=, bootindex=. May be repeated."),
    (
        "network",
        "TYPE[,…]",
        "A network: user (the default; hostfwd=tcp::2222-:22), bridge, tap, nat, passt, socket, …, none. "
        "May be repeated.",
    ),
    (
        "numa",
        "node,…",
        "A NUMA node (cpus=,mem=), a distance (dist,src=,dst=,val=), cpu, hmat-lb or hmat-cache. May be repeated.",
    ),
    ("serial", "PORT", "A serial port: stdio, pty, file, unix, tcp, null, none. May be repeated."),
    ("parallel", "PORT", "A parallel port. May be repeated."),
    ("share", "PATH[,…]", "A host folder in the guest: tag=, type=9p|virtiofs, readonly=on. May be repeated."),
)

_COMPLETED = {"drive": "drive", "network": "network", "share": "files"}
"""Options whose values shells complete by a function of `imgtool.cli.words`."""

OPTIONAL: tuple[tuple[str, str, str], ...] = (
    (
        "hugepages",
        "[PATH][,…]",
        "Guest memory in huge pages, of the hugetlbfs at PATH; page-size=, prealloc=, share=.",
    ),
    ("rng", "[FILE][,…]", "A source of entropy: QEMU's own, or FILE, such as /dev/urandom; max-bytes=, period=."),
    ("tpm", "[MODEL][,…]", "A TPM 2.0, by swtpm: tpm-crb, tpm-tis; state= names its folder."),
    ("balloon", "[KEY=…]", "A memory balloon: deflate-on-oom=, free-page-reporting=."),
    ("watchdog", "[MODEL][,…]", "A watchdog: i6300esb, ib700, diag288; action=reset, poweroff, pause, …"),
)
"""Options whose value may be left out, where no other word follows them."""

SECTIONS = {
    "Machine": ("name", "uuid", "machine", "accel", "sandbox", "run_as"),
    "Processor and memory": ("cpu", "smp", "memory", "hugepages", "numa", "balloon"),
    "Disks": ("drive", "cdrom", "hda", "hdb", "hdc", "hdd", "fda", "fdb", "boot", "share"),
    "Network": ("network", "nic_model"),
    "Display and sound": ("display", "vga", "keymap", "tablet", "audio"),
    "Kernel and firmware": ("kernel", "initrd", "append", "dtb", "uefi", "secure_boot", "uefi_vars", "bios"),
    "Other devices": ("serial", "parallel", "agent", "rng", "tpm", "watchdog", "vsock", "rtc"),
    "Cloud-init": ("cloud_init", "user", "ssh_key", "hostname", "meta_data", "network_config"),
}
"""The sections of --help; what concerns the boot rather than the machine stands before them."""


def machine_options(command: F) -> F:
    """Everything that describes the machine, each named as QEMU names it."""
    for name, metavar, text in reversed((*_WORDS, *_REPEATED)):
        repeated = any(name == known for known, _, _ in _REPEATED)
        kind = Word(_COMPLETED[name]) if name in _COMPLETED else None
        command = click.option(f"--{name}", type=kind, metavar=metavar, multiple=repeated, help=text)(command)
    for name, metavar, text in reversed(OPTIONAL):
        command = click.option(f"--{name}", metavar=metavar, is_flag=False, flag_value="", help=text)(command)
    for name in reversed(FILES):
        text = _FILE_HELP.get(name, "")
        command = click.option(f"--{name}", type=FILE_NAME, metavar="FILE", multiple=True, callback=_only, help=text)(
            command
        )
    for name, text in (("agent", "A channel for the guest agent."), ("tablet", "A USB tablet as the pointer.")):
        command = click.option(f"--{name}", is_flag=True, default=None, help=text)(command)
    return command


def _only(_: click.Context, param: click.Parameter, given: tuple[str, ...]) -> str | None:
    """The one file that was given. UsageError for two: the first would be left out without a word."""
    if len(given) <= 1:
        return given[0] if given else None
    name = param.name or ""
    hint = "a further disk is --drive FILE" if name.startswith("hd") else "leave one out"
    if name == "cdrom":
        hint = "a further CD-ROM is --drive FILE,media=cdrom"
    raise UsageError(f"--{name} is there twice", hint=hint)


_FILE_HELP = {
    "fda": "First floppy.",
    "fdb": "Second floppy.",
    "hda": "First hard disk of the machine's own bus.",
    "hdb": "Second hard disk.",
    "hdc": "Third hard disk.",
    "hdd": "Fourth hard disk.",
    "cdrom": "CD-ROM.",
    "kernel": "Boot this kernel, not the disk's.",
    "initrd": "Its initial RAM disk.",
    "dtb": "Its device tree.",
}


def firmware_options(command: F) -> F:
    command = click.option("--bios", type=FILE_NAME, metavar="FILE", help="A firmware image.")(command)
    command = click.option(
        "--uefi-vars",
        type=FILE_NAME,
        metavar="FILE",
        help="The file that keeps its variables.  [default: the VM's own]",
    )(command)
    command = click.option("--uefi", is_flag=True, default=None, help="UEFI firmware (OVMF).")(command)
    return click.option("--secure-boot", is_flag=True, default=None, help="UEFI with Secure Boot.")(command)


def cloud_init_options(command: F) -> F:
    for name, metavar, text, repeated in reversed(
        (
            ("cloud-init", "FILE", "User data for cloud-init.", False),
            ("meta-data", "FILE", "Its meta data.", False),
            ("network-config", "FILE", "Its network configuration.", False),
            ("ssh-key", "FILE", "A public key that may log in. May be repeated.", True),
            ("hostname", "NAME", "The guest's name.", False),
            ("user", "NAME", "The user to create.  [default: your name]", False),
        )
    ):
        kind = Word("files") if metavar == "FILE" else None
        command = click.option(f"--{name}", type=kind, metavar=metavar, multiple=repeated, help=text)(command)
    return command


def settings_of(given: Mapping[str, Any], arguments: tuple[str, ...]) -> dict[str, Any]:
    """The settings that were given, by their names in a profile."""
    from imgtool.machine.options.words import TABLES

    words: dict[str, Any] = {}
    for name, value in given.items():
        if value is None or value == ():
            continue
        option = name.replace("_", "-")
        table, key = TABLES.get(option, (None, option))
        plain = list(value) if isinstance(value, tuple) else value
        if table is None:
            words[key] = plain
        else:
            words.setdefault(table, {})[key] = plain
    if arguments:
        words["arguments"] = list(arguments)
    return words
