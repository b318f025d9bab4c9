"""`imgtool map IMAGE`"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from imgtool.cli.context import Context, output_option, pass_context
from imgtool.cli.images import Opened, explained, open_image, qemu_img
from imgtool.cli.options import (
    SIZE,
    file_argument,
    force_share_option,
    format_option,
    image_opts_option,
    object_option,
    timeout_option,
)
from imgtool.cli.output import emit
from imgtool.cli.render import counted, short_size, size, table
from imgtool.image.names import printable
from imgtool.image.qapi import MapEntry
from imgtool.image.qapi_json import to_builtins

if TYPE_CHECKING:
    from imgtool.chain.graph import Image

Map = list[MapEntry]
"""The document of `map --output json`."""


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool map overlay.qcow2\n"
    "  imgtool map --start-offset 1G --max-length 1M disk.qcow2\n"
    "  imgtool map disk.qcow2 --output json | jq '[.[] | select(.data) | .length] | add'"
)
@file_argument()
@format_option()
@click.option("-s", "--start-offset", type=SIZE, metavar="SIZE", help="Start at this offset.  [default: 0]")
@click.option(
    "-l", "--max-length", type=SIZE, metavar="SIZE", help="Look at no more than this many bytes.  [default: all]"
)
@force_share_option()
@image_opts_option
@object_option
@timeout_option(default="none")
@output_option()
@pass_context
def map_(
    context: Context,
    image: str,
    format_: str | None,
    start_offset: int | None,
    max_length: int | None,
    force_share: bool,
    image_opts: bool,
    objects: tuple[str, ...],
    timeout: float | None,
) -> None:
    """Show which parts of the disk hold data, which read as zeros, and which file of the chain holds each part."""
    opened = open_image(image, format=format_, image_opts=image_opts)
    arguments: dict[str, Any] = {
        "start_offset": start_offset,
        "max_length": max_length,
        "force_share": force_share,
        "objects": objects,
    }
    with explained(context, formats=[format_]):
        entries = qemu_img(context, timeout).map(opened.source, format=opened.format, **arguments)
    emit(context, to_builtins(entries), () if context.json else _lines(opened, entries))


def _lines(opened: Opened, entries: list[MapEntry]) -> Iterator[str]:
    rows = [
        (
            str(entry.start),
            str(entry.length),
            short_size(entry.length),
            content(entry),
            _file(entry, opened.chain),
            "" if entry.offset is None else str(entry.offset),
        )
        for entry in entries
    ]
    yield from table(("START", "LENGTH", "SIZE", "CONTENT", "IN", "AT"), rows, right=(0, 1, 2, 5))
    data = [entry.length for entry in entries if entry.data and not entry.zero]
    total = sum(entry.length for entry in entries)
    yield f"data: {size(sum(data))} in {counted(len(data), 'range')}, of {size(total)}"


def content(entry: MapEntry) -> str:
    """What a range holds, in a word or two."""
    if entry.data and not entry.zero:
        return "compressed" if entry.compressed else "data"
    if entry.data:
        return "zeros, allocated"
    if entry.present is False:
        return "not allocated"
    return "zeros"


def _file(entry: MapEntry, chain: tuple[Image, ...] | list[Image] | Any) -> str:
    """The image of the chain that a range is in; nothing for one that is in none."""
    if entry.present is False:
        return ""
    if entry.depth < len(chain):
        return printable(chain[entry.depth].path)
    return printable(entry.filename or "")
