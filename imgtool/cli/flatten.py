"""`imgtool chain flatten IMAGE`"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from imgtool.cli.context import Context, dry_run_option, output_option, pass_context, progress_option, quiet_option
from imgtool.cli.images import check_no_directory, explained, qemu_img
from imgtool.cli.options import (
    FILE_NAME,
    FORMAT,
    file_argument,
    force_option,
    format_option,
    option_map,
    options_option,
    store_option,
)
from imgtool.cli.progress import progress
from imgtool.cli.render import counted, size
from imgtool.cli.requests import looking, said, show_plan
from imgtool.errors import UsageError
from imgtool.image.names import printable

if TYPE_CHECKING:
    from imgtool.operations.flatten import Flattened


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool chain flatten disk.qcow2\n"
    "  imgtool chain flatten disk.qcow2 --to whole.qcow2\n"
    "  imgtool chain flatten disk.qcow2 --to whole.qcow2 -c -o compression_type=zstd"
)
@file_argument(metavar="IMAGE")
@click.option("--to", type=FILE_NAME, metavar="NEW", help="Write to a new file, and leave IMAGE as it is.")
@click.option(
    "-O",
    "--target-format",
    "output_format",
    type=FORMAT,
    metavar="FORMAT",
    help="With --to: the format of NEW.  [default: IMAGE's]",
)
@options_option("With --to: options of that format, as in qemu-img create.", words="flattened_options")
@click.option("-c", "--compress", is_flag=True, help="With --to: compress the data.")
@format_option()
@store_option()
@force_option("Replace an existing NEW; flatten even if a parent has changed since its overlay was created.")
@progress_option
@quiet_option
@dry_run_option
@output_option()
@pass_context
def flatten(
    context: Context,
    image: str,
    to: str | None,
    output_format: str | None,
    options: tuple[str, ...],
    compress: bool,
    format_: str | None,
    stores: tuple[str, ...],
    force: bool,
    dry_run: bool,
) -> None:
    """Make IMAGE independent: what it reads from the images below is copied into it. A guest reads the same data as
    before, and so does whatever stands on IMAGE; internal snapshots, bitmaps and options stay.

    With --to a new file is created instead, complete or not at all.
    """
    if to is None and (output_format or options or compress):
        raise UsageError("-O, -o and -c are for --to", hint="in place an image keeps its format and options")
    from imgtool.operations.flatten import FlattenRequest

    if to is not None:
        check_no_directory(to)
    chosen = option_map(options)
    with looking(image):
        request = FlattenRequest(
            image,
            to=to,
            format=format_,
            output_format=output_format,
            options=chosen,
            compressed=compress,
            overwrite=force,
            force=force,
            store=stores,
            settle=not dry_run,
        )
    if dry_run:
        show_plan(context, request)
        return
    formats = explained(context, formats=[output_format], option_format=request.output_format, options=chosen)
    with formats, progress(context, "flatten") as show:
        done = request.make(qemu_img(context), progress=show)
    said(context, done, _lines(image, done), done.notes)


def _lines(image: str, done: Flattened) -> Iterator[str]:
    count = counted(len(done.stood_on), "image")
    if done.path == done.source:
        yield f"{printable(image)}: stands on nothing now, on {count} before; {size(done.actual_size)} on disk"
    else:
        yield f"{printable(done.path)}: {done.format}, {size(done.virtual_size)}, {size(done.actual_size)} on disk"
