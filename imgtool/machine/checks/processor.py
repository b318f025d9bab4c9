"""Machine type, accelerator, CPU, topology."""

from __future__ import annotations

import uuid
from itertools import pairwise

from imgtool.errors import ConfigError
from imgtool.image.names import printable
from imgtool.machine.board import known_machine
from imgtool.machine.checks.context import Context, Problems, attempt
from imgtool.machine.options.text import nearest, suggestion
from imgtool.machine.smp import topology

_ACCELERATOR_PROPERTIES = ("kernel-irqchip", "kvm-shadow-mem", "igd-passthru")
"""Properties of the accelerator that -machine takes too."""


def check_identity(context: Context) -> Problems:
    machine = context.machine
    if machine.name is not None and (not machine.name.strip() or printable(machine.name) != machine.name):
        yield ConfigError(
            f"--name {printable(machine.name)!r} is not a name", hint="use letters, digits, dots and dashes"
        )
    if machine.uuid is not None:
        try:
            uuid.UUID(machine.uuid)
        except ValueError:
            yield ConfigError(
                f"--uuid {printable(machine.uuid)} is not a UUID",
                hint="it has 32 hexadecimal digits: 550e8400-e29b-41d4-a716-446655440000",
            )
    yield from _arguments(context)


_IN_OTHER_HANDS = {
    "-daemonize": "start it in the background with `imgtool boot -d`",
    "-pidfile": "`imgtool vm show` has the pid",
}
_UNDOING = {
    "-m": "--memory",
    "-smp": "--smp",
    "-cpu": "--cpu",
    "-machine": "--machine",
    "-M": "--machine",
    "-enable-kvm": "--accel kvm",
}
"""What everything before it was worked out from: its own option here."""


def _arguments(context: Context) -> Problems:
    for argument, value in pairwise((*context.machine.arguments, "")):
        if not argument.startswith("-"):
            continue
        name = "-" + argument.lstrip("-")
        if name in _IN_OTHER_HANDS:
            yield ConfigError(f"{name} takes the VM out of imgtool's hands", hint=_IN_OTHER_HANDS[name])
        elif name in _UNDOING and not context.force:
            yield ConfigError(
                f"{name} among the arguments for QEMU would change what the others were made for",
                hint=f"write {_UNDOING[name]} before `--`; --force leaves it to QEMU what becomes of both",
            )
        elif name == "-accel" and value.partition(",")[0] != context.host.accelerator:
            wanted = value.partition(",")[0]
            yield ConfigError(
                f"-accel {printable(wanted)} among the arguments for QEMU, and the accelerator is "
                f"{context.host.accelerator}",
                hint=f"add --accel {printable(wanted)}",
            )


def check_machine(context: Context) -> Problems:
    problems: list[ConfigError] = []
    attempt(lambda: known_machine(context.machine, context.host), problems)
    yield from problems
    yield from _machine_properties(context)
    wanted, compiled = context.machine.accel, context.host.capabilities.accelerators
    if wanted not in (None, "auto") and wanted not in compiled:
        yield ConfigError(
            f"this QEMU was built without {wanted}",
            hint=f"it has {', '.join(compiled)}; --accel auto takes what works",
        )


def _machine_properties(context: Context) -> Problems:
    known = context.host.machine_properties
    if known is None:
        return
    for name in context.machine.machine.properties:
        # QEMU takes an underscore for a dash, and hands a few names on to the accelerator.
        dashed = name.replace("_", "-")
        if {name, dashed, name.partition(".")[0]} & set(known) or dashed in _ACCELERATOR_PROPERTIES:
            continue
        yield ConfigError(
            f"machine {context.board.name} has no property {printable(name)!r}",
            hint=suggestion(name, [*known, *_ACCELERATOR_PROPERTIES]),
        )


def _cpu_properties(context: Context) -> Problems:
    known = context.host.cpu_properties
    for name in context.machine.cpu.properties if known is not None else ():
        if not {name, name.replace("_", "-")} & set(known or ()):
            yield ConfigError(f"--cpu has no {printable(name)!r}", hint=suggestion(name, known or ()))


def check_cpu(context: Context) -> Problems:
    cpu, capabilities = context.machine.cpu, context.host.capabilities
    names = [model.name for model in capabilities.cpu_models]
    if cpu.model == "host" and context.host.accelerator == "tcg":
        yield ConfigError(
            "--cpu host shows the guest the real CPU, which TCG only imitates",
            hint="--cpu max has all that TCG can do; --cpu host needs KVM or HVF",
        )
    elif cpu.model is not None and cpu.model not in ("host", "max") and names and cpu.model not in names:
        close = nearest(cpu.model, names)
        yield ConfigError(
            f"this QEMU has no CPU model {printable(cpu.model)!r}",
            hint=(f"did you mean {close}? " if close else "") + "`--cpu help` lists them all",
        )
    yield from _features(context)
    yield from _cpu_properties(context)


def _features(context: Context) -> Problems:
    host = context.host
    # Exactly: QEMU takes `hv_relaxed=on` for hv-relaxed, but not `+hv_relaxed`.
    known = {*host.capabilities.cpu_features, *(host.cpu_properties or ())}
    signs: dict[str, str] = {}
    for feature in context.machine.cpu.features:
        sign, name = feature[0], feature[1:]
        if signs.setdefault(name, sign) != sign:
            yield ConfigError(f"--cpu both adds and removes {name}", hint=f"keep one of +{name} and -{name}")
        if name not in known and host.cpu_properties is not None:
            close = nearest(name, known)
            yield ConfigError(
                f"--cpu: there is no CPU feature {printable(name)!r}",
                hint=f"did you mean {close}?" if close else "`--cpu help` lists them all",
            )


def check_smp(context: Context) -> Problems:
    problems: list[ConfigError] = []
    found = attempt(lambda: topology(context.machine.smp), problems)
    yield from problems
    known = context.host.capabilities.machine(context.board.name)
    if found is None:
        return
    if known is not None and found.maxcpus > known.cpu_max:
        others = [m for m in context.host.capabilities.machines if m.cpu_max >= found.maxcpus and m.alias]
        more = f"{others[0].alias} has up to {others[0].cpu_max}" if others else f"say --smp {known.cpu_max}"
        yield ConfigError(
            f"{found.maxcpus} CPUs are more than machine {context.board.name} has: {known.cpu_max}", hint=more
        )
    elif known is not None and found.maxcpus > found.cpus and not known.hotpluggable_cpus:
        yield ConfigError(
            f"machine {context.board.name} cannot plug CPUs in while it runs, so maxcpus is cpus",
            hint=f"say --smp {found.maxcpus}, or take --machine q35",
        )
    for level, has in (("dies", context.board.dies), ("clusters", context.board.clusters)):
        if getattr(found, level) > 1 and not has:
            yield ConfigError(
                f"machine {context.board.name} has no {level} in its topology", hint=f"leave {level}= out of --smp"
            )
