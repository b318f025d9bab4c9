"""`imgtool mount IMAGE DIR` and `imgtool unmount DIR`"""

from __future__ import annotations

import click

from imgtool.cli.context import Context, dry_run_option, output_option, pass_context, quiet_option
from imgtool.cli.options import FILE_NAME, file_argument, force_option, format_option


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool mount web.qcow2 /mnt && ls /mnt; imgtool unmount /mnt\n"
    "  imgtool mount --partition 2 disk.vmdk /mnt\n"
    "  imgtool mount --raw web.qcow2 web.raw        # the whole disk as a raw file, without root",
)
@file_argument(metavar="IMAGE")
@click.argument("at", type=FILE_NAME, metavar="DIR")
@format_option("The format of IMAGE; without it, its header decides.")
@click.option(
    "-P",
    "--partition",
    type=click.IntRange(min=1),
    metavar="N",
    help="Which one.  [default: the only one, or the disk where it has no partition table]",
)
@click.option("-w", "--writable", is_flag=True, help="Let it be written.")
@click.option("--raw", is_flag=True, help="Show the whole disk as the file DIR, which is made; no root is needed.")
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
    """Show the files of IMAGE, and of all it stands on, in the directory DIR, read-only, until `imgtool unmount DIR`.

    By qemu-storage-daemon and FUSE, of any format. The kernel reads the file system: mount what you trust.
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
    """End what `imgtool mount IMAGE DIR` made: everything is written when this returns."""
    from imgtool.cli.output import emit
    from imgtool.publish.mount import unmount as end

    ended = end(at)
    if context.json:
        emit(context, ended, [])
