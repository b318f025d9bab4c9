"""`imgtool commit IMAGE`, which is `imgtool overlay commit` too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from imgtool.cli.context import Context, dry_run_option, output_option, pass_context, progress_option, quiet_option
from imgtool.cli.images import qemu_img
from imgtool.cli.options import (
    FILE_NAME,
    cache_option,
    file_argument,
    force_option,
    format_option,
    image_opts_option,
    object_option,
    rate_limit_option,
    store_option,
)
from imgtool.cli.progress import progress
from imgtool.cli.render import size
from imgtool.cli.requests import change_unseen, looking, only_with_image_opts, said, show_plan
from imgtool.image.names import printable

if TYPE_CHECKING:
    from imgtool.operations.commit import Commit
    from imgtool.qemu.img_argv import Cache


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool commit overlay.qcow2\n"
    "  imgtool commit --preserve-siblings overlay.qcow2\n"
    "  imgtool commit -d overlay.qcow2 && imgtool overlay delete overlay.qcow2\n"
    "  imgtool commit -b base.qcow2 top.qcow2\n"
    "  imgtool commit --dry-run overlay.qcow2"
)
@file_argument()
@format_option()
@click.option("-b", "--base", type=FILE_NAME, metavar="FILE", help="Write into this image further down; implies -d.")
@click.option("-d", "--keep", is_flag=True, help="Leave the overlay as it is instead of emptying it.")
@click.option(
    "--preserve-siblings",
    is_flag=True,
    help="First copy into the base's other overlays what they would lose, so that they keep reading the same data.",
)
@cache_option("The cache mode for writing the copy, which is synced in any case.  [default: unsafe]")
@rate_limit_option
@store_option()
@image_opts_option
@object_option
@force_option("Even if other images, or internal snapshots, read what is written to.")
@progress_option
@quiet_option
@dry_run_option
@output_option()
@pass_context
def commit(
    context: Context,
    image: str,
    format_: str | None,
    base: str | None,
    keep: bool,
    preserve_siblings: bool,
    cache: Cache | None,
    rate_limit: int | None,
    stores: tuple[str, ...],
    image_opts: bool,
    objects: tuple[str, ...],
    force: bool,
    dry_run: bool,
) -> None:
    """Write an overlay's changes into its backing file, then empty the overlay.

    Every other overlay of that backing file would read the changes too and be damaged by them, so the commit is
    refused if there are any. With -b the images in between read the changes as well.

    The work is done on a copy that then takes the backing file's place: whatever happens meanwhile, every image reads
    either as before or as after.
    """
    if image_opts:
        arguments = {"base": base, "keep": keep, "cache": cache, "rate_limit": rate_limit, "objects": objects}
        told = f"committed, and {'left as it is' if keep or base is not None else 'emptied'}"
        change_unseen(context, "commit", image, (format_,), arguments, told=told, force=force, dry_run=dry_run)
        return
    only_with_image_opts(object=objects)
    from imgtool.operations.commit import CommitRequest

    with looking(image):
        request = CommitRequest(
            image,
            base=base,
            format=format_,
            keep=keep,
            preserve_siblings=preserve_siblings,
            force=force,
            cache=cache,
            rate_limit=rate_limit,
            store=stores,
            settle=not dry_run,
        )
    if dry_run:
        show_plan(context, request)
        return
    with progress(context, "commit") as show:
        done = request.make(qemu_img(context), progress=show)
    said(context, done, _lines(image, done), done.notes)


def _lines(image: str, done: Commit) -> Iterator[str]:
    base = printable(done.base)
    yield f"{printable(image)}: committed into {base}, and {'emptied' if done.emptied else 'left as it is'}"
    if done.base_size_before != done.base_size_after:
        yield f"{base} has {size(done.base_size_after)} now, {size(done.base_size_before)} before"
    for sibling in done.preserved:
        yield f"{printable(sibling)} reads what it did before"
    for between in done.between:
        yield f"{printable(between)} reads the committed data as well"
