"""`imgtool commit IMAGE`"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from imgtool.cli.context import Context, dry_run_option, output_option, pass_context, progress_option, quiet_option
from imgtool.cli.images import (
    Opened,
    children_of,
    emit_command,
    explained,
    listed,
    open_image,
    qemu_img,
    say,
    touched,
)
from imgtool.cli.options import (
    FILE_NAME,
    cache_option,
    file_argument,
    force_option,
    format_option,
    image_opts_option,
    object_option,
    rate_limit_option,
)
from imgtool.cli.progress import progress
from imgtool.cli.render import size
from imgtool.errors import RefusedError
from imgtool.image.names import absolute, printable
from imgtool.image.qapi import to_builtins

if TYPE_CHECKING:
    from imgtool.chain.graph import Image
    from imgtool.qemu.results import Committed


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool commit overlay.qcow2\n"
    "  imgtool commit -d overlay.qcow2 && rm overlay.qcow2\n"
    "  imgtool commit -b base.qcow2 top.qcow2\n"
    "  imgtool commit --dry-run overlay.qcow2"
)
@file_argument()
@format_option()
@click.option("-b", "--base", type=FILE_NAME, metavar="FILE", help="Write into this image further down the chain.")
@click.option("-d", "--keep", is_flag=True, help="Leave the overlay as it is instead of emptying it.")
@cache_option("The cache mode for writing.  [default: writeback]")
@rate_limit_option
@image_opts_option
@object_option
@force_option("Although other images stand on what is written to.")
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
    cache: str | None,
    rate_limit: int | None,
    image_opts: bool,
    objects: tuple[str, ...],
    force: bool,
    dry_run: bool,
) -> None:
    """Write an overlay's changes into its backing file, then empty the overlay.

    Every other overlay of that backing file would read the changes too, and be damaged by them: with such overlays
    beside it, it is refused. With -b the images between are of no use afterwards.
    """
    opened = open_image(image, format=format_, image_opts=image_opts)
    below = _below(opened, base)
    if not force:
        _refuse(opened, below)
    arguments: dict[str, Any] = {
        "format": opened.format,
        "base": below[-1].path if base is not None and below else base,
        "keep": keep,
        "cache": cache,
        "rate_limit": rate_limit,
        "objects": objects,
    }
    program = qemu_img(context)
    if dry_run:
        from imgtool.qemu import img_argv

        images = [touched(opened.source, "read" if keep or base else "write")]
        images += [touched(one.path, "write" if one is below[-1] else "read") for one in below]
        argv = img_argv.commit(program.program, opened.source, **arguments)
        emit_command(context, argv, images, notes=_notes(below))
        return
    with explained(context, formats=[format_]), progress(context, "commit") as show:
        done = program.commit(opened.source, progress=show, **arguments)
    say(context, to_builtins(done), _lines(opened, done, keep or base is not None))


def _below(opened: Opened, base: str | None) -> list[Image]:
    """The images from the backing file down to the one that will be written; empty where they are not known."""
    if opened.top is None:
        return []
    below = list(opened.chain[1:])
    if not below:
        raise RefusedError(f"{opened.place} has no backing file to commit into", path=opened.path)
    if base is None:
        return below[:1]
    path = absolute(base)
    for index, image in enumerate(below):
        if image.path == path or (
            os.path.exists(path) and os.path.exists(image.path) and os.path.samefile(path, image.path)
        ):
            return below[: index + 1]
    listed = ", ".join(printable(image.path) for image in below)
    raise RefusedError(
        f"{opened.place} does not stand on {printable(path)}", path=opened.path, hint=f"it stands on {listed}"
    )


def _refuse(opened: Opened, below: list[Image]) -> None:
    """RefusedError when an image that will hold something else has overlays beside those on the way to it."""
    above = opened.path
    for image in below:
        others = children_of(image.path, but=above) if os.path.exists(image.path) else []
        if others:
            raise RefusedError(
                f"{printable(image.path)} is the backing file of {listed(others)} too: "
                f"committing {opened.place} would change what is read there",
                path=opened.path,
                hint="`imgtool convert` makes one image of the whole chain instead; --force commits all the same",
            )
        above = image.path


def _notes(below: list[Image]) -> list[str]:
    if len(below) < 2:
        return []
    between = ", ".join(printable(image.path) for image in below[:-1])
    return [f"of no use afterwards: {between}"]


def _lines(opened: Opened, done: Committed, kept: bool) -> Iterator[str]:
    base = printable(done.base) if done.base else "its backing file"
    yield f"{opened.name}: committed into {base}, and {'left as it is' if kept else 'emptied'}"
    before, after = done.base_before, done.base_after
    if before is not None and after is not None:
        if before.virtual_size != after.virtual_size:
            yield f"{base} has {size(after.virtual_size)} now, {size(before.virtual_size)} before"
        if before.actual_size is not None and after.actual_size is not None:
            yield f"{base} takes {size(after.actual_size)} on disk now, {size(before.actual_size)} before"
