"""`imgtool bitmap IMAGE BITMAP`"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import click

from imgtool.cli.context import Context, dry_run_option, output_option, pass_context, quiet_option
from imgtool.cli.images import Opened, check_formats, explained, nearest_name, open_image, qemu_img, say
from imgtool.cli.options import (
    FILE_NAME,
    SIZE,
    file_argument,
    format_option,
    image_opts_option,
    object_option,
    second_format_option,
)
from imgtool.cli.render import counted
from imgtool.cli.requests import OnCopy, header_of, settle
from imgtool.errors import ImgtoolError, RefusedError, UsageError
from imgtool.image.names import pasted, printable
from imgtool.image.qapi_json import to_builtins
from imgtool.qemu.img_argv import Merge

if TYPE_CHECKING:
    from imgtool.qemu.img_argv import BitmapAction
    from imgtool.qemu.qemu_img import QemuImg

_FLAGS = ("add", "remove", "clear", "enable", "disable")


class BitmapCommand(click.Command):
    """Remembers the order in which the actions stand, which is the order they are done in."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["imgtool.bitmap.actions"] = actions_in(args)
        return super().parse_args(ctx, args)


def actions_in(args: list[str]) -> list[BitmapAction]:
    """The actions of a command line, in order."""
    found: list[BitmapAction] = []
    words = iter(args)
    for word in words:
        if word == "--":
            break
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            continue
        if name in _FLAGS and not equals:
            found.append(cast("BitmapAction", name))
        elif name == "merge":
            found.append(Merge(value if equals else next(words, "")))
    return found


def _flags(command: Any) -> Any:
    texts = {
        "add": "Create the bitmap; it records writes from now on.",
        "remove": "Remove it.",
        "clear": "Forget what it has recorded.",
        "enable": "Record writes from now on.",
        "disable": "Stop recording.",
    }
    for name in reversed(_FLAGS):
        command = click.option(f"--{name}", is_flag=True, expose_value=False, help=texts[name])(command)
    return command


@click.command(
    cls=BitmapCommand,
    epilog="\b\nExamples:\n"
    "  imgtool bitmap --add disk.qcow2 since-monday\n"
    "  imgtool bitmap --disable --merge since-monday disk.qcow2 all\n"
    "  imgtool bitmap --merge b0 -b old.qcow2 -F qcow2 new.qcow2 b0\n"
    "  imgtool info disk.qcow2                    # lists the bitmaps there are",
)
@file_argument()
@click.argument("name", metavar="BITMAP")
@_flags
@click.option(
    "--merge", metavar="SOURCE", multiple=True, expose_value=False, help="Add what this bitmap has recorded."
)
@click.option("-b", "--source-file", type=FILE_NAME, metavar="FILE", help="Where --merge finds its SOURCE.")
@second_format_option("source-format", "Its format; without it, its header decides.")
@click.option("-g", "--granularity", type=SIZE, metavar="SIZE", help="With --add: the bytes that one bit stands for.")
@format_option()
@image_opts_option
@object_option
@quiet_option
@dry_run_option
@output_option()
@click.pass_context
@pass_context
def bitmap(
    context: Context,
    ctx: click.Context,
    image: str,
    name: str,
    source_file: str | None,
    source_format: str | None,
    granularity: int | None,
    format_: str | None,
    image_opts: bool,
    objects: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Change a persistent dirty bitmap of a qcow2, which records what has been written since it was created, for
    incremental backups. Actions are carried out in the order given.
    """
    actions: list[BitmapAction] = ctx.meta["imgtool.bitmap.actions"]
    if not actions:
        raise UsageError("nothing to do to the bitmap was given", hint=f"one of --{', --'.join(_FLAGS)}, --merge")
    settle(image, image_opts=image_opts, dry_run=dry_run)
    opened = open_image(image, format=format_, image_opts=image_opts)
    source = None if source_file is None else open_image(source_file, format=source_format)
    arguments: dict[str, Any] = {
        "format": opened.format,
        "granularity": granularity,
        "merge_from": source.path if source else None,
        "merge_from_format": source.format if source else None,
        "objects": objects,
    }
    program = qemu_img(context)
    check_formats(context, [format_])
    _refuse_other_formats(opened)
    _refuse_version_2(opened)
    _check(program, opened, name, actions, objects)
    change = OnCopy(opened)
    if dry_run:
        from imgtool.qemu import img_argv

        argv = img_argv.bitmap(program.program, opened.source, name, actions, **arguments)
        change.show_plan(context, argv, reads=[source.source] if source else [])
        return
    with explained(context, formats=[format_, source_format]):
        changed = change.run(program, lambda source: program.bitmap(source, name, actions, **arguments))

    def lines() -> Iterator[str]:
        from imgtool.cli.describe import bitmap_table

        now = changed.after.qcow2.bitmaps if changed.after.qcow2 else None
        yield f"{opened.name}: {counted(len(now or ()), 'bitmap')} now"
        if now:
            yield from bitmap_table(now, indent="  ")

    say(context, to_builtins(changed), lines())


def _refuse_other_formats(opened: Opened) -> None:
    """RefusedError when the image is of a format in which QEMU cannot keep bitmaps."""
    if opened.path is None or opened.format == "qcow2":
        return
    target = pasted(opened.path + ".qcow2")
    raise RefusedError(
        f"QEMU keeps bitmaps in qcow2 images only, and {opened.place} is {opened.format}",
        hint=f"convert it first: `imgtool convert -f {opened.format} -O qcow2 {pasted(opened.path)} {target}`",
        path=opened.path,
    )


def _refuse_version_2(opened: Opened) -> None:
    from imgtool.image.version2 import refuse_version_2

    header = header_of(opened)
    if header is not None and opened.path is not None:
        refuse_version_2(header, opened.path, "bitmaps")


def _check(
    program: QemuImg, opened: Opened, name: str, actions: list[BitmapAction], objects: tuple[str, ...]
) -> None:
    """ImgtoolError, with the names that exist, when the bitmap to be changed does not."""
    if actions[0] == "add" or not name.isprintable():  # bytes that are no UTF-8 are not as they were in the list
        return
    info = program.info(opened.source, format=opened.format, objects=objects)
    known = [one.name for one in (info.qcow2.bitmaps if info.qcow2 else None) or ()]
    if name not in known:
        raise ImgtoolError(
            f"{opened.place} has no bitmap {printable(name)!r}",
            path=opened.path,
            hint=nearest_name(name, known, none="it has no bitmaps; --add makes one"),
        )
