"""`imgtool compare IMAGE IMAGE`"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import click

from imgtool.cli.context import Context, dry_run_option, output_option, pass_context, progress_option, quiet_option
from imgtool.cli.images import Opened, emit_command, explained, open_image, qemu_img, touched
from imgtool.cli.options import (
    file_argument,
    force_share_option,
    format_option,
    image_opts_option,
    object_option,
    second_format_option,
    source_cache_option,
    timeout_option,
)
from imgtool.cli.output import emit, report
from imgtool.cli.progress import progress
from imgtool.cli.render import bad, good, short_size, size
from imgtool.errors import ChainError, CommandError, ImageError, ImgtoolError, RefusedError
from imgtool.image.qapi_json import to_builtins

if TYPE_CHECKING:
    from imgtool.qemu.img_argv import Cache
    from imgtool.qemu.results import CompareResult

CANNOT_OPEN = 2
_OWN = (2, 3, 4)
"""qemu-img's statuses: could not open, could not read the metadata, could not read the data."""


@click.command(
    epilog="Exit status: 0 the same, 1 different, 2 one cannot be opened, 3 or 4 one cannot be read.\n\n"
    "\b\nExamples:\n"
    "  imgtool compare disk.qcow2 disk.img\n"
    "  imgtool compare -f raw -F qcow2 disk.img disk.qcow2 && rm disk.img\n"
    "  imgtool compare -s before.qcow2 after.qcow2"
)
@file_argument("image")
@file_argument("other")
@format_option("The first image's format; without it, its header decides.")
@second_format_option("other-format", "The second image's format; likewise.")
@click.option("-s", "--strict", is_flag=True, help="Sizes and allocation must be the same too.")
@source_cache_option
@force_share_option("Read them even while a virtual machine writes them.")
@image_opts_option
@object_option
@timeout_option(default="none")
@progress_option
@quiet_option
@dry_run_option
@output_option()
@pass_context
def compare(
    context: Context,
    image: str,
    other: str,
    format_: str | None,
    other_format: str | None,
    strict: bool,
    source_cache: str | None,
    force_share: bool,
    image_opts: bool,
    objects: tuple[str, ...],
    timeout: float | None,
    dry_run: bool,
) -> int:
    """Tell whether a guest would see the same disk in both images, whatever their formats. Where one is larger, the
    rest of it must be zeros.
    """
    try:
        one = open_image(image, format=format_, image_opts=image_opts)
        two = open_image(other, format=other_format, image_opts=image_opts)
        arguments: dict[str, Any] = {
            "format": one.format,
            "other_format": two.format,
            "strict": strict,
            "source_cache": cast("Cache | None", source_cache),
            "force_share": force_share,
            "objects": objects,
        }
        program = qemu_img(context, timeout)
        if dry_run:
            from imgtool.qemu import img_argv

            argv = img_argv.compare(program.program, one.source, two.source, **arguments)
            emit_command(context, argv, [touched(one.source, "read"), touched(two.source, "read")])
            return 0
        with explained(context, formats=[format_, other_format]), progress(context, "compare") as show:
            result = program.compare(one.source, two.source, progress=show, **arguments)
    except (ImageError, ChainError, CommandError, RefusedError) as error:
        return _failed(context, error)
    if context.json:
        emit(context, to_builtins(result), ())
    elif not context.quiet:
        emit(context, None, _lines(one, two, result))
    return 0 if result.identical else 1


def _failed(context: Context, error: ImgtoolError) -> int:
    """Never 1, which says that the images differ."""
    if context.debug:
        raise error
    report(context, error)
    status = error.status if isinstance(error, CommandError) else CANNOT_OPEN
    return status if status in _OWN else CANNOT_OPEN


def _lines(one: Opened, two: Opened, result: CompareResult) -> Iterator[str]:
    if result.identical:
        yield f"{one.name} and {two.name}: {good('the same disk')}"
        if one.top and two.top and one.top.virtual_size != two.top.virtual_size:
            sizes = f"{size(one.top.virtual_size or 0)} and {size(two.top.virtual_size or 0)}"
            yield f"sizes differ: {sizes}; what is over is zeros"
        return
    yield f"{one.name} and {two.name}: {bad('different disks')}"
    if result.offset is not None:
        rounded = f" ({short_size(result.offset)})" if result.offset >= 1024 else ""
        yield f"first difference at byte {result.offset}{rounded}"
    else:
        yield result.message
