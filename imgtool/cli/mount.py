"""`imgtool mount IMAGE DIR` and `imgtool unmount DIR`"""

from __future__ import annotations

import click

from imgtool.cli.context import Context, dry_run_option, output_option, pass_context, quiet_option
from imgtool.cli.options import FILE_NAME, file_argument, force_option, format_option


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool mount web.qcow2 /mnt && ls /mnt; imgtool unmount /mnt\n"
    "  imgtool mount --partition 2 disk.vmdk /mnt\n"
    "  imgtool mount --raw web.qcow2 web.raw  # the disk as a file, without root",
)
@file_argument(metavar="IMAGE")
@click.argument("at", type=FILE_NAME, metavar="DIR")
@format_option("The format of IMAGE; without it, its header decides.")
@click.option(
    "-P",
    "--partition",
    type=click.IntRange(min=1),
    metavar="N",
    help="The partition to mount.  [default: the only one, or the disk where it has no partition table]",
)
@click.option("-w", "--writable", is_flag=True, help="Allow writing.")
@click.option("--raw", is_flag=True, help="Show the whole disk as a file, which is created at DIR; needs no root.")
@force_option("Even if others stand on IMAGE, or its parent has changed since it was made.")
@quiet_option
@dry_run_option
@output_option()
@pass_context
def mount(
    context: Context,
    image: str,
    at: str,
    format_: str | None,
    partition: int | None,
    writable: bool,
    raw: bool,
    force: bool,
    dry_run: bool,
) -> None:
    """Mount a file system of IMAGE, with all it stands on, on the directory DIR, until `imgtool unmount DIR`;
    read-only unless --writable is given.

    This works for any format, by qemu-storage-daemon and FUSE. The kernel reads the file system, so mount only what
    you trust.
    """
    from imgtool.cli.output import emit
    from imgtool.cli.plan import emit_plan
    from imgtool.image.names import printable
    from imgtool.publish.mount import MountRequest

    request = MountRequest(
        image,
        at,
        context.programs,
        format=format_,
        partition=partition,
        writable=writable,
        raw=raw,
        force=force,
    )
    if dry_run:
        emit_plan(context, request.plan())
        return
    made = request.make()
    what = "the disk" if made.partition is None else f"partition {made.partition}"
    how = "" if made.writable else ", read-only"
    emit(context, made, [f"{what} of {printable(made.image)} is at {printable(made.at)}{how}"])


@click.command(epilog="\b\nExample:\n  imgtool unmount /mnt")
@click.argument("at", type=FILE_NAME, metavar="DIR")
@quiet_option
@output_option()
@pass_context
def unmount(context: Context, at: str) -> None:
    """Unmount what `imgtool mount` mounted on DIR. When this returns, everything is written to the image."""
    from imgtool.cli.output import emit
    from imgtool.publish.mount import unmount as end

    ended = end(at)
    if context.json:
        emit(context, ended, [])
