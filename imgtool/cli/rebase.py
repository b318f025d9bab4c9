"""`imgtool rebase -b BACKING IMAGE`"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from imgtool.cli.context import Context, dry_run_option, output_option, pass_context, progress_option, quiet_option
from imgtool.cli.images import qemu_img, warn_of_named_raw
from imgtool.cli.options import (
    FILE_NAME,
    cache_option,
    file_argument,
    force_option,
    force_share_option,
    format_option,
    image_opts_option,
    object_option,
    second_format_option,
    source_cache_option,
    store_option,
)
from imgtool.cli.output import remark
from imgtool.cli.progress import progress
from imgtool.cli.requests import change_unseen, looking, only_with_image_opts, said, show_plan
from imgtool.errors import UsageError
from imgtool.image.names import printable

if TYPE_CHECKING:
    from imgtool.operations.rebase import Rebase
    from imgtool.qemu.img_argv import Cache


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool rebase -b new-base.qcow2 -F qcow2 overlay.qcow2\n"
    "  imgtool rebase -b '' overlay.qcow2  # on nothing: a base of its own\n"
    "  imgtool rebase -u -b moved/base.qcow2 -F qcow2 overlay.qcow2  # the same, moved"
)
@file_argument()
@click.option(
    "-b",
    "--backing",
    type=FILE_NAME,
    metavar="FILE",
    required=True,
    help="The new backing file, relative to the image's own directory; '' for none.",
)
@second_format_option("backing-format", "Its format; without it, its header decides.")
@click.option("--backing-as-is", is_flag=True, help="-b is a QEMU reference (nbd://…, json:…), not a file name.")
@click.option("--absolute", is_flag=True, help="Name the backing file by its absolute path.")
@click.option("--relative", is_flag=True, help="Name it by its path as seen from the image's directory.")
@click.option(
    "-u",
    "--unsafe",
    is_flag=True,
    help="Change only the reference: the new backing file holds the same data as the old.",
)
@format_option()
@cache_option("The cache mode for writing the copy, which is synced in any case.  [default: unsafe]")
@source_cache_option
@force_share_option("With --image-opts: read the backing files even while a virtual machine writes them.")
@store_option()
@image_opts_option
@object_option
@force_option("With -u: rebase even if a guest will or may read different data.")
@progress_option
@quiet_option
@dry_run_option
@output_option()
@pass_context
def rebase(
    context: Context,
    image: str,
    backing: str,
    backing_format: str | None,
    backing_as_is: bool,
    absolute: bool,
    relative: bool,
    unsafe: bool,
    format_: str | None,
    cache: Cache | None,
    source_cache: Cache | None,
    force_share: bool,
    stores: tuple[str, ...],
    image_opts: bool,
    objects: tuple[str, ...],
    force: bool,
    dry_run: bool,
) -> None:
    """Change the backing file of an overlay. What a guest reads from the disk and from internal snapshots stays the
    same: whatever the new backing file holds differently is copied into the overlay. With -u only the reference in
    the overlay changes, provided that makes no difference.

    The work is done on a copy, which takes the overlay's place once the two have been compared.
    """
    if absolute and relative:
        raise UsageError("--absolute and --relative exclude each other")
    if backing_as_is and (absolute or relative):
        raise UsageError("a reference that is taken as it is cannot be made absolute or relative")
    from imgtool.qemu.img_argv import Verbatim

    base = Verbatim(backing) if backing_as_is else backing
    if image_opts:
        arguments = {
            "backing": base or None,
            "backing_format": backing_format,
            "unsafe": unsafe,
            "cache": cache,
            "source_cache": source_cache,
            "force_share": force_share,
            "objects": objects,
        }
        formats = (format_, backing_format)
        change_unseen(context, "rebase", image, formats, arguments, told="rebased", force=force, dry_run=dry_run)
        return
    only_with_image_opts(object=objects, force_share=force_share)
    from imgtool.operations.rebase import RebaseRequest

    with looking(image):
        request = RebaseRequest(
            image,
            base or None,
            backing_format=backing_format,
            format=format_,
            unsafe=unsafe,
            absolute=absolute,
            relative=relative,
            force=force,
            cache=cache,
            source_cache=source_cache,
            store=stores,
            settle=not dry_run,
        )
    if request.onto is not None and request.onto.path is not None:
        warn_of_named_raw(context, request.onto.path, request.onto.format)
    if dry_run:
        show_plan(context, request)
        return
    with progress(context, "rebase") as show:
        done = request.make(qemu_img(context), progress=show)
    if done.backing_format is not None and backing_format is None:
        remark(context, f"the backing file's format is {done.backing_format}, by its header")
    said(context, done, _lines(image, done, unsafe), done.notes)


def _lines(image: str, done: Rebase, unsafe: bool) -> Iterator[str]:
    now, was = ("nothing" if name is None else printable(name) for name in (done.backing, done.before))
    tail = ": only the name was changed" if unsafe else ""
    if not done.proven:
        tail += ", and it was not checked that a guest reads the same data"
    yield f"{printable(image)} stands on {now} now, on {was} before{tail}"
