"""Everything that is decided before a VM starts: its name, its images, its accelerator, its command line."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec.structs import replace

from imgtool.errors import ConfigError, ImageInUseError
from imgtool.image.userdirs import user_dir
from imgtool.machine.accelerator import Choice
from imgtool.machine.argv import compile_argv
from imgtool.machine.compile.start import wants_uefi
from imgtool.machine.config import Machine
from imgtool.machine.disks import Learned, learn_disks, uses
from imgtool.machine.firmware import Found, find_uefi, variables_format
from imgtool.machine.host import Command, Helper, Host, Scratch, Secret, TapNeed
from imgtool.machine.outside import QEMU, check_files, learn_host
from imgtool.machine.runtime import claim, foresee, is_migrated_to, name_from, release
from imgtool.machine.validate import validate, warnings
from imgtool.machine.vm import Vm
from imgtool.qemu.capabilities import capabilities
from imgtool.qemu.programs import Programs

if TYPE_CHECKING:
    from imgtool.machine.seed import Seed
    from imgtool.machine.values.devices import CloudInit

SEED = "seed.iso"
VARIABLES = "uefi-vars.qcow2"


class Preparation(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What is done before QEMU starts."""

    scratch: tuple[Scratch, ...]
    """Overlays to make."""
    helpers: tuple[Helper, ...]
    """Programs to start."""
    secrets: tuple[Secret, ...]
    """Passwords to write."""
    taps: tuple[TapNeed, ...]
    """Network interfaces to open."""


