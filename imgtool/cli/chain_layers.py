"""`imgtool chain layers IMAGE` and `imgtool chain diff A B`"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from imgtool.cli.context import Context, output_option, pass_context
from imgtool.cli.options import file_argument, force_share_option, format_option, second_format_option

if TYPE_CHECKING:
    from imgtool.chain.diff import Diff
    from imgtool.chain.layers import Layers

_COLORS = ("green", "blue", "magenta", "cyan", "yellow", "red")


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool chain layers web.qcow2\n"
    "  imgtool chain layers web.qcow2 --output svg > web.svg\n"
    "  imgtool chain layers web.qcow2 --output json | jq '.layers[] | {path, data}'"
)
@file_argument("image", metavar="IMAGE")
@format_option()
@force_share_option()
@output_option("svg")
@pass_context
def layers(context: Context, image: str, format_: str | None, force_share: bool) -> None:
    """Show which image of the backing chain of IMAGE supplies which part of the disk, and how much committing or
    flattening it would write."""
    from imgtool.chain.layers import layers as look
    from imgtool.cli.output import emit, emit_lines

    found = look(image, format=format_, qemu_img=context.qemu_img, force_share=force_share)
    if context.output == "svg":
        from imgtool.chain.picture import to_svg

        emit_lines(context, [to_svg(found)])
    else:
        emit(context, found, human(found))


def human(found: Layers) -> Iterator[str]:
    from imgtool.chain.draw import relative
    from imgtool.chain.picture import NOBODY, ZEROS, bar, letters
    from imgtool.cli.render import size, table

    marks = letters(len(found.layers))
    colors = {mark: _COLORS[depth % len(_COLORS)] for depth, mark in enumerate(marks)}
    columns = max(20, min(_terminal_width(), 120) - 2)
    text = bar(found, columns)
    yield f"[{''.join(click.style(cell, fg=colors[cell]) if cell in colors else cell for cell in text)}]"
    rows = []
    for mark, layer in zip(marks, found.layers, strict=True):
        zeros = size(layer.zeros) if layer.zeros else "-"
        name = relative(layer.path, os.getcwd())
        rows.append((click.style(mark, fg=colors[mark]), name, layer.format, size(layer.data), zeros))
    rows.append((NOBODY, "nobody", "", size(found.unwritten), ""))
    yield from table(("", "image", "format", "supplies", f"zeros ({ZEROS})"), rows, right=(3, 4))
    if len(found.layers) > 1:
        yield f"commit would write {size(found.commit_bytes)}, flatten {size(found.flatten_bytes)}"


def _terminal_width() -> int:
    import shutil

    return shutil.get_terminal_size((80, 24)).columns


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool chain diff base.qcow2 overlay.qcow2\n"
    "  imgtool chain diff --exact monday.qcow2 tuesday.qcow2\n"
    "  imgtool chain diff a.qcow2 b.vmdk --output json | jq .ranges"
)
@file_argument("a", metavar="A")
@file_argument("b", metavar="B")
@format_option("The format of A; without it, its header decides.")
@second_format_option("other-format", "The format of B; without it, its header decides.")
@click.option("--exact", is_flag=True, help="Compare bytes, so that rewriting the same data does not count.")
@force_share_option()
@output_option()
@pass_context
def diff(
    context: Context,
    a: str,
    b: str,
    format_: str | None,
    other_format: str | None,
    exact: bool,
    force_share: bool,
) -> None:
    """Show where the disks in A and B differ, and in which partitions.

    If one stands on the other, or both on one base, their tables say what was written since, and no data is read.
    Otherwise the bytes are compared.
    """
    from imgtool.chain.diff import diff as look
    from imgtool.cli.output import emit

    found = look(
        a,
        b,
        a_format=format_,
        b_format=other_format,
        exact=exact,
        qemu_img=context.qemu_img,
        force_share=force_share,
    )
    emit(context, found, _diff(found))


def _diff(found: Diff) -> Iterator[str]:
    from imgtool.chain.draw import relative
    from imgtool.cli.render import counted, size, table
    from imgtool.image.names import printable

    here = os.getcwd()
    how = "differ" if found.exact else "were written"
    if found.common is not None and not found.exact:
        how += f" since {relative(found.common, here)}"
    if found.a_size != found.b_size:
        yield f"{relative(found.a, here)} has {size(found.a_size)}, {relative(found.b, here)} {size(found.b_size)}"
    if not found.bytes:
        yield "no bytes " + ("differ" if found.exact else "were written")
        return
    longer = abs(found.a_size - found.b_size)
    if longer and not found.exact:
        behind = "lie behind the end of the smaller disk"
        how = behind if found.bytes == longer else f"{how}, or {behind}"
    count = counted(found.clusters, "cluster")
    yield f"{size(found.bytes)} in {count} of {size(found.cluster_size)} {how}"
    if found.table is not None:
        rows = [
            (str(one.partition.number), printable(one.partition.name or one.partition.type), size(one.bytes))
            for one in found.partitions
        ]
        if found.elsewhere:
            rows.append(("", "outside of partitions", size(found.elsewhere)))
        yield from table(("partition", "", "differs"), rows, right=(2,))
