"""`imgtool rebase -b BACKING IMAGE`"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from imgtool.cli.context import Context, dry_run_option, output_option, pass_context, progress_option, quiet_option
from imgtool.cli.create import Parent, parent_of
from imgtool.cli.images import emit_command, explained, open_image, qemu_img, say, touched
from imgtool.cli.options import (
    FILE_NAME,
    cache_option,
    file_argument,
    force_option,
    force_share_option,
    format_option,
    image_opts_option,
    object_option,
    source_cache_option,
)
from imgtool.cli.output import remark
from imgtool.cli.progress import progress
from imgtool.cli.render import size
from imgtool.errors import ImageNotFoundError, RefusedError
from imgtool.image.names import printable
from imgtool.image.qapi import to_builtins

if TYPE_CHECKING:
    from imgtool.chain.graph import Image
    from imgtool.qemu.results import Changed


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool rebase -b new-base.qcow2 -F qcow2 overlay.qcow2\n"
    "  imgtool rebase -b '' overlay.qcow2                          # on nothing: a base of its own\n"
    "  imgtool rebase -u -b moved/base.qcow2 -F qcow2 overlay.qcow2  # the same file, elsewhere"
)
@file_argument()
@click.option(
    "-b",
    "--backing",
    type=FILE_NAME,
    metavar="FILE",
    required=True,
    help="The new backing file, named as from the image's own directory; '' for none.",
)
@click.option("-F", "--backing-format", metavar="FORMAT", help="Its format; without it, its header decides.")
@click.option(
    "--backing-as-is", is_flag=True, help="-b is QEMU's own reference (nbd://…, json:…), not a file's name."
)
@click.option(
    "-u", "--unsafe", is_flag=True, help="Change the name only: the new backing file holds what the old did."
)
@format_option()
@cache_option("The cache mode for writing.  [default: writethrough; no other survives a crash]")
@source_cache_option
@force_share_option("Read the backing files even while a virtual machine writes them.")
@image_opts_option
@object_option
@force_option("With -u: although the new backing file is missing or smaller.")
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
    unsafe: bool,
    format_: str | None,
    cache: str | None,
    source_cache: str | None,
    force_share: bool,
    image_opts: bool,
    objects: tuple[str, ...],
    force: bool,
    dry_run: bool,
) -> None:
    """Put an overlay on another backing file. What a guest reads stays the same: whatever the new backing file holds
    otherwise is copied into the overlay. With -u only the name in the overlay is changed.
    """
    opened = open_image(image, format=format_, image_opts=image_opts, opens_parents=not unsafe, follow=not unsafe)
    parent = _parent(opened.path, backing, backing_format, as_is=backing_as_is, unchecked=unsafe and force)
    if parent is not None and unsafe and not force:
        _check_size(opened.chain[1:2], parent, opened.path)
    arguments: dict[str, Any] = {
        "backing": parent.reference if parent else None,
        "backing_format": parent.format if parent else None,
        "format": opened.format,
        "unsafe": unsafe,
        "cache": cache,
        "source_cache": source_cache,
        "force_share": force_share,
        "objects": objects,
    }
    program = qemu_img(context)
    if dry_run:
        from imgtool.qemu import img_argv

        images = [touched(opened.source, "write")]
        images += [touched(one.path, "read") for one in opened.chain[1:]] if not unsafe else []
        images += [touched(parent.path, "read")] if parent and parent.path and not unsafe else []
        emit_command(context, img_argv.rebase(program.program, opened.source, **arguments), images)
        return
    formats = [format_, parent.format if parent else None]
    with explained(context, formats=formats), progress(context, "rebase") as show:
        changed = program.rebase(opened.source, progress=show, **arguments)
    if parent and backing_format is None:
        remark(context, f"the backing file's format is {parent.format}, by its header")
    say(context, to_builtins(changed), _lines(opened.name, changed, unsafe))


def _parent(path: str | None, backing: str, format: str | None, *, as_is: bool, unchecked: bool) -> Parent | None:
    """The new backing file; None for none. Looked at even for -u: a wrong name or a circle is never meant."""
    if not backing:
        return None
    base = path if path is not None else os.path.join(os.getcwd(), "image")
    try:
        return parent_of(base, backing, format, as_is=as_is, unsafe=unchecked, above=path)
    except ImageNotFoundError as error:
        if "-u" in (error.hint or ""):
            error.hint = "-u --force writes the name all the same"
        raise


def _check_size(old: Sequence[Image], parent: Parent, path: str | None) -> None:
    """RefusedError when the new backing file cannot hold what the old one did."""
    for image in old:
        if (
            image.virtual_size is not None
            and parent.virtual_size is not None
            and parent.virtual_size < image.virtual_size
        ):
            raise RefusedError(
                f"the new backing file has {size(parent.virtual_size)}, the old one {size(image.virtual_size)}: "
                "with -u the new one has to hold what the old one did",
                path=path,
                hint="without -u what differs is copied; --force changes the name all the same",
            )


def _lines(name: str, changed: Changed, unsafe: bool) -> Iterator[str]:
    now, was = (
        "nothing" if info.backing_filename is None else printable(info.backing_filename)
        for info in (changed.after, changed.before)
    )
    yield f"{name} stands on {now} now, on {was} before" + (": only the name was changed" if unsafe else "")
