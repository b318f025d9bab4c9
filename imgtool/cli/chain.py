"""`imgtool chain …`: the graph of images."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from imgtool.cli.context import Context, output_option, pass_context
from imgtool.cli.lazy import Entry, LazyGroup
from imgtool.cli.options import file_argument, format_option, store_option

if TYPE_CHECKING:
    from imgtool.chain.draw import Line, Style
    from imgtool.chain.findings import Finding
    from imgtool.chain.graph import Graph, Image
    from imgtool.chain.scan import Survey

SECTIONS = {
    "Looking": {
        "show": Entry("imgtool.cli.chain:show", "Show what images stand on and what stands on them."),
        "verify": Entry("imgtool.cli.chain_verify:verify", "Find everything that is wrong with images."),
        "layers": Entry("imgtool.cli.chain_layers:layers", "Show which layer supplies which part of a disk."),
        "diff": Entry("imgtool.cli.chain_layers:diff", "Show where two disks differ."),
    },
    "Changing": {
        "flatten": Entry("imgtool.cli.flatten:flatten", "Make an image independent of its backing chain."),
        "shorten": Entry("imgtool.cli.shorten:shorten", "Merge layers in the middle of a chain."),
        "move": Entry("imgtool.cli.chain_move:move", "Move images and update every reference to them."),
        "collect": Entry(
            "imgtool.cli.chain_collect:collect", "Quarantine images that nothing needs, and bring them back."
        ),
        "repair": Entry("imgtool.cli.chain_repair:repair", "Repair what verify found, where nothing can be lost."),
        "anchor": Entry(
            "imgtool.cli.chain_repair:anchor", "Make overlays remember their backing files as they are now."
        ),
    },
}


ELSEWHERE = {
    "tree": "imgtool chain show",
    "list": "imgtool chain show",
    "ls": "imgtool chain show",
    "check": "imgtool chain verify",
    "commit": "imgtool overlay commit",
    "new": "imgtool overlay new",
    "mv": "imgtool chain move",
    "gc": "imgtool chain collect",
    "prune": "imgtool chain collect",
}
"""What other programs say, and commands of other groups."""


@click.group(cls=LazyGroup, sections=SECTIONS, elsewhere=ELSEWHERE)
def chain() -> None:
    """See, verify and change the graph of images: which stands on which."""


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool chain show disk.qcow2\n"
    "  imgtool chain show /var/lib/libvirt/images\n"
    "  imgtool chain show base.qcow2 --store ~/vms\n"
    "  imgtool chain show . --output json | jq -r '.images[] | select(.children == []) | .path'\n"
    "  imgtool chain show . --output dot | dot -Tsvg > chain.svg"
)
@file_argument("images", metavar="IMAGE|DIR…", nargs=-1)
@store_option()
@format_option("The format of IMAGE; without it, its header decides.")
@output_option("dot", "mermaid")
@pass_context
def show(context: Context, images: tuple[str, ...], stores: tuple[str, ...], format_: str | None) -> None:
    """Show the images in the directories DIR and below, and which stands on which; or, for each IMAGE, its backing
    chain down to the base and what stands on it.

    Dependents of an IMAGE are looked for in the directories of its chain, where imgtool made some, and in those of
    --store. Headers are read without starting QEMU; nothing is locked or changed. Defects are shown beside the images
    they concern, and do not change the exit status.
    """
    from imgtool.chain.damage import tell_damage
    from imgtool.chain.scan import check_asked, survey
    from imgtool.chain.steady import steadily
    from imgtool.image.policy import current

    found = steadily(
        lambda: survey(images, store=stores, format=format_, notice=tell_damage, policy=current()),
        lambda seen: seen.graph,
    )
    check_asked(found)
    answer(context, found)


def answer(context: Context, found: Survey) -> None:
    """The graph on stdout, in the way asked for."""
    from imgtool.cli.output import emit, emit_lines, remark

    if context.output == "dot":
        from imgtool.chain.draw import to_dot

        emit_lines(context, [to_dot(found.graph)])
    elif context.output == "mermaid":
        from imgtool.chain.draw import to_mermaid

        emit_lines(context, [to_mermaid(found.graph)])
    elif context.json or found.graph.images or found.graph.findings:
        emit(context, found.graph, human(found.graph, found.asked))
    else:
        remark(context, "no images there")


def human(graph: Graph, asked: tuple[str, ...]) -> Iterator[str]:
    """The lines of the tree, with what is known of each image in columns beside it."""
    import os

    from imgtool.chain.draw import tree
    from imgtool.cli.render import short_size, width

    style = tree_style()
    sizes: dict[int | None, str] = {None: "-"}
    lines = list(tree(graph, style=style, start=os.getcwd()))
    rows: list[tuple[Line, tuple[str, ...]]] = []
    for line in lines:
        image = line.image
        if image is None:
            rows.append((line, ()))
            continue
        for size in (image.virtual_size, image.actual_size):
            if size not in sizes:
                assert size is not None
                sizes[size] = short_size(size)
        columns = (image.format or "-", sizes[image.virtual_size], sizes[image.actual_size])
        rows.append((line, (line.prefix + line.name, *columns)))
    shown = [cells for _, cells in rows if cells]
    widths = [max((width(cells[column]) for cells in shown), default=0) for column in range(4)]
    several = len(graph.images) > 1
    for line, cells in rows:
        if line.image is None:
            yield _below(line)
            continue
        marks = list(_marks(line.image, line.role))
        if several and line.image.path in asked and not line.role:
            marks.insert(0, click.style("<- asked for" if style.last.isascii() else "← asked for", bold=True))
        pad = [" " * (widths[column] - width(cell)) for column, cell in enumerate(cells)]
        name = _name(line, asked) + pad[0]
        where = "on disk" if line.image.actual_size is not None else "       "
        text = f"{name}  {cells[1]}{pad[1]}  {pad[2]}{cells[2]}  {pad[3]}{cells[3]} {where}"
        yield "  ".join([text, *marks]).rstrip()
    for problem in graph.findings:
        yield _finding(problem)


def tree_style() -> Style:
    """Box-drawing lines where stdout's encoding has them."""
    from imgtool.chain.draw import ASCII, BOXES

    try:
        "".join(BOXES).encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return BOXES


