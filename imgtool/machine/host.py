"""What compiling a machine has to be told of the outside world, and what it asks to be done there.

`Host` goes in by value, `Command` comes out by value: nothing between them opens a file or starts a program.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from imgtool.machine.values.devices import DisplayType
from imgtool.qemu.capabilities import Capabilities

QMP_SOCKET = "qmp.sock"
AGENT_SOCKET = "agent.sock"
TPM_SOCKET = "tpm.sock"
SPICE_SOCKET = "spice.sock"
"""Files in the runtime directory. A serial or parallel port has `serialN.sock` (when it is a socket) and
`serialN.log`; a share `shareN.sock`; a passt network `netN.sock`."""


class Link(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """One image of a backing chain, as QEMU opens it."""

    path: str
    format: str
    protocol: Literal["file", "host_device", "host_cdrom"] = "file"
    data_file: str | None = None
    """A qcow2's external data file (raw)."""


class Disk(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The image at a path that a machine names."""

    chain: tuple[Link, ...]
    """From the image to its base. Every format is known here, so QEMU probes nothing."""
    size: int | None = None
    """Virtual size in bytes."""
    follow: bool = False
    """The last link has a backing file that is no local file: QEMU opens what its header names."""


class Uefi(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """An OVMF (or AAVMF) build, and the machine's own copy of its variables."""

    code: str
    code_format: str = "raw"
    vars: str | None = None
    """None for a build that keeps its variables in one file with the code."""
    vars_format: str = "qcow2"
    secure_boot: bool = False
    requires_smm: bool = False


class HugepageMount(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    path: str
    page_size: int
    free: int | None = None
    """Bytes in free pages."""


class HugepagePool(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The pages of one size that the host has reserved."""

    page_size: int
    free: int
    """Bytes."""
    total: int
    """Bytes."""


class Host(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The outside world as `compile_argv` and `validate` see it."""

    qemu: str
    """The absolute path of the system emulator."""
    capabilities: Capabilities
    accelerator: Literal["kvm", "tcg", "hvf"]
    """`auto` already resolved."""
    runtime_dir: str
    """The VM's own directory, mode 0700, for sockets and logs."""
    scratch_dir: str | None = None
    """Where writes that are thrown away go; None is the runtime directory."""
    console: Literal["stdio", "socket", "none"] = "stdio"
    """Where the first serial port is, when the machine does not say. stdio shares the terminal with the monitor, as
    -nographic does: Ctrl-A X ends the VM."""
    display: DisplayType = "none"
    """What the machine shows on, when it does not say."""
    disks: dict[str, Disk] = msgspec.field(default_factory=dict)
    """By the path that the machine names."""
    uefi: Uefi | None = None
    seed: str | None = None
    """The cloud-init seed image, raw."""
    hugepages: HugepageMount | None = None
    """The hugetlbfs mount that the machine wants, if there is one."""
    hugepage_mounts: tuple[HugepageMount, ...] = ()
    """All of them, where the machine wants one."""
    hugepage_pools: tuple[HugepagePool, ...] = ()
    machine_properties: tuple[str, ...] | None = None
    """Of the machine's type, as far as QEMU lists them; None where that was not asked."""
    cpu_properties: tuple[str, ...] | None = None
    vsock: bool | None = None
    """Whether the host has /dev/vhost-vsock; None where that was not asked."""
    render_nodes: tuple[str, ...] | None = None
    """The host's GPUs that draw without a display; None where that was not asked."""
    memory_total: int | None = None
    memory_free: int | None = None
    bridges: dict[str, str] = msgspec.field(default_factory=dict)
    """The bridge of each network that `imgtool net create` made."""
    descriptors: dict[str, tuple[int, ...]] = msgspec.field(default_factory=dict)
    """Taps already opened, one descriptor a queue, by network id (`net0`); vhost descriptors under `net0-vhost`."""
    bridge_helper: str | None = None
    passt: str | None = None
    smbd: str | None = None
    desktop: bool | None = None
    """Whether there is a graphical session to open a window in; None where that was not asked."""
    swtpm: str | None = None
    virtiofsd: str | None = None
    virtiofsd_of_qemu: bool = False
    """It is the one in C that came with QEMU until 7.2, and takes other options."""
    root: bool = False
    """imgtool runs as root, and so do the programs beside QEMU."""


class Secret(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """A password to write to `path`, mode 0600, before QEMU starts."""

    id: str
    """Of QEMU's `-object secret`."""
    path: str
    """The file it is written to."""
    protocol: Literal["vnc", "spice"]
    """Who asks for it."""
    by_qmp: bool = False
    """This QEMU reads no file: send `set_password` with it over QMP once it runs."""


class Scratch(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """A qcow2 overlay to make at `path` before QEMU starts, and to remove after."""

    path: str
    """The overlay's file."""
    backing: str
    """The image it stands on."""
    backing_format: str
    """As QEMU calls it."""
    size: int | None = None
    """Bytes of the disk; None is the backing image's."""


class TapNeed(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """A tap that a network wants opened: give its descriptors as `Host.descriptors[id]` and compile again. Compiled
    without them QEMU opens the tap itself, which its sandbox then has to allow."""

    id: str
    """Of the network in QEMU."""
    ifname: str | None
    """The tap's name on this host; None makes one."""
    bridge: str | None
    """The bridge it joins; None is none."""
    queues: int = 1
    """How many pairs of queues it has."""
    vhost: bool = False
    """Whether the kernel moves its packets (/dev/vhost-net)."""
    helper: str | None = None
    """Made by this setuid helper, where imgtool is not root."""


class Helper(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """A program that runs beside QEMU: started before it, ready when `socket` is there, ended with it."""

    name: str
    """What it is called in the VM's directory and log."""
    argv: tuple[str, ...]
    """The program and its words."""
    otherwise: tuple[str, ...] = ()
    """What to start where that ends at once; empty is nothing."""
    socket: str
    """The unix socket by which QEMU reaches it."""
    directory: str | None = None
    """A folder to make first."""
    link: str | None = None
    """A symbolic link to that folder, by which the program is told of it."""


class Command(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """QEMU's command line, and everything that has to be in place before it."""

    argv: tuple[str, ...]
    secrets: tuple[Secret, ...] = ()
    scratch: tuple[Scratch, ...] = ()
    taps: tuple[TapNeed, ...] = ()
    helpers: tuple[Helper, ...] = ()
