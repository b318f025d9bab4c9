"""`imgtool boot`: a virtual machine from an image."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from imgtool.cli.boot_options import (
    FILES,
    OPTIONAL,
    SECTIONS,
    cloud_init_options,
    firmware_options,
    machine_options,
    settings_of,
)
from imgtool.cli.context import Context, dry_run_option, output_option, pass_context, quiet_option
from imgtool.cli.lazy import Sectioned
from imgtool.cli.options import FILE_NAME, Word, file_argument, force_option, format_option
from imgtool.errors import UsageError

if TYPE_CHECKING:
    from imgtool.machine.config import Machine
    from imgtool.machine.launch import Started
    from imgtool.machine.plan import Plan
    from imgtool.machine.readiness import Wait


class BootCommand(Sectioned):
    """What stands after `--` is QEMU's, whether or not an IMAGE stands before it. Who writes QEMU's words elsewhere
    is told imgtool's."""

    sections = SECTIONS

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            ctx.meta[_ARGUMENTS] = tuple(args[at + 1 :])
            args = args[:at]
        words = tuple(args)
        try:
            if any((word[:2] in ("-f", "-h") and len(word) > 3) or word in _QEMUS for word in words):
                from imgtool.cli.qemu_words import refuse_mistaken_word

                refuse_mistaken_word(self, words)
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            from imgtool.cli.qemu_words import refuse_qemu_word

            refuse_qemu_word(self, words, error.option_name)
            raise

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "[-- QEMU ARGUMENTS…]"]


_ARGUMENTS = "imgtool.cli.boot.arguments"
_QEMUS = ("-d", "-sandbox", "--sandbox", "--sandbox=on", "--sandbox=off")
"""Options that QEMU gives a value, and imgtool none."""


@click.command(
    cls=BootCommand,
    epilog="\b\nExamples:\n"
    "  imgtool boot disk.qcow2\n"
    "  imgtool boot base.qcow2 --new-overlay test.qcow2 --memory 2G --smp 4\n"
    "  imgtool boot disk.qcow2 --ephemeral --network user,hostfwd=tcp::2222-:22\n"
    "  imgtool boot disk.qcow2 --kernel vmlinuz --initrd initrd --append 'root=/dev/vda console=ttyS0'\n"
    "  imgtool boot -d cloud.qcow2 --ssh-key ~/.ssh/id_ed25519.pub --wait ssh\n"
    "  imgtool boot web.toml@packages\n"
    "  imgtool boot disk.qcow2 -- -device edu\n"
    "\n"
    "The serial console is on the terminal: Ctrl-A X ends the VM, Ctrl-A C opens QEMU's monitor, Ctrl-A H help.\n"
    "The exit status is 0 if the guest powered off or the VM was ended, else QEMU's own.",
)
@file_argument(required=False, metavar="[IMAGE]")
@format_option("The format of IMAGE; without it, its header decides.")
@click.option(
    "--profile", type=FILE_NAME, metavar="FILE", help="A TOML file with any of these settings; see `schema profile`."
)
@click.option(
    "--accel",
    type=Word("accelerators"),
    metavar="[auto|kvm|tcg|hvf]",
    help="auto proves that kvm works before using it.  [default: auto]",
)
@click.option("--ephemeral", is_flag=True, default=None, help="Discard what the guest writes.")
@click.option(
    "--new-overlay", type=FILE_NAME, metavar="PATH", help="Create an overlay of IMAGE there, and boot that."
)
@machine_options
@click.option(
    "--nic-model",
    metavar="MODEL",
    help="The network card, where --network names none; `help` lists them.  [default: virtio]",
)
@firmware_options
@cloud_init_options
@click.option("--sandbox/--no-sandbox", default=None, help="QEMU's own seccomp filter.  [default: on]")
@click.option("--run-as", metavar="USER", help="The user QEMU becomes once it has opened everything.")
@click.option("-d", "--detach", is_flag=True, help="Start it in the background and print its name.")
@click.option(
    "--wait",
    "wait_for",
    type=Word("waits"),
    metavar="WHAT",
    help="With -d: until running, serial:REGEX, ssh, agent or cloud-init.",
)
@click.option(
    "--wait-timeout",
    type=click.FloatRange(min=0),
    default=300,
    metavar="SECONDS",
    help="How long to wait.  [default: 300]",
)
@click.option("--timeline", is_flag=True, help="Report afterwards when firmware, kernel, init… were reached.")
@force_option("Boot it even if other images stand on it, it is in use, or memory is short.")
@dry_run_option
@quiet_option
@output_option()
@pass_context
def boot(
    context: Context,
    /,
    image: str | None,
    format_: str | None,
    profile: str | None,
    new_overlay: str | None,
    detach: bool,
    wait_for: str | None,
    wait_timeout: float,
    timeline: bool,
    force: bool,
    dry_run: bool,
    **settings: Any,
) -> int:
    """Start a virtual machine from IMAGE.

    IMAGE is the first disk (virtio). All other settings have their QEMU names; --profile reads them from a file.
    """
    if _help(context, settings):
        return 0
    condition = _condition(wait_for, detach=detach)
    arguments = click.get_current_context().meta.get(_ARGUMENTS, ())
    words = _over_profile(profile, settings_of(settings, arguments))
    if image is not None and "@" in image:
        from imgtool.cli.build_layer import open_layer

        image, words = open_layer(image, words, throwaway=new_overlay is None)
    if new_overlay is not None and image is None:
        raise UsageError("--new-overlay needs the IMAGE it is to stand on")
    if dry_run:
        if new_overlay is not None and not context.json:
            _show_overlay(context, str(image), format_, new_overlay, force=force)
        machine = _machine(words, image, format_)
        _check_condition(condition, machine)
        _show(context, machine, detach=detach, force=force or new_overlay is not None)
        return 0
    with contextlib.ExitStack() as undo:
        if new_overlay is not None:
            image = undo.enter_context(_overlay(context, str(image), format_, new_overlay, force=force))
        machine = _machine(words, image, None if new_overlay is not None else format_)
        _check_condition(condition, machine)
        if not detach:
            return _foreground(context, machine, timeline=timeline, force=force)
        started = _in_background(context, machine, force=force)
    return _await(context, started, condition, wait_timeout, timeline=timeline)


