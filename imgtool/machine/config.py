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
    uuid: str | None = None
    machine: MachineType = MachineType()
    accel: Accelerator | None = None
    """None is auto."""
    cpu: Cpu = Cpu()
    smp: Smp = Smp()
    memory: Memory = Memory()
    hugepages: Hugepages | None = None
    numa: Numa = Numa()
    fda: Path | None = None
    fdb: Path | None = None
    hda: Path | None = None
    hdb: Path | None = None
    hdc: Path | None = None
    hdd: Path | None = None
    cdrom: Path | None = None
    drives: tuple[Drive, ...] = msgspec.field(name="drive", default=())
    ephemeral: bool | None = None
    """Writes to every drive are thrown away, except where a drive says `snapshot = false`."""
    boot: Boot = Boot()
    kernel: Path | None = None
    initrd: Path | None = None
    append: str | None = None
    dtb: Path | None = None
    networks: tuple[Network, ...] | None = msgspec.field(name="network", default=None)
    """None is one user network, as in QEMU; an empty list is no network at all."""
    display: Display = Display()
    vga: VgaModel | None = None
    """None is std on a PC and none elsewhere."""
    keymap: str | None = None
    firmware: Firmware = Firmware()
    tpm: Tpm | None = None
    serial: tuple[CharDevice, ...] | None = None
    """None is one port, where `Host.console` says; an empty list is none."""
    parallel: tuple[CharDevice, ...] = ()
    rng: Rng | None = None
    balloon: Balloon | None = None
    agent: bool | None = None
    """A channel for the guest agent."""
    vsock: Vsock | None = None
    tablet: bool | None = None
    """A USB tablet: a pointer that needs no grabbing."""
    watchdog: Watchdog | None = None
    shares: tuple[Share, ...] = msgspec.field(name="share", default=())
    rtc: Rtc | None = None
    audio: Audio | None = None
    cloud_init: CloudInit | None = None
    safety: Safety = Safety()
    arguments: tuple[str, ...] = ()
    """Handed to QEMU as they are, after everything else."""


DEFAULT_MEMORY = 1 << 30
"""QEMU's own 128 MiB starts no present-day guest."""

__all__ = ["DEFAULT_MEMORY", "Accelerator", "Machine"]
