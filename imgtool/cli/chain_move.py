"""`imgtool chain move SRC… DST`"""

from __future__ import annotations

import os
from collections.abc import Iterator
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
from imgtool.cli.options import file_argument, store_option
from imgtool.errors import UsageError

if TYPE_CHECKING:
    from imgtool.operations.moving import Moved


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool chain move base.qcow2 bases/\n"
    "  imgtool chain move base.qcow2 debian-12.qcow2 --store ~/vms\n"
    "  imgtool chain move --dry-run /var/lib/images /srv/images"
)
@file_argument("paths", metavar="SRC… DST", nargs=-1)
@store_option("Also look in this directory and below.")
@progress_option
@quiet_option
@dry_run_option
@output_option()
@pass_context
def move(context: Context, paths: tuple[str, ...], stores: tuple[str, ...], dry_run: bool) -> None:
    """Move images, or whole directories, as mv does, and update every reference to them.

    Overlays of what is moved are looked for in the directories of its chain, beside a directory that is moved, where
    imgtool made some, and in those of --store. Their headers are changed in the same step: at no moment does an image
    read something else, or nothing. On another file system the files are copied.
    """
    from imgtool.cli.images import say
    from imgtool.cli.progress import progress
    from imgtool.operations.move import MoveRequest

    if len(paths) < 2:
        raise UsageError("the destination is missing", hint="imgtool chain move SRC… DST")
    request = MoveRequest(paths[:-1], paths[-1], store=stores, settle=not dry_run)
    if dry_run:
        from imgtool.cli.plan import emit_plan

        emit_plan(context, request.plan(context.programs.find("qemu-img")))
        return
    here = os.getcwd()  # which may be what is moved
    with progress(context, "move") as show:
        done = request.make(context.qemu_img, progress=show)
    say(context, done, _lines(done, here))


def _lines(done: Moved, here: str) -> Iterator[str]:
    from imgtool.chain.draw import relative
    from imgtool.cli.render import counted
    from imgtool.image.names import printable

    if not done.files:
        yield "moved: there were no files in it"
    for one in done.files[:20]:
        yield f"{relative(one.path, here)} -> {relative(one.to, here)}{' (copied)' if one.copied else ''}"
    if len(done.files) > 20:
        yield f"… {counted(len(done.files), 'file')} in all"
    for image in done.followed:
        if image.backing is not None:
            yield f"{relative(image.path, here)} names {printable(image.backing)} now"
