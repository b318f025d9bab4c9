"""`imgtool create IMAGE [SIZE]`"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from imgtool.cli.context import Context, dry_run_option, output_option, pass_context, quiet_option
from imgtool.cli.images import (
    check_name,
    check_no_directory,
    emit_command,
    explained,
    print_option_help,
    qemu_img,
    say,
    touched,
    wants_help,
    warn_of_children,
    warn_of_named_raw,
)
from imgtool.cli.options import (
    FILE_NAME,
    FORMAT,
    SIZE,
    file_argument,
    force_option,
    object_option,
    option_map,
    options_option,
    second_format_option,
    timeout_option,
)
from imgtool.cli.output import remark
from imgtool.cli.render import size as shown_size
from imgtool.errors import ImageNotFoundError, RefusedError, UsageError
from imgtool.image.header import FORMATS, read_header
from imgtool.image.names import absolute, pasted, printable
from imgtool.image.qapi_json import to_builtins
from imgtool.qemu.img_argv import Backing, Source, Verbatim

if TYPE_CHECKING:
    from imgtool.chain.graph import Image
    from imgtool.operations.meanwhile import Seen
    from imgtool.qemu.results import Created


_OVERLAYS = ("qcow", "qcow2", "qed", "vmdk")
"""The formats whose images name backing files."""


class Parent(NamedTuple):
    """The backing file of an image to be made."""

    reference: Backing
    """As it shall stand in the image."""
    format: str
    path: str | None
    """Where it is; None when it is no file here or need not exist."""
    virtual_size: int | None
    seen: Seen | None = None
    """What it was when it was looked at."""

    def second_look(self, stack: contextlib.ExitStack, target: Source) -> Callable[[str], None] | None:
        """What QemuImg is to call before the image appears: the backing file is still the one that was looked at, and
        stays so until `stack` ends. A device is written in place, so there it is looked at here and now."""
        from imgtool.qemu.img_make import is_device

        seen = self.seen
        if seen is None:
            return None
        if is_device(target):
            stack.enter_context(seen.still())
            return None
        return lambda hidden: stack.enter_context(seen.still())


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool create -f qcow2 disk.qcow2 10G\n"
    "  imgtool create -f qcow2 -b base.qcow2 -F qcow2 overlay.qcow2\n"
    "  imgtool create -f qcow2 -o cluster_size=2M,compression_type=zstd disk.qcow2 1T\n"
    "  imgtool create -f vmdk -o help"
)
@file_argument(required=False)
@click.argument("size", type=SIZE, metavar="[SIZE]", required=False)
@click.option(
    "-f", "--format", "format_", type=FORMAT, metavar="FORMAT", help="The new image's format.  [default: raw]"
)
@click.option(
    "-b",
    "--backing",
    type=FILE_NAME,
    metavar="FILE",
    help="Make an overlay of this image. A relative name starts in the new image's directory.",
)
@second_format_option("backing-format", "The backing file's; without it, its header decides.")
@click.option("--backing-as-is", is_flag=True, help="-b is a QEMU reference (nbd://…, json:…), not a file name.")
@click.option("-u", "--unsafe", is_flag=True, help="Do not look at the backing file; it may be missing.")
@options_option("The format's own options; -o help lists them.")
@object_option
@force_option("Replace an existing file; make an overlay smaller than its backing file.")
@timeout_option(default="60")
@quiet_option
@dry_run_option
@output_option()
@pass_context
def create(
    context: Context,
    image: str | None,
    size: int | None,
    format_: str | None,
    backing: str | None,
    backing_format: str | None,
    backing_as_is: bool,
    unsafe: bool,
    options: tuple[str, ...],
    objects: tuple[str, ...],
    force: bool,
    timeout: float | None,
    dry_run: bool,
) -> None:
    """Create an image with a disk of SIZE bytes (10G, 512M, …), or an overlay of another image.

    An existing file is never replaced unless --force is given. The image appears under its name only once it is
    complete.
    """
    format = format_ or "raw"
    chosen = option_map(options)
    if wants_help(chosen):
        print_option_help(context, format)
        return
    if image is None:
        raise UsageError("the name of the image is missing", hint="`imgtool create --help` shows how it is used")
    backing = chosen.pop("backing_file", backing)
    backing_format = chosen.pop("backing_fmt", backing_format)
    if "size" in chosen:
        size = SIZE.convert(chosen.pop("size"), None, None)
    check_no_directory(image)
    path = absolute(image)
    check_name(context, path, format_, "-f")
    parent = None
    if backing:
        _check_can_stand(format)
        parent = parent_of(path, backing, backing_format, as_is=backing_as_is, unsafe=unsafe)
        _check_overlay(path, parent, size, force)
        if parent.path is not None:
            warn_of_named_raw(context, parent.path, parent.format)
    if force:
        warn_of_children(context, path)
    program = qemu_img(context, timeout)
    arguments: dict[str, Any] = {
        "format": format,
        "backing": parent.reference if parent else None,
        "backing_format": parent.format if parent else None,
        "unsafe_backing": unsafe,
        "options": chosen,
        "objects": objects,
    }
    formats = [format, parent.format if parent else None]
    if dry_run:
        _plan(context, program.program, path, size, parent, arguments, force)
        return
    describe = needs_info(context, format)
    with explained(context, formats=formats, option_format=format, options=chosen), contextlib.ExitStack() as stack:
        finish = parent.second_look(stack, path) if parent else None
        made = program.create(path, size, overwrite=force, describe=describe, finish=finish, **arguments)
    if parent and backing_format is None:
        remark(context, f"the backing file's format is {parent.format}, by its header")
    say(context, to_builtins(made), made_lines(printable(image), made, format))


def parent_of(
    path: str,
    backing: str,
    format: str | None,
    *,
    as_is: bool = False,
    unsafe: bool | None = None,
) -> Parent:
    """The backing file `backing` of the image at `path`, looked at unless it is no file here or `unsafe`
    (None where people cannot ask for that).

    RefusedError when it stands on what is at `path` now, and would lose that.
    """
    if as_is or unsafe:
        if format is None:
            raise UsageError("a backing file that is not looked at needs its format named", hint="name it with -F")
        return Parent(Verbatim(backing) if as_is else backing, format, None, None)
    from imgtool.chain.walk import guard
    from imgtool.operations.meanwhile import Seen

    place = os.path.normpath(os.path.join(os.path.dirname(path), backing))
    try:
        chain = guard(place, format=format if format in FORMATS else None)
    except ImageNotFoundError as error:
        error.message = f"the backing file {printable(backing)} does not exist: there is no {printable(place)}"
        near = absolute(backing)
        if near != place and os.path.exists(near):
            there = os.path.relpath(near, os.path.dirname(path))
            error.hint = f"the name starts in the image's own directory: -b {pasted(there)}"
        else:
            error.hint = None if unsafe is None else "-u makes the image without looking"
        raise
    _refuse_circle(path, place, chain)
    top = chain[0]
    return Parent(backing, format or top.format or "raw", top.path, top.virtual_size, Seen(top.path))


def _refuse_circle(path: str, place: str, chain: list[Image]) -> None:
    for image in chain if os.path.exists(path) else ():
        if os.path.exists(image.path) and os.path.samefile(image.path, path):
            how = "is the image itself" if image is chain[0] else "stands on it"
            raise RefusedError(
                f"{printable(path)} cannot have the backing file {printable(place)}, which {how}",
                path=path,
                hint="choose another name for the new image",
            )


def _check_can_stand(format: str) -> None:
    """UsageError when images in `format` have no backing files."""
    if format in FORMATS and format not in _OVERLAYS:
        raise UsageError(
            f"a {format} image has no backing file",
            hint="-f qcow2 makes an overlay, and so does `imgtool overlay new`",
        )


def _check_overlay(path: str, parent: Parent, size: int | None, force: bool) -> None:
    if force or size is None or parent.virtual_size is None or size >= parent.virtual_size:
        return
    raise RefusedError(
        f"the overlay would have {shown_size(size)}, its backing file has {shown_size(parent.virtual_size)}: "
        "the end of the disk would be cut off",
        path=path,
        hint="leave out the size to use the backing file's; --force makes it anyway",
    )


def _plan(
    context: Context,
    program: str,
    path: str,
    size: int | None,
    parent: Parent | None,
    arguments: dict[str, Any],
    force: bool,
) -> None:
    from imgtool.qemu import img_argv

    if size is None and parent is None:
        raise UsageError(f"{printable(path)}: an image without a backing file needs a size")
    exists = os.path.lexists(path)
    if exists and not force:
        from imgtool.qemu.replace import exists_already

        raise exists_already(path, os.lstat(path))
    argv = img_argv.create(program, path, size, **arguments)
    images = [touched(path, "replace" if exists else "create")]
    if parent is not None and parent.path is not None:
        images.append(touched(parent.path, "read"))
    emit_command(context, argv, images, notes=["written under a hidden name first, then renamed"])


def _disk_of(made: Created, format: str) -> tuple[int, str | None]:
    """The size of a new image's disk, and what it stands on."""
    if made.info is not None:
        return made.info.virtual_size, made.info.backing_filename
    with open(made.path, "rb", buffering=0) as file:
        header = read_header(file.fileno(), format=format)
    return header.virtual_size, None if header.backing is None else os.fsdecode(header.backing)


def needs_info(context: Context, format: str) -> bool:
    """Whether qemu-img has to be asked about a new image: its header says all that `made_lines` tell."""
    return context.json or format not in FORMATS


def made_lines(name: str, made: Created, format: str | None) -> Iterator[str]:
    """One line that says what there is now; of an image that was given by its options, without `format`, no more than
    its name."""
    text = f"made {name}"
    if format is not None:
        size, below = _disk_of(made, format)
        text += f": {format}, {shown_size(size)}"
        if below is not None:
            text += f", on {printable(below)}"
    yield text
    others = [file for file in made.written if file != made.path]
    if others:
        yield f"with {', '.join(printable(file) for file in others)}"