class PlanDocument(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """`boot --dry-run --output json`."""

    name: str
    """The VM's."""
    accelerator: str
    """What would run the guest: kvm, tcg, …"""
    accelerator_why: str
    """Why that one, in words."""
    warnings: tuple[str, ...]
    """What is good to know before it starts, in words."""
    before: Preparation
    """What is done before QEMU starts."""
    command: tuple[str, ...]
    """QEMU's argv."""
    machine: Machine
    """The machine, as a profile would have it."""


class Plan(msgspec.Struct, frozen=True):
    """A VM that may be started as it stands here."""

    vm: Vm
    machine: Machine
    """With its name, and the places of what is kept for it."""
    host: Host
    choice: Choice
    command: Command
    seed: Seed | None
    firmware: Found | None
    detached: bool
    warnings: tuple[str, ...]


def preview(machine: Machine, programs: Programs, *, detached: bool, force: bool = False) -> Plan:
    """The plan as it would be now. Claims nothing and changes nothing; raises what `prepare` would."""
    learned = learn_disks(list(uses(machine)), force=force)
    vm = foresee(
        name=machine.name, like=_first_image(machine), images=() if is_migrated_to(machine) else learned.held
    )
    _raise_first(learned, machine)
    plan = _plan(machine, vm, learned, programs, detached=detached, force=force)
    if not plan.command.taps:
        return plan
    from imgtool.machine.nets.join import foreseen

    descriptors = foreseen(plan.command.taps)
    if not descriptors:
        return plan
    host = replace(plan.host, descriptors=descriptors)
    return msgspec.structs.replace(plan, host=host, command=compile_argv(plan.machine, host))


def prepare(machine: Machine, programs: Programs, *, detached: bool, force: bool = False) -> Plan:
    """The plan, its name and images claimed: `imgtool.machine.launch.launch` follows, or `release` of its `vm`.

    Raises what `learn_disks`, `claim`, `learn_host`, validation and compiling raise; then nothing is left claimed.
    """
    learned = learn_disks(list(uses(machine)), force=force)
    vm = claim(machine, name=machine.name, like=_first_image(machine), images=learned.held, detached=detached)
    try:
        _raise_first(learned, machine)
        plan = _plan(machine, vm, learned, programs, detached=detached, force=force)
        vm.update(machine=plan.machine, argv=plan.command.argv)
    except BaseException:
        release(vm)
        raise
    return plan


def _raise_first(learned: Learned, machine: Machine) -> None:
    if is_migrated_to(machine):
        return
    error: ImageInUseError
    for error in learned.in_use:
        raise error


def _first_image(machine: Machine) -> str | None:
    return next((use.path for use in uses(machine)), machine.kernel)


def _plan(machine: Machine, vm: Vm, learned: Learned, programs: Programs, *, detached: bool, force: bool) -> Plan:
    machine = replace(_with_places(machine), name=vm.name)
    check_files(machine)
    console: Literal["stdio", "socket"] = "socket" if detached else "stdio"
    firmware = _firmware(machine, programs)
    content = _seed(machine.cloud_init, vm.name) if machine.cloud_init is not None else None
    uefi = None
    if firmware is not None:
        own = machine.firmware.vars if firmware.template else None
        uefi = replace(firmware.uefi, vars=own, vars_format=variables_format(own) if own else "qcow2")
    host, choice = learn_host(
        machine,
        programs,
        runtime_dir=vm.path,
        scratch_dir=scratch_dir(vm),
        console=console,
        disks=learned.disks,
        seed=vm.file(SEED) if content is not None else None,
        uefi=uefi,
    )
    validate(machine, host, force=force)
    return Plan(
        vm=vm,
        machine=machine,
        host=host,
        choice=choice,
        command=compile_argv(machine, host),
        seed=content,
        firmware=firmware,
        detached=detached,
        warnings=tuple(warnings(machine, host)),
    )


def _seed(wanted: CloudInit, name: str) -> Seed:
    from imgtool.machine.seed import seed

    return seed(wanted, name)


def scratch_dir(vm: Vm) -> str:
    """Where this VM's thrown-away writes go: like QEMU's own snapshot=on in TMPDIR or /var/tmp, since the runtime
    directory is small and in memory. A VM of the same name in another runtime directory has another."""
    from zlib import crc32

    which = f"{crc32(os.fsencode(vm.root)):08x}"
    return os.path.join(os.environ.get("TMPDIR") or "/var/tmp", f"imgtool-{os.getuid()}-{vm.name}-{which}")


def data_dir(name: str) -> str:
    """What is kept for the VM `name` from one start to the next: UEFI variables, TPM state."""
    return os.path.join(user_dir("data"), "vm", name)


def _lasting_name(machine: Machine) -> str:
    """What a VM without a name of its own is known by from one start to the next: its first image."""
    import hashlib

    image = _first_image(machine) or ""
    digest = hashlib.sha256(os.fsencode(image)).hexdigest()
    return f"{name_from(image)}-{digest[:8]}"


def _with_places(machine: Machine) -> Machine:
    """With places for what is kept from one start to the next, where the machine has such things."""
    tpm, uefi = machine.tpm is not None, wants_uefi(machine)
    kept = data_dir(machine.name or _lasting_name(machine)) if tpm or uefi else ""
    if machine.tpm is not None and machine.tpm.state is None:
        machine = replace(machine, tpm=replace(machine.tpm, state=os.path.join(kept, "tpm")))
    if uefi and machine.firmware.vars is None:
        machine = replace(machine, firmware=replace(machine.firmware, vars=os.path.join(kept, VARIABLES)))
    return machine


def _firmware(machine: Machine, programs: Programs) -> Found | None:
    if not wants_uefi(machine):
        return None
    found = capabilities(programs.find(QEMU))
    kind = found.machine(machine.machine.type)
    if kind is None:
        raise ConfigError(f"this QEMU has no machine {machine.machine.type}", hint="`imgtool boot --machine help`")
    return find_uefi(found.target, kind.name, secure_boot=bool(machine.firmware.secure_boot))


def document(plan: Plan) -> PlanDocument:
    """The plan as one value that can be written down."""
    command = plan.command
    return PlanDocument(
        name=plan.vm.name,
        accelerator=plan.choice.accelerator,
        accelerator_why=plan.choice.why,
        warnings=plan.warnings,
        before=Preparation(
            scratch=command.scratch, helpers=command.helpers, secrets=command.secrets, taps=command.taps
        ),
        command=command.argv,
        machine=plan.machine,
    )
