"""`imgtool measure [FILE]`"""

from __future__ import annotations

from collections.abc import Iterator

import click

from imgtool.cli.context import Context, output_option, pass_context
from imgtool.cli.convert import snapshot_param
from imgtool.cli.images import explained, open_image, print_option_help, qemu_img, snapshot_known, wants_help
from imgtool.cli.options import (
    FORMAT,
    SIZE,
    SNAPSHOT,
    file_argument,
    force_share_option,
    format_option,
    image_opts_option,
    object_option,
    option_map,
    options_option,
    timeout_option,
)
from imgtool.cli.output import emit
from imgtool.cli.render import fields, size
from imgtool.errors import UsageError
from imgtool.image.qapi import BlockMeasureInfo
from imgtool.image.qapi_json import to_builtins


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool measure --size 100G -O qcow2\n"
    "  imgtool measure -O qcow2 disk.img\n"
    "  imgtool measure -O qcow2 -o cluster_size=2M disk.vmdk --output json | jq .required"
)
@file_argument(required=False)
@click.option(
    "--size", "size_", type=SIZE, metavar="SIZE", help="For an empty disk of this size, instead of an image."
)
@format_option()
@click.option("-O", "--target-format", type=FORMAT, metavar="FORMAT", help="The new image's format.  [default: raw]")
@options_option("The target format's own options; -o help lists them.")
@click.option(
    "-l", "--snapshot", type=SNAPSHOT, metavar="SNAPSHOT", help="For this internal snapshot, by name or ID."
)
@force_share_option()
@image_opts_option
@object_option
@timeout_option(default="60")
@output_option()
@pass_context
def measure(
    context: Context,
    image: str | None,
    size_: int | None,
    format_: str | None,
    target_format: str | None,
    options: tuple[str, ...],
    snapshot: str | None,
    force_share: bool,
    image_opts: bool,
    objects: tuple[str, ...],
    timeout: float | None,
) -> None:
    """Show how large the file of a new image would be: with the data of FILE, and with every byte of its disk
    written.
    """
    chosen = option_map(options)
    output_format = target_format or "raw"
    if wants_help(chosen):
        print_option_help(context, output_format)
        return
    if (image is None) == (size_ is None):
        raise UsageError("measure needs an image, or --size", hint="one of the two, not both")
    opened = None if image is None else open_image(image, format=format_, image_opts=image_opts)
    if opened is not None and snapshot is not None and isinstance(snapshot_param(snapshot), str):
        snapshot_known(opened, snapshot)
    with explained(context, formats=[format_, output_format], option_format=output_format, options=chosen):
        found = qemu_img(context, timeout).measure(
            None if opened is None else opened.source,
            size=size_,
            output_format=output_format,
            format=None if opened is None else opened.format,
            options=chosen,
            snapshot=snapshot_param(snapshot),
            force_share=force_share,
            objects=objects,
        )
    emit(context, to_builtins(found), () if context.json else _lines(found))


def _lines(found: BlockMeasureInfo) -> Iterator[str]:
    pairs = [("required size", size(found.required)), ("fully allocated size", size(found.fully_allocated))]
    if found.bitmaps is not None:
        pairs.append(("bitmaps size", size(found.bitmaps)))
    yield from fields(pairs)
