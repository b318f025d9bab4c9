"""`imgtool overlay …`: making and listing overlays."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from imgtool.cli.context import Context, dry_run_option, output_option, pass_context
from imgtool.cli.lazy import Entry, LazyGroup
from imgtool.cli.options import (
    SIZE,
    file_argument,
    force_option,
    option_map,
    options_option,
    second_format_option,
    store_option,
)
from imgtool.errors import ImageNotFoundError
from imgtool.image.names import printable

if TYPE_CHECKING:
    from imgtool.chain.graph import Image
    from imgtool.operations.overlay import OverlayRequest
    from imgtool.operations.overlays import OverlaysRequest

SECTIONS = {
    "Commands": {
        "new": Entry("imgtool.cli.overlay:new", "Create an overlay of a base."),
        "list": Entry("imgtool.cli.overlay:list_", "List the overlays of a base."),
        "commit": Entry("imgtool.cli.commit:commit", "Write an overlay's changes into its backing file."),
        "reset": Entry("imgtool.cli.overlay_change:reset", "Empty an overlay."),
        "delete": Entry("imgtool.cli.overlay_change:delete", "Delete an overlay that nothing stands on."),
    },
}


ELSEWHERE = {
    "create": "imgtool overlay new",
    "add": "imgtool overlay new",
    "show": "imgtool chain show",
    "ls": "imgtool overlay list",
    "rm": "imgtool overlay delete",
    "remove": "imgtool overlay delete",
}
"""What other programs say."""


@click.group(cls=LazyGroup, sections=SECTIONS, elsewhere=ELSEWHERE)
def overlay() -> None:
    """Create, list, commit, reset and delete overlays."""


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool overlay new base.qcow2\n"
    "  imgtool overlay new base.qcow2 vms/web.qcow2 --size 40G\n"
    "  imgtool overlay new -F raw disk.img test.qcow2\n"
    "  imgtool overlay new base.qcow2 'vms/web-{n}.qcow2' --count 20\n"
    '  vm=$(imgtool overlay new base.qcow2 /var/lib/vms) && imgtool boot "$vm"'
)
@file_argument("base", metavar="BASE")
@file_argument("path", metavar="[OVERLAY]", required=False)
@click.option(
    "--count",
    type=click.IntRange(min=1),
    metavar="N",
    help="Create this many, all or none; {n} in OVERLAY is replaced by the number of each.",
)
@click.option("--absolute", is_flag=True, help="Name BASE by its absolute path, not relative to the overlay.")
@click.option("--size", type=SIZE, metavar="SIZE", help="The size of its disk.  [default: that of BASE]")
@second_format_option("backing-format", "The format of BASE; without it, its header decides.")
@options_option("Options of the qcow2 format, as in qemu-img create.", words="overlay_options")
@click.option("--allow-smaller", is_flag=True, help="Allow the overlay's disk to be smaller than that of BASE.")
@click.option("--no-anchor", is_flag=True, help="Do not record in the overlay what BASE is now.")
@force_option("Create it even while something writes to BASE, or if the chain is deep.")
@dry_run_option
@output_option()
@pass_context
def new(
    context: Context,
    base: str,
    path: str | None,
    count: int | None,
    absolute: bool,
    size: int | None,
    backing_format: str | None,
    options: tuple[str, ...],
    allow_smaller: bool,
    no_anchor: bool,
    force: bool,
    dry_run: bool,
) -> None:
    """Create a qcow2 overlay of BASE at OVERLAY, and print its path.

    Without OVERLAY, or if it is a directory, a name is chosen: disk-overlay-1.qcow2 next to disk.qcow2. The overlay
    always records the format of BASE and an anchor, the state of BASE now, so that a later change of BASE is noticed.

    With --count, OVERLAY is a directory, or a name in which {n} stands for 1, 2, 3…; otherwise names are chosen. In
    JSON they are a list then, even of one.
    """
    given: dict[str, Any] = {
        "absolute": absolute,
        "size": size,
        "options": option_map(options),
        "base_format": backing_format,
        "allow_smaller": allow_smaller,
        "anchor": not no_anchor,
        "force": force,
        "settle": not dry_run,
    }
    from imgtool.cli.images import warn_of_named_raw
    from imgtool.cli.requests import show_plan

    if path is not None:
        _check_order(base, path)
    request: OverlayRequest | OverlaysRequest
    if count is None:
        from imgtool.operations.overlay import OverlayRequest

        request = OverlayRequest(base, path, **given)
    else:
        from imgtool.operations.overlays import OverlaysRequest

        request = OverlaysRequest(base, count, path, **given)
    warn_of_named_raw(context, request.base, request.base_format)
    if dry_run:
        show_plan(context, request)
        return
    made = request.make(context.qemu_img)
    if context.json:
        from imgtool.cli.output import to_json

        click.echo(to_json(made))
        return
    for one in made if isinstance(made, list) else [made]:
        echo_path(one.path)


def _check_order(base: str, path: str) -> None:
    """Raises ImageNotFoundError where only the second name is that of a file."""
    if os.path.isfile(path) and not os.path.lexists(base):
        import shlex

        raise ImageNotFoundError(
            f"base {printable(os.path.abspath(base))} does not exist",
            hint=f"BASE stands first: `{printable(shlex.join(['imgtool', 'overlay', 'new', path, base]))}`",
            path=os.path.abspath(base),
        )


@click.command(
    name="list",
    epilog="\b\nExamples:\n"
    "  imgtool overlay list base.qcow2\n"
    "  imgtool overlay list base.qcow2 --all --store ~/vms --output json | jq -r '.[].path'",
)
@file_argument("base", metavar="BASE")
@store_option("Also look in this directory and below.")
@click.option("-a", "--all", "deep", is_flag=True, help="Include overlays of overlays.")
@output_option()
@pass_context
def list_(context: Context, base: str, stores: tuple[str, ...], deep: bool) -> None:
    """List the images that name BASE as their backing file: in the directories of its chain, where imgtool made some,
    and in those of --store.
    """
    from imgtool.cli.output import emit
    from imgtool.operations.overlay import list_overlays

    found = list_overlays(base, store=stores, deep=deep)
    if found or context.json:
        emit(context, found, human(found))
    else:
        from imgtool.cli.output import remark

        remark(context, "no overlays found")


def human(overlays: list[Image]) -> Iterator[str]:
    from imgtool.chain.draw import relative
    from imgtool.cli.render import short_size, table

    def size(count: int | None) -> str:
        return "-" if count is None else short_size(count)

    rows = [
        (
            relative(image.path, os.getcwd()),
            size(image.virtual_size),
            size(image.actual_size),
            "" if image.in_use is None else f"in use for {'writing' if image.in_use == 'write' else 'reading'}",
        )
        for image in overlays
    ]
    return table(("overlay", "size", "on disk", ""), rows, right=(1, 2))


def echo_path(path: str) -> None:
    """A path for a script to use, byte for byte; for a terminal, which may not see every byte, escaped."""
    if sys.stdout.isatty():
        click.echo(printable(path))
    else:
        click.echo(os.fsencode(path))