def _name(line: Line, asked: tuple[str, ...]) -> str:
    from imgtool.chain.draw import severity

    assert line.image is not None
    bold = line.image.path in asked
    if severity(line.image) == "error":
        return line.prefix + click.style(line.name, fg="red", bold=bold)
    return line.prefix + (click.style(line.name, bold=True) if bold else line.name)


def _marks(image: Image, role: str) -> Iterator[str]:
    from imgtool.image.names import printable

    if role == "again":
        yield "(shown above)"
    elif role == "data-file":
        yield "external data file"
    if image.in_use is not None:
        how = "in use for writing" if image.in_use == "write" else "in use for reading"
        yield click.style(how, fg="yellow")
    if image.snapshots:
        from imgtool.cli.render import counted

        names = [printable(snapshot.name) for snapshot in image.snapshots[:3]]
        more = ["…"] if len(image.snapshots) > 3 else []
        yield f"{counted(len(image.snapshots), 'snapshot')}: {', '.join([*names, *more])}"


def _below(line: Line) -> str:
    if line.finding is not None:
        return f"{line.prefix}  {_finding(line.finding)}"
    from imgtool.cli.render import counted

    return line.prefix + click.style(f"{counted(line.more, 'other image')} on it, not shown", dim=True)


_COLORS = {"error": "red", "warning": "yellow", "info": "cyan"}


def _finding(found: Finding) -> str:
    return f"{click.style(found.severity, fg=_COLORS[found.severity])}: {found.message} [{found.code}]"
