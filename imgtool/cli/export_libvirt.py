"""`imgtool export libvirt IMAGE --profile vm.toml`"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from imgtool.cli.context import (
    Context,
    dry_run_option,
    output_option,
    pass_context,
    progress_option,
    quiet_option,
)
from imgtool.cli.options import FILE_NAME, file_argument, force_option, format_option
from imgtool.errors import UsageError

if TYPE_CHECKING:
    from imgtool.machine.config import Machine
    from imgtool.publish.libvirt.define import Defined


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool export libvirt web.qcow2 --profile vm.toml > web.xml\n"
    "  imgtool export libvirt web.qcow2 --profile vm.toml --define qemu:///system\n"
    "  imgtool export libvirt web.qcow2 --profile vm.toml --define qemu+ssh://root@host/system --pool images\n"
    "  imgtool import libvirt web --connect qemu:///system > vm.toml",
)
@file_argument(required=False, metavar="[IMAGE]")
@format_option("The format of IMAGE; without it, its header decides.")
@click.option("--profile", type=FILE_NAME, metavar="FILE", help="The machine's profile, as for `imgtool boot`.")
@click.option("--name", metavar="NAME", help="Its name.  [default: the profile's name, else the image's]")
@click.option(
    "--accel",
    "accelerator",
    type=click.Choice(["auto", "kvm", "tcg"]),
    help="What runs the guest.  [default: the profile's, else what works here, kvm elsewhere]",
)
@click.option("-o", "--output-file", "target", type=FILE_NAME, metavar="FILE", help="Write the XML to this file.")
@click.option(
    "--seed",
    type=FILE_NAME,
    metavar="FILE",
    help="Write the profile's cloud-init seed to this file, as a disk of the domain.",
)
@click.option("--define", "uri", metavar="URI", help="Define the domain on this libvirt, such as qemu:///system.")
@click.option(
    "--pool",
    metavar="NAME",
    help="With --define: copy the images into this storage pool first.  [default: `default`, for another host]",
)
@click.option("--partial", is_flag=True, help="Leave out what libvirt cannot express, and say what that is.")
@force_option("Even if others stand on an image, or its parent has changed since it was made.")
@progress_option
@quiet_option
@dry_run_option
@output_option()
@pass_context
def libvirt(
    context: Context,
    image: str | None,
    format_: str | None,
    profile: str | None,
    name: str | None,
    accelerator: str | None,
    target: str | None,
    seed: str | None,
    uri: str | None,
    pool: str | None,
    partial: bool,
    force: bool,
    dry_run: bool,
) -> None:
    """Write the domain XML for what `imgtool boot IMAGE --profile FILE` starts.

    Settings that libvirt cannot express are an error that names them all; with --partial they are left out, and
    listed on stderr. A domain of the same name is defined anew, if imgtool wrote it.
    """
    from imgtool.cli.progress import progress
    from imgtool.image.names import absolute
    from imgtool.publish.libvirt.define import DefineRequest, with_seed

    machine = _machine(image, format_, profile, accelerator)
    if pool is not None and uri is None:
        raise UsageError("--pool is where --define copies the images to", hint="add --define URI")
    if seed is not None:
        machine = with_seed(machine, absolute(seed), name=name, write=not dry_run)
    request = DefineRequest(
        machine,
        context.programs,
        name=name,
        uri=uri,
        pool=pool,
        target=None if target is None else absolute(target),
        partial=partial,
        force=force,
    )
    if dry_run:
        from imgtool.cli.plan import emit_plan

        emit_plan(context, request.plan())
        return
    with progress(context, "upload") as show:
        done = request.make(progress=show)
    _tell(context, done)


def _machine(image: str | None, format: str | None, profile: str | None, accelerator: str | None) -> Machine:
    """The profile's, with `image` as its first disk."""
    from msgspec.structs import replace

    from imgtool.image.names import absolute
    from imgtool.machine.config import Machine
    from imgtool.machine.profile import load_profile
    from imgtool.machine.values.storage import Drive

    machine = Machine() if profile is None else load_profile(profile)
    if image is not None:
        first = Drive(file=absolute(image), format=format, interface="virtio")
        machine = replace(machine, drives=(first, *machine.drives))
    elif format is not None:
        raise UsageError("--format without an IMAGE")
    return machine if accelerator is None else replace(machine, accel=accelerator)


def _tell(context: Context, done: Defined) -> None:
    from imgtool.cli.output import emit, remark, warn
    from imgtool.image.names import printable

    for one in done.left_out:
        warn(context, f"{one.setting} is left out: {one.reason}")
    for volume in done.volumes:
        state = "sent" if volume.sent else "there already"
        remark(context, f"{printable(volume.path)} is {printable(volume.volume)} there ({state})")
    if done.defined is not None:
        emit(context, done, [f"{printable(done.name)} is defined on {printable(done.defined)}"])
    elif done.file is not None:
        emit(context, done, [printable(done.file)])
    else:
        emit(context, done, done.xml.rstrip("\n").split("\n"))
