"""A machine's configuration: one typed value, whether it came from options, a TOML profile, or Python.

Nothing here looks at the host or at QEMU. What has to be learned from outside is `imgtool.machine.host`;
`imgtool.machine.validate` says what is wrong with a configuration, `imgtool.machine.argv` compiles it.
"""

from typing import Literal

import msgspec

from imgtool.machine.values.base import Config, Path
from imgtool.machine.values.devices import (
    Audio,
    Balloon,
    Boot,
    CharDevice,
    CloudInit,
    Display,
    Firmware,
    MachineType,
    Rng,
    Rtc,
    Safety,
    Share,
    Tpm,
    VgaModel,
    Vsock,
    Watchdog,
)
from imgtool.machine.values.network import Network
from imgtool.machine.values.processor import Cpu, Hugepages, Memory, Numa, Smp
from imgtool.machine.values.storage import Drive

Accelerator = Literal["auto", "kvm", "tcg", "hvf"]


class Machine(Config, frozen=True, kw_only=True):
    """Everything a person would put on a `qemu-system` line. Paths are absolute."""

    name: str | None = None
    """The VM's name; None is made from the image's."""
    uuid: str | None = None
    """The machine's UUID, which the guest sees; None is none."""
    machine: MachineType = MachineType()
    """The board: QEMU's `-machine`."""
    accel: Accelerator | None = None
    """None is auto."""
    cpu: Cpu = Cpu()
    """CPU model and features."""
    smp: Smp = Smp()
    """CPUs and their topology."""
    memory: Memory = Memory()
    """How much memory the guest has."""
    hugepages: Hugepages | None = None
    """Guest memory in huge pages of the host; None is ordinary memory."""
    numa: Numa = Numa()
    """Which CPUs and which memory belong together; empty is one node."""
    fda: Path | None = None
    """The first floppy's image."""
    fdb: Path | None = None
    """The second floppy's image."""
    hda: Path | None = None
    """The first hard disk of the machine's own bus."""
    hdb: Path | None = None
    """The second hard disk."""
    hdc: Path | None = None
    """The third hard disk."""
    hdd: Path | None = None
    """The fourth hard disk."""
    cdrom: Path | None = None
    """An image for a CD-ROM drive."""
    drives: tuple[Drive, ...] = msgspec.field(name="drive", default=())
    """Drives, with the keys of QEMU's `-drive`, in order."""
    ephemeral: bool | None = None
    """Writes to every drive are thrown away, except where a drive says `snapshot = false`."""
    boot: Boot = Boot()
    """What the firmware tries, in which order."""
    kernel: Path | None = None
    """A kernel to boot, not the disk's."""
    initrd: Path | None = None
    """The kernel's initial RAM disk."""
    append: str | None = None
    """The kernel's command line."""
    dtb: Path | None = None
    """The kernel's device tree."""
    networks: tuple[Network, ...] | None = msgspec.field(name="network", default=None)
    """None is one user network, as in QEMU; an empty list is no network at all."""
    display: Display = Display()
    """Where the guest's screen is shown."""
    vga: VgaModel | None = None
    """None is std on a PC and none elsewhere."""
    keymap: str | None = None
    """The keyboard layout of VNC, SPICE and curses, such as de."""
    firmware: Firmware = Firmware()
    """What the guest starts from."""
    tpm: Tpm | None = None
    """None is no TPM."""
    serial: tuple[CharDevice, ...] | None = None
    """None is one port, where `Host.console` says; an empty list is none."""
    parallel: tuple[CharDevice, ...] = ()
    """Parallel ports; empty is none."""
    rng: Rng | None = None
    """None is no device for entropy."""
    balloon: Balloon | None = None
    """None is no memory balloon."""
    agent: bool | None = None
    """A channel for the guest agent."""
    vsock: Vsock | None = None
    """None is no vsock device."""
    tablet: bool | None = None
    """A USB tablet: a pointer that needs no grabbing."""
    watchdog: Watchdog | None = None
    """None is no watchdog."""
    shares: tuple[Share, ...] = msgspec.field(name="share", default=())
    """Host folders in the guest."""
    rtc: Rtc | None = None
    """The guest's clock; None is UTC, as in QEMU."""
    audio: Audio | None = None
    """None is no sound card."""
    cloud_init: CloudInit | None = None
    """A seed for cloud-init; None is none."""
    safety: Safety = Safety()
    """What QEMU may do on the host."""
    arguments: tuple[str, ...] = ()
    """Handed to QEMU as they are, after everything else."""


DEFAULT_MEMORY = 1 << 30
"""QEMU's own 128 MiB starts no present-day guest."""

__all__ = ["DEFAULT_MEMORY", "Accelerator", "Machine"]