def _condition(wait_for: str | None, *, detach: bool) -> Wait | None:
    """What --wait names. UsageError when it names nothing, before anything is done."""
    if wait_for is None:
        return None
    if not detach:
        raise UsageError("--wait is for a VM in the background", hint="add -d")
    from imgtool.machine.readiness import parse_wait

    return parse_wait(wait_for)


def _check_condition(condition: Wait | None, machine: Machine) -> None:
    if condition is not None:
        from imgtool.machine.readiness import check_wait

        check_wait(condition, machine)


def _over_profile(profile: str | None, words: dict[str, Any]) -> dict[str, Any]:
    """The settings of the profile with `words` on top."""
    if profile is None:
        return words
    from imgtool.machine.options.words import merge
    from imgtool.machine.profile import read_profile

    return merge(read_profile(profile), words)


def _machine(words: dict[str, Any], image: str | None, format_: str | None) -> Machine:
    from imgtool.machine.options.words import from_words, with_first_disk

    if image is not None:
        words = with_first_disk(words, image, format_)
    elif format_ is not None:
        raise UsageError("--format without an IMAGE")
    if not words.keys() & {"drive", "kernel", "bios", "firmware", *FILES, "network"}:
        raise UsageError("nothing to boot from", hint=_taken(words) or "give an IMAGE, a --cdrom or a --kernel")
    model = words.pop("nic-model", None)
    machine = from_words(words)
    return machine if model is None else _with_nic(machine, model)


def _taken(words: Mapping[str, Any]) -> str | None:
    """What to do when `--`, or an option whose value may be left out, took the IMAGE."""
    arguments = click.get_current_context().meta.get(_ARGUMENTS, ())
    if arguments and os.path.isfile(arguments[0]):
        from imgtool.image.names import pasted

        name = os.path.join(os.curdir, arguments[0]) if arguments[0].startswith("-") else arguments[0]
        return f"what stands after -- goes to QEMU: write {pasted(name)} before it"
    for name, _, _ in OPTIONAL:
        value = words.get(name)
        if isinstance(value, str) and os.path.isfile(value):
            from imgtool.image.names import printable

            return f"--{name} took {printable(value)} as its value: write IMAGE before --{name}"
    return None


def _with_nic(machine: Machine, model: str) -> Machine:
    from msgspec.structs import replace

    from imgtool.machine.values.network import User

    networks = (User(),) if machine.networks is None else machine.networks
    return replace(
        machine,
        networks=tuple(network if network.model else replace(network, model=model) for network in networks),
    )


@contextlib.contextmanager
def _overlay(context: Context, image: str, format_: str | None, target: str, *, force: bool) -> Iterator[str]:
    """The overlay that --new-overlay asks for. It goes again with an error before anything was written to it: a VM
    that cannot be started leaves nothing, and the next attempt may have the same name."""
    from imgtool.operations.overlay import OverlayRequest

    path = OverlayRequest(image, target, base_format=format_, force=force).make(context.qemu_img).path
    fresh = os.stat(path)
    try:
        yield path
    except BaseException:
        with contextlib.suppress(OSError):
            now = os.stat(path)
            if (now.st_ino, now.st_size, now.st_mtime_ns) == (fresh.st_ino, fresh.st_size, fresh.st_mtime_ns):
                os.unlink(path)
        raise


