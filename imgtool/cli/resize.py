"""`imgtool resize IMAGE SIZE`"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from imgtool.cli.context import Context, dry_run_option, output_option, pass_context, quiet_option
from imgtool.cli.images import (
    Opened,
    explained,
    open_image,
    qemu_img,
    refuse_with_children,
    say,
)
from imgtool.cli.options import (
    file_argument,
    force_option,
    format_option,
    image_opts_option,
    object_option,
)
from imgtool.cli.output import remark
from imgtool.cli.render import size as shown_size
from imgtool.cli.requests import OnCopy, header_of, settle
from imgtool.errors import RefusedError
from imgtool.image.qapi_json import to_builtins
from imgtool.sizes import parse_resize

if TYPE_CHECKING:
    from imgtool.qemu.qemu_img import QemuImg

_NEGATIVE = re.compile(r"-[0-9.][0-9.]*[bkmgtpe]?", re.IGNORECASE)


class ResizeCommand(click.Command):
    """Takes `-1G` for the size that it is."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" not in args:
            sizes = [word for word in args if _NEGATIVE.fullmatch(word)]
            if sizes:
                args = [*(word for word in args if word not in sizes), "--", *sizes]
        return super().parse_args(ctx, args)


@click.command(
    cls=ResizeCommand,
    epilog="\b\nExamples:\n"
    "  imgtool resize disk.qcow2 +10G\n"
    "  imgtool resize disk.qcow2 20G\n"
    "  imgtool resize --shrink disk.qcow2 -1G",
)
@file_argument()
@click.argument("size", metavar="[+|-]SIZE")
@format_option()
@click.option("--shrink", is_flag=True, help="Allow the end of the disk to be cut off.")
@click.option("--preallocation", metavar="MODE", help="How the added space is made: off, metadata, falloc, full.")
@image_opts_option
@object_option
@force_option("Even if other images stand on it, or a partition would be cut off.")
@quiet_option
@dry_run_option
@output_option()
@pass_context
def resize(
    context: Context,
    image: str,
    size: str,
    format_: str | None,
    shrink: bool,
    preallocation: str | None,
    image_opts: bool,
    objects: tuple[str, ...],
    force: bool,
    dry_run: bool,
) -> None:
    """Set the size of the disk to SIZE bytes, grow it by +SIZE, or shrink it by -SIZE.

    Partitions and file systems inside are not touched: grow them afterwards, or shrink them beforehand.
    """
    parse_resize(size, 1 << 62)  # what is no size is said before anything is looked at
    settle(image, image_opts=image_opts, dry_run=dry_run, again="resized" if size[0] in "+-" else None)
    opened = open_image(image, format=format_, image_opts=image_opts)
    refuse_with_children(opened, force=force, doing="resizing")
    program = qemu_img(context)
    if opened.top is not None and opened.top.virtual_size is not None:
        current = opened.top.virtual_size
    else:
        current = program.info(opened.source, format=opened.format, objects=objects).virtual_size
    wanted = parse_resize(size, current)
    _check(opened, current, wanted, shrink)
    notes = _look_inside(opened, program, wanted, force)
    arguments: dict[str, Any] = {
        "format": opened.format,
        "shrink": shrink,
        "preallocation": preallocation,
        "objects": objects,
    }
    change = OnCopy(opened, same_content=wanted >= current)
    if dry_run:
        from imgtool.qemu import img_argv

        note = f"from {shown_size(current)} to {shown_size(wanted)}"
        argv = img_argv.resize(program.program, opened.source, wanted, **arguments)
        change.show_plan(context, argv, notes=[note, *notes])
        return
    with explained(context, formats=[format_]):
        changed = change.run(program, lambda source: program.resize(source, wanted, **arguments))

    def lines() -> Iterator[str]:
        before, after = changed.before.virtual_size, changed.after.virtual_size
        yield f"{opened.name}: {shown_size(before)} before, {shown_size(after)} now"

    say(context, to_builtins(changed), lines())
    for note in notes:
        remark(context, note)


def _look_inside(opened: Opened, program: QemuImg, wanted: int, force: bool) -> list[str]:
    """What is to be done in the guest afterwards. RefusedError when a part that is in use would be cut off."""
    from imgtool.operations.guards import after_resize, look_at_disk, refuse_cut

    layout = look_at_disk(opened.chain, program) if opened.chain else None
    if layout is None or opened.path is None:
        return []
    if not force:
        refuse_cut(layout, wanted, path=opened.path)
    return after_resize(layout, wanted)


def _check(opened: Opened, current: int, wanted: int, shrink: bool) -> None:
    from imgtool.image.version2 import refuse_version_2
    from imgtool.operations.guards import refuse_fixed

    if opened.path is not None:
        refuse_fixed(opened.path, opened.format, current, wanted)
        header = header_of(opened)
        if header is not None and header.snapshots and wanted != current:
            refuse_version_2(header, opened.path, "another size than its internal snapshots")
    if wanted < current and not shrink:
        raise RefusedError(
            f"{opened.place} has {shown_size(current)}; "
            f"making it {shown_size(wanted)} would cut off {shown_size(current - wanted)} of its end",
            path=opened.path,
            hint="make its partitions and file systems smaller first, then use --shrink",
        )
