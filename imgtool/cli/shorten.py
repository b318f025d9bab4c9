"""`imgtool chain shorten IMAGE`"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from imgtool.cli.context import Context, dry_run_option, output_option, pass_context, progress_option, quiet_option
from imgtool.cli.images import qemu_img
from imgtool.cli.options import FILE_NAME, file_argument, force_option, format_option, store_option
from imgtool.cli.progress import progress
from imgtool.cli.render import counted
from imgtool.cli.requests import looking, said, show_plan
from imgtool.image.names import printable

if TYPE_CHECKING:
    from imgtool.operations.shorten import Shortened


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool chain shorten disk.qcow2 --dry-run\n"
    "  imgtool chain shorten disk.qcow2 --delete\n"
    "  imgtool chain shorten disk.qcow2 --onto golden.qcow2 --keep monday.qcow2"
)
@file_argument(metavar="IMAGE")
@click.option("--onto", type=FILE_NAME, metavar="BASE", help="Merge down to this image.  [default: the base]")
@click.option(
    "--keep", type=FILE_NAME, metavar="LAYER", multiple=True, help="Leave this layer in the chain. May be repeated."
)
@click.option(
    "--delete", is_flag=True, help="Delete the files of the merged layers, which nothing stands on any longer."
)
@format_option()
@store_option()
@force_option("Even if a parent has changed since its overlay was made, or snapshots are deleted with a layer.")
@progress_option
@quiet_option
@dry_run_option
@output_option()
@pass_context
def shorten(
    context: Context,
    image: str,
    onto: str | None,
    keep: tuple[str, ...],
    delete: bool,
    format_: str | None,
    stores: tuple[str, ...],
    force: bool,
    dry_run: bool,
) -> None:
    """Merge the layers between IMAGE and its base into the images above them. Every image keeps reading the same
    data.

    Layers that other images stand on stay in the chain, as do those named by --keep.
    """
    from imgtool.operations.shorten import ShortenRequest

    with looking(image):
        request = ShortenRequest(
            image,
            onto=onto,
            keep=keep,
            delete=delete,
            force=force,
            format=format_,
            store=stores,
            settle=not dry_run,
        )
    if dry_run:
        show_plan(context, request)
        return
    with progress(context, "shorten") as show:
        done = request.make(qemu_img(context), progress=show)
    said(context, done, _lines(image, done), done.notes)


def _lines(image: str, done: Shortened) -> Iterator[str]:
    count = counted(len(done.chain), "image")
    yield f"{printable(image)}: stands on {count} now, on {len(done.chain) + len(done.merged)} before"
    for path in done.merged:
        yield f"{'deleted' if path in done.deleted else 'needed no more'}: {printable(path)}"
