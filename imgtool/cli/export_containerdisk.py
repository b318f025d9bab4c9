"""`imgtool export containerdisk IMAGE REF`"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from imgtool.cli.context import Context, dry_run_option, output_option, pass_context, progress_option, quiet_option
from imgtool.cli.options import FILE_NAME, file_argument, force_option, format_option
from imgtool.cli.publishing import annotation_map, annotation_option, publish
from imgtool.cli.registry_options import LOGIN, connection_of, registry_options

if TYPE_CHECKING:
    from imgtool.publish.containerdisk import Exported


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool export containerdisk web.qcow2 registry.example.org/disks/web:1.4\n"
    "  imgtool export containerdisk web.qcow2 --layout ./web-disk --tag 1.4\n"
    "  imgtool export containerdisk -c -O qcow2 web.qcow2 localhost:5000/web\n"
    f"\n{LOGIN}",
)
@file_argument(metavar="IMAGE")
@click.argument("reference", metavar="[REF]", required=False)
@format_option("The format of IMAGE; without it, its header decides.")
@click.option("--layout", type=FILE_NAME, metavar="DIR", help="Write it to an OCI layout, created if there is none.")
@click.option("--tag", metavar="TAG", help="With --layout: its tag there.  [default: latest]")
@click.option(
    "-O",
    "--target-format",
    "disk_format",
    type=click.Choice(["qcow2", "raw"]),
    default="qcow2",
    help="The format of the disk.  [default: qcow2]",
)
@click.option("-c", "--compress", is_flag=True, help="Compress the qcow2.")
@click.option(
    "--arch", "architecture", metavar="ARCH", help="The architecture, by its Go name.  [default: this host's]"
)
@annotation_option
@force_option("Even if an image of the chain is damaged, or its parent has changed since it was made.")
@registry_options
@progress_option
@quiet_option
@dry_run_option
@output_option()
@pass_context
def containerdisk(
    context: Context,
    image: str,
    reference: str | None,
    format_: str | None,
    layout: str | None,
    tag: str | None,
    disk_format: str,
    compress: bool,
    architecture: str | None,
    annotations: tuple[str, ...],
    force: bool,
    plain_http: bool,
    cert_dir: tuple[str, ...],
    jobs: int,
    retries: int,
    dry_run: bool,
) -> None:
    """Make a containerDisk from IMAGE and all it stands on: push it as REF, or write it to a directory.

    The containerDisk is an OCI image with one file, /disk/disk.qcow2 or /disk/disk.img, owned by QEMU (107:107, mode
    0440).
    """
    from imgtool.publish.containerdisk import ContainerDiskRequest

    request = ContainerDiskRequest(
        image,
        reference,
        layout=layout,
        tag=tag,
        format=format_,
        disk_format="raw" if disk_format == "raw" else "qcow2",
        compress=compress,
        architecture=architecture,
        annotations=annotation_map(annotations),
        force=force,
        connection=connection_of(plain_http, cert_dir, jobs, retries),
    )
    publish(context, request, "export", _lines, dry_run=dry_run)


def _lines(exported: Exported) -> Iterator[str]:
    from imgtool.cli.render import short_size
    from imgtool.image.names import printable

    where = exported.reference or printable(exported.layout or "")
    yield f"{exported.disk}  {exported.format}  {short_size(exported.size)}"
    yield f"{where} is {exported.digest}"
