"""`imgtool convert SOURCE… TARGET`"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Any

import click

from imgtool.cli.bounds import refuse_too_large
from imgtool.cli.context import (
    Context,
    dry_run_option,
    output_option,
    pass_context,
    progress_option,
    quiet_option,
)
from imgtool.cli.create import made_lines, needs_info, parent_of
from imgtool.cli.images import (
    Opened,
    check_name,
    check_no_directory,
    children_of,
    emit_command,
    explained,
    open_image,
    print_option_help,
    qemu_img,
    refuse_children,
    say,
    snapshot_known,
    touched,
    wants_help,
    warn_of_children,
)
from imgtool.cli.options import (
    FILE_NAME,
    FORMAT,
    SIZE,
    SNAPSHOT,
    cache_option,
    file_argument,
    force_option,
    force_share_option,
    format_option,
    image_opts_option,
    object_option,
    option_map,
    options_option,
    rate_limit_option,
    second_format_option,
    source_cache_option,
    timeout_option,
)
from imgtool.cli.output import warn
from imgtool.cli.progress import progress
from imgtool.cli.requests import header_of
from imgtool.errors import ImageInUseError, RefusedError, UsageError
from imgtool.image.names import absolute, pasted, printable, printable_lines
from imgtool.image.qapi_json import to_builtins
from imgtool.image.version2 import is_version_2
from imgtool.qemu.img_argv import ImageOpts, SnapshotParam, Source, parse_options


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool convert -f raw -O qcow2 disk.img disk.qcow2\n"
    "  imgtool convert -O qcow2 -c disk.qcow2 small.qcow2\n"
    "  imgtool convert -O qcow2 -c -m 16 -W disk.qcow2 quickly.qcow2\n"
    "  imgtool convert -O raw -l before-upgrade disk.qcow2 old.img\n"
    "  imgtool convert -O qcow2 -B base.qcow2 -F qcow2 disk.qcow2 overlay.qcow2\n"
    "  imgtool convert -n -O raw disk.qcow2 /dev/vg/disk"
)
@file_argument("names", metavar="SOURCE… TARGET", nargs=-1, required=False)
@format_option("The sources' format; without it, their headers decide.")
@click.option("-O", "--target-format", type=FORMAT, metavar="FORMAT", help="The new image's format.  [default: raw]")
@click.option(
    "-B",
    "--backing",
    type=FILE_NAME,
    metavar="FILE",
    help="Make an overlay of this image: with what SOURCE's top layer holds where SOURCE stands on it too, else "
    "with the whole disk. A relative name starts in the target's directory.",
)
@second_format_option("backing-format", "The backing file's; without it, its header decides.")
@options_option("The target format's own options; -o help lists them.")
@click.option(
    "-c",
    "--compress",
    "compressed",
    is_flag=True,
    help="Compress the data (qcow2, qcow, vmdk). A qcow2 uses zstd, which needs QEMU 5.1 to read, unless -o "
    "says otherwise.",
)
@click.option(
    "-l", "--snapshot", type=SNAPSHOT, metavar="SNAPSHOT", help="Copy this internal snapshot, by name or ID."
)
@click.option("-S", "--sparse-size", type=SIZE, metavar="SIZE", help="The shortest run of zeros left out.")
@click.option("-m", "--num-coroutines", type=click.IntRange(1, 16), metavar="N", help="Work on N parts at once.")
@click.option(
    "-W",
    "--out-of-order",
    is_flag=True,
    help="Write parts as they become ready: faster, but the layout varies from run to run.",
)
@rate_limit_option
@cache_option(
    "The cache mode for the target.  [default: unsafe for a new file, which imgtool brings to disk itself; else "
    "writeback]"
)
@source_cache_option
@click.option("-C", "--copy-offload", is_flag=True, help="Let the storage do the copying where it can.")
@click.option("-n", "--skip-creation", is_flag=True, help="The target exists and is written in place.")
@click.option("--target-is-zero", is_flag=True, help="With -n: the target holds only zeros.")
@click.option("--bitmaps", is_flag=True, help="Copy the persistent bitmaps too.")
@click.option("--skip-broken-bitmaps", is_flag=True, help="With --bitmaps: leave out those that are in use.")
@click.option("--salvage", is_flag=True, help="Write zeros where a source cannot be read, and go on.")
@force_share_option(
    "Read sources that are in use. A copy made while a machine writes is inconsistent, so that needs --force."
)
@image_opts_option
@click.option("--target-image-opts", is_flag=True, help="TARGET is driver=…,file.filename=…; needs -n.")
@object_option
@force_option("Replace an existing target; read a source that is damaged or being written.")
@click.option(
    "--max-size",
    type=SIZE,
    metavar="SIZE",
    help="Refuse if the new image would be larger; a raw image counts with its full size.",
)
@timeout_option(default="none")
@progress_option
@quiet_option
@dry_run_option
@output_option()
@pass_context
def convert(
    context: Context,
    /,
    names: tuple[str, ...],
    format_: str | None,
    target_format: str | None,
    backing: str | None,
    backing_format: str | None,
    options: tuple[str, ...],
    snapshot: str | None,
    image_opts: bool,
    target_image_opts: bool,
    force_share: bool,
    force: bool,
    timeout: float | None,
    max_size: int | None,
    dry_run: bool,
    **others: Any,
) -> None:
    """Copy an image into a new one: in another format, compressed, as an overlay, or from one of its snapshots.
    Several SOURCEs are concatenated.

    The target is written under a hidden name, flushed to disk, and then renamed: killed at any moment, it exists
    complete or not at all. A block device, or any target with -n, is written in place.
    """
    chosen = option_map(options)
    output_format = target_format or "raw"
    if wants_help(chosen):
        print_option_help(context, output_format)
        return
    if len(names) < 2:
        raise UsageError("convert needs an image to read and a name for the new one", hint="SOURCE… TARGET")
    target = _target(names[-1], target_format, image_opts=target_image_opts)
    backing = chosen.pop("backing_file", backing)
    backing_format = chosen.pop("backing_fmt", backing_format)
    sources = [open_image(name, format=format_, image_opts=image_opts) for name in names[:-1]]
    _check_sources(sources, snapshot, force_share, force, salvage=others["salvage"])
    _check_bitmaps(sources if others["bitmaps"] else [], None if target_image_opts else output_format, chosen)
    parent = None
    if isinstance(target, str):
        if not others["skip_creation"]:
            check_name(context, target, target_format, "-O")
        _check_target(target, sources, force=force, in_place=others["skip_creation"], dry_run=dry_run)
        if force:
            warn_of_children(context, target)
        parent = parent_of(target, backing, backing_format) if backing else None
        _check_parent(sources, parent.path if parent else None)
    elif backing:
        raise UsageError("-B is for a target that is a file")
    arguments = others | {
        "format": _common_format(sources),
        "output_format": output_format,
        "backing": parent.reference if parent else None,
        "backing_format": parent.format if parent else None,
        "options": chosen,
        "snapshot": snapshot_param(snapshot),
        "force_share": force_share,
    }
    if others["compressed"] and output_format == "qcow2" and not others["skip_creation"]:
        _choose_compression(context, chosen)
    program = qemu_img(context, timeout)
    places = [source.source for source in sources]
    with explained(context, formats=[format_, output_format], option_format=output_format, options=chosen):
        refuse_too_large(context, program, places, max_size, arguments)
    if dry_run:
        _plan(context, program.program, places, target, parent.path if parent else None, arguments)
        return
    formats = [format_, output_format, parent.format if parent else None]
    describe = needs_info(context, output_format)
    with (
        explained(context, formats=formats, option_format=output_format, options=chosen),
        progress(context, "convert") as show,
        contextlib.ExitStack() as stack,
    ):
        finish = parent.second_look(stack, target) if parent else None
        made = program.convert(
            places, target, overwrite=force, progress=show, describe=describe, finish=finish, **arguments
        )
    if made.notes:
        warn(context, printable_lines(made.notes))
    shown_format = None if target_image_opts else output_format
    say(context, to_builtins(made), made_lines(printable(names[-1]), made, shown_format))


def _target(name: str, format: str | None, *, image_opts: bool) -> Source:
    if not image_opts:
        check_no_directory(name)
        return absolute(name)
    if format is not None:
        raise UsageError(
            "-O and --target-image-opts exclude each other", hint="write driver=FORMAT among the options"
        )
    return ImageOpts(name)


def _choose_compression(context: Context, options: dict[str, str]) -> None:
    """zstd, where neither the user nor the qemu-img at hand says otherwise: five times as fast as its zlib, and
    mostly smaller. A qcow2 of the old kind has zlib only. Nothing else is chosen: more coroutines gain nothing while
    they write in order, and out of order the bytes are others each time."""
    from imgtool.qemu.img_help import knows_zstd

    if "compression_type" in options or is_version_2(options.get("compat")):
        return
    if knows_zstd(context.programs):
        options["compression_type"] = "zstd"


def snapshot_param(text: str | None) -> str | SnapshotParam | None:
    """What `-l` says: a name or an ID, or `snapshot.id=…,snapshot.name=…`."""
    if text is None or not text.startswith(("snapshot.id=", "snapshot.name=")):
        return text
    given = parse_options(text)
    unknown = set(given) - {"snapshot.id", "snapshot.name"}
    if unknown:
        raise UsageError(f"{printable(text)!r} names no snapshot", hint="write -l NAME, or -l snapshot.id=N")
    return SnapshotParam(given.get("snapshot.id"), given.get("snapshot.name"))


def _common_format(sources: list[Opened]) -> str | None:
    """The one format of all sources; qemu-img takes one -f for them all."""
    formats = {source.format for source in sources}
    if len(formats) > 1:
        listed = ", ".join(f"{source.name} is {source.format}" for source in sources)
        raise UsageError(f"images of several formats cannot be put together: {listed}", hint="convert them first")
    return formats.pop()


def _check_sources(
    sources: list[Opened], snapshot: str | None, force_share: bool, force: bool, *, salvage: bool
) -> None:
    from imgtool.chain.truncation import refuse_truncated

    for source in sources:
        if not (force or salvage):
            refuse_truncated(source.chain)
        if snapshot is not None and isinstance(snapshot_param(snapshot), str):
            snapshot_known(source, snapshot)
        if force_share and not force and source.top is not None and source.top.in_use == "write":
            from imgtool.image.users import users_of

            raise ImageInUseError(
                f"{source.place} is being written: a copy of it would be torn",
                path=source.path,
                hint=f"{users_of(source.top.path).ending}; -l copies an internal snapshot, --force copies it anyway",
            )


def _check_bitmaps(sources: list[Opened], target_format: str | None, options: dict[str, str]) -> None:
    """`sources` are those whose bitmaps are to be copied."""
    for source in sources:
        if target_format not in (None, "qcow2") or is_version_2(options.get("compat")):
            what = "a qcow2 of version 2" if target_format == "qcow2" else target_format
            raise UsageError(
                f"--bitmaps copies into a qcow2 of version 3, not into {what}",
                hint="-O qcow2 without compat=0.10 makes one; leave out --bitmaps to lose them",
            )
        header = header_of(source)
        if header is not None and getattr(header.details, "version", 2) < 3:
            raise RefusedError(
                f"{source.place} has no bitmaps: only a qcow2 of version 3 can have some",
                hint="leave out --bitmaps",
                path=source.path,
            )


def _check_parent(sources: list[Opened], parent: str | None) -> None:
    """With -B qemu-img copies only what the source's topmost image holds, and leaves out without a word what the
    images between it and the new backing file do."""
    for source in sources if parent is not None else ():
        below = [image.path for image in source.chain[1:2]]
        if below and not (os.path.exists(below[0]) and os.path.samefile(below[0], str(parent))):
            raise UsageError(
                f"{source.name} stands on {printable(below[0])}, and not on {printable(str(parent))}: what it reads "
                f"from there would be lost",
                hint=f"-B {pasted(below[0])}, and then `imgtool rebase` the new image; or leave out -B",
            )


def _check_target(target: str, sources: list[Opened], *, force: bool, in_place: bool, dry_run: bool) -> None:
    """Refuses before any work what would be refused after it."""
    try:
        status = os.stat(target)
    except (OSError, ValueError):
        return
    for source in sources:
        for image in source.chain:
            if os.path.exists(image.path) and os.path.samestat(status, os.stat(image.path)):
                what = "is read" if image is source.top else f"is what {source.name} stands on"
                raise UsageError(f"{printable(target)} cannot be the target: it {what}", path=target)
    if force or stat.S_ISBLK(status.st_mode):
        return
    if in_place:
        refuse_children(target, children_of(target), doing="writing to it")
        return
    from imgtool.qemu.replace import clear_left, exists_already

    if not dry_run:
        clear_left(os.path.dirname(target))
    raise exists_already(target, status)


def _plan(
    context: Context,
    program: str,
    sources: list[Source],
    target: Source,
    parent: str | None,
    arguments: dict[str, Any],
) -> None:
    from imgtool.qemu import img_argv
    from imgtool.qemu.img_make import cache_for

    in_place = arguments["skip_creation"] or isinstance(target, ImageOpts)
    arguments["cache"] = arguments["cache"] or cache_for(target, arguments["options"], in_place=in_place)
    exists = not isinstance(target, ImageOpts) and os.path.lexists(os.fsdecode(target))
    images = [touched(target, "write" if in_place else "replace" if exists else "create")]
    images += [touched(source, "read") for source in sources]
    images += [touched(parent, "read")] if parent else []
    notes = [] if in_place else ["written under a hidden name first, brought to disk, then renamed"]
    emit_command(context, img_argv.convert(program, sources, target, **arguments), images, notes=notes)
