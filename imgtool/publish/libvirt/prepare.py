"""What a machine is here, before it is written as a domain."""

from __future__ import annotations

from typing import NamedTuple

from msgspec.structs import replace

from imgtool.errors import ConfigError
from imgtool.machine.compile.start import wants_uefi
from imgtool.machine.config import Machine
from imgtool.machine.disks import learn_disks, uses
from imgtool.machine.firmware import Found, find_uefi
from imgtool.machine.host import Host
from imgtool.machine.outside import QEMU, learn_host
from imgtool.machine.runtime import name_from
from imgtool.publish.libvirt.domain import Domain, domain
from imgtool.publish.libvirt.settle import Settled, settled
from imgtool.qemu.capabilities import capabilities
from imgtool.qemu.programs import Programs


class Prepared(NamedTuple):
    settled: Settled
    host: Host
    firmware: Found | None

    def domain(self, *, partial: bool = False) -> Domain:
        """As `imgtool.publish.libvirt.domain.domain`."""
        return domain(self.settled, self.host, self.firmware, partial=partial)


def prepare(
    machine: Machine,
    programs: Programs,
    *,
    name: str | None = None,
    here: bool = True,
    force: bool = False,
) -> Prepared:
    """`machine` as it would be on this host; with `here` false it is for another one, whose libvirt chooses QEMU's
    path, firmware, and what an alias of a machine type stands for, and whose KVM runs the guest unless `machine` says
    otherwise.

    Raises as `imgtool.machine.disks.learn_disks` for its images (`force` lets pass what that lets pass), ConfigError
    when it contradicts itself, MachineError when there is no firmware for it."""
    learned = learn_disks(list(uses(machine)), force=force)
    if not here and machine.accel in (None, "auto"):
        machine = replace(machine, accel="kvm")  # what works here says nothing of that host
    host, _ = learn_host(
        machine, programs, runtime_dir="/run/imgtool", scratch_dir=None, console="none", disks=learned.disks
    )
    called = name or machine.name or name_from(first_file(machine))
    wanted = settled(machine, host, name=called, versioned=here)
    firmware = _firmware(machine, programs) if here and wants_uefi(machine) else None
    return Prepared(wanted, host, firmware)


def first_file(machine: Machine) -> str | None:
    """What a machine without a name is called after."""
    return next((use.path for use in uses(machine)), machine.kernel)


def _firmware(machine: Machine, programs: Programs) -> Found:
    found = capabilities(programs.find(QEMU))
    kind = found.machine(machine.machine.type)
    if kind is None:
        raise ConfigError(f"this QEMU has no machine {machine.machine.type}", hint="`imgtool boot --machine help`")
    return find_uefi(found.target, kind.name, secure_boot=bool(machine.firmware.secure_boot))