def _show_overlay(context: Context, image: str, format_: str | None, target: str, *, force: bool) -> None:
    from imgtool.cli.output import remark
    from imgtool.cli.plan import emit_plan
    from imgtool.operations.overlay import OverlayRequest

    request = OverlayRequest(image, target, base_format=format_, force=force, settle=False)
    emit_plan(context, request.plan(context.programs.find("qemu-img")))
    remark(context, "the machine is shown with the base in place of the overlay that is still to be made")


def _show(context: Context, machine: Machine, *, detach: bool, force: bool) -> None:
    from imgtool.cli.output import emit
    from imgtool.machine.plan import document, preview

    plan = preview(machine, context.programs, detached=detach, force=force)
    emit(context, document(plan), _plan_lines(plan))


def _plan_lines(plan: Plan) -> Iterator[str]:
    from imgtool.cli.render import shell
    from imgtool.image.names import printable
    from imgtool.machine.describe import describe

    yield f"name      {plan.vm.name}"
    for heading, text in describe(plan.machine, plan.host):
        why = f" ({plan.choice.why})" if heading == "accel" and plan.choice.why else ""
        yield f"{heading:9} {text}{why}"
    for path, disk in plan.host.disks.items():
        chain = " → ".join(f"{printable(link.path)} ({link.format})" for link in disk.chain)
        yield f"image     {chain or printable(path)}"
    for scratch in plan.command.scratch:
        yield f"scratch   {printable(scratch.path)} over {printable(scratch.backing)}"
    for text in plan.warnings:
        yield f"warning   {text}"
    for helper in plan.command.helpers:
        yield f"run       {shell(helper.argv)}"
    yield f"run       {shell(plan.command.argv)}"


def _foreground(context: Context, machine: Machine, *, timeline: bool, force: bool) -> int:
    from imgtool.cli.output import remark
    from imgtool.machine.launch import run
    from imgtool.machine.plan import prepare

    plan = prepare(machine, context.programs, detached=False, force=force)
    _say(context, plan)
    if timeline:
        from imgtool.cli.boot_timeline import run_with_timeline

        ended = run_with_timeline(plan, context.programs)
    else:
        ended = run(plan, context.programs)
    if ended.said:
        remark(context, ended.said, label="QEMU")
    return ended.status


def _say(context: Context, plan: Plan) -> None:
    """What a person should know before the guest takes over the terminal."""
    from imgtool.cli.output import remark, warn
    from imgtool.image.names import printable

    for text in plan.warnings:
        warn(context, text)
    if plan.machine.accel in (None, "auto") and plan.choice.accelerator == "tcg" and plan.choice.proofs:
        proof = plan.choice.proofs[0]
        remark(context, f"emulating (tcg): {proof.accelerator}: {proof.reason}; see `imgtool doctor`")
    for secret in plan.command.secrets:
        remark(context, f"{secret.protocol.upper()} asks for the password in {printable(secret.path)}")
    if not plan.detached:
        remark(context, f"the VM is {plan.vm.name}; Ctrl-A X ends it")


def _in_background(context: Context, machine: Machine, *, force: bool) -> Started:
    from imgtool.machine.launch import launch
    from imgtool.machine.plan import prepare

    plan = prepare(machine, context.programs, detached=True, force=force)
    _say(context, plan)
    started = launch(plan, context.programs)
    started.process.close()
    return started


def _await(context: Context, started: Started, condition: Wait | None, seconds: float, *, timeline: bool) -> int:
    """Waits until the guest is as far as `condition` says, and prints the VM's name, whether it came there or not."""
    from imgtool.cli.output import emit, remark
    from imgtool.machine.readiness import Wait, wait_until
    from imgtool.machine.serial import Timeline

    plan = started.plan
    marks = Timeline() if timeline else None
    try:
        wait_until(plan.vm, condition or Wait("running"), seconds=seconds, begun=started.begun, timeline=marks)
    except KeyboardInterrupt:
        remark(context, f"the VM {plan.vm.name} runs on: `imgtool vm stop {plan.vm.name}` ends it")
        raise
    finally:
        if marks is not None:
            from imgtool.cli.boot_timeline import echo_timeline

            echo_timeline(marks)
        emit(context, {"name": plan.vm.name, "accelerator": plan.choice.accelerator}, [plan.vm.name])
    return 0


def _help(context: Context, settings: Mapping[str, Any]) -> bool:
    """Answers `--machine help`, `--cpu help` and `--nic-model help`."""
    asked = [name for name in ("machine", "cpu", "nic_model") if settings.get(name) == "help"]
    if not asked:
        return False
    from imgtool.cli.boot_help import emit_help

    emit_help(context, asked[0])
    return True
