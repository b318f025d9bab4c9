"""`imgtool export kubevirt IMAGE --profile vm.toml`"""

from __future__ import annotations

import click

from imgtool.cli.context import Context, output_option, pass_context, quiet_option
from imgtool.cli.options import FILE_NAME, file_argument, format_option
from imgtool.errors import UsageError


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool export kubevirt web.qcow2 --profile vm.toml > web.yaml\n"
    "  imgtool export kubevirt web.qcow2 --profile vm.toml --ref registry.example.org/disks/web:1.4 |\n"
    "    kubectl apply -f -\n"
    "  imgtool export kubevirt --profile vm.toml --partial --storage-class fast",
)
@file_argument(required=False, metavar="[IMAGE]")
@format_option("The format of IMAGE; without it, its header decides.")
@click.option(
    "--profile", type=FILE_NAME, metavar="FILE", required=True, help="The machine's profile, as for `imgtool boot`."
)
@click.option("--name", metavar="NAME", help="Its name.  [default: the profile's name, else the image's]")
@click.option(
    "--ref", "reference", metavar="REF", help="Take the first disk from this containerDisk instead of an upload."
)
@click.option("--storage-class", metavar="NAME", help="The storage class of the disks.  [default: the cluster's]")
@click.option("--partial", is_flag=True, help="Leave out what KubeVirt cannot express, and say what that is.")
@quiet_option
@output_option()
@pass_context
def kubevirt(
    context: Context,
    image: str | None,
    format_: str | None,
    profile: str,
    name: str | None,
    reference: str | None,
    storage_class: str | None,
    partial: bool,
) -> None:
    """Write the VirtualMachine and DataVolume manifests for what `imgtool boot IMAGE --profile FILE` starts.

    Settings that KubeVirt cannot express are an error that names them all; with --partial they are left out, and
    listed on stderr.
    """
    from msgspec.structs import replace

    from imgtool.cli.output import emit, remark, warn
    from imgtool.image.names import absolute, printable
    from imgtool.machine.profile import load_profile
    from imgtool.machine.values.storage import Drive
    from imgtool.publish.kubevirt.manifests import as_yaml, manifests
    from imgtool.publish.oci.reference import parse_reference

    machine = load_profile(profile)
    if image is not None:
        first = Drive(file=absolute(image), format=format_, interface="virtio")
        machine = replace(machine, drives=(first, *machine.drives))
    elif format_ is not None:
        raise UsageError("--format without an IMAGE")
    registry = None if reference is None else str(parse_reference(reference))
    found = manifests(machine, name=name, registry=registry, storage_class=storage_class, partial=partial)
    for one in found.left_out:
        warn(context, f"{one.setting} is left out: {one.reason}")
    for attachment in found.attachments:
        remark(context, f"the cluster needs a NetworkAttachmentDefinition {attachment}")
    for claim, path in found.uploads.items():
        remark(
            context, f"upload the disk: virtctl image-upload dv {claim} --no-create --image-path={printable(path)}"
        )
    emit(context, found, as_yaml(found).rstrip("\n").split("\n"))
