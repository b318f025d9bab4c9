"""`imgtool amend -o OPTIONS IMAGE`"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import click

from imgtool.cli.context import Context, dry_run_option, output_option, pass_context, progress_option, quiet_option
from imgtool.cli.images import (
    Opened,
    explained,
    open_image,
    print_option_help,
    qemu_img,
    say,
    wants_help,
)
from imgtool.cli.options import (
    cache_option,
    file_argument,
    force_option,
    format_option,
    image_opts_option,
    object_option,
    option_map,
    options_option,
)
from imgtool.cli.progress import progress
from imgtool.cli.requests import OnCopy, header_of, settle
from imgtool.errors import RefusedError, UsageError
from imgtool.image.header import Header
from imgtool.image.names import printable
from imgtool.image.qapi_json import to_builtins
from imgtool.image.version2 import refuse_amend


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool amend -o compat=1.1 old.qcow2\n"
    "  imgtool amend -o lazy_refcounts=on,refcount_bits=16 disk.qcow2\n"
    "  imgtool amend -f qcow2 -o help"
)
@file_argument(required=False)
@options_option("The options to change; -o help lists them.", words="amended_options")
@format_option()
@cache_option("The cache mode for writing.  [default: writeback]")
@image_opts_option
@object_option
@force_option("Allow what QEMU calls unsafe, erasing the last key of a LUKS image, and any name of a data file.")
@progress_option
@quiet_option
@dry_run_option
@output_option()
@pass_context
def amend(
    context: Context,
    image: str | None,
    options: tuple[str, ...],
    format_: str | None,
    cache: str | None,
    image_opts: bool,
    objects: tuple[str, ...],
    force: bool,
    dry_run: bool,
) -> None:
    """Change the options an image was created with, as far as its format allows: a qcow2's compatibility level, say,
    or the keys of an encrypted image. Use `rebase` for the backing file and `resize` for the size.
    """
    chosen = option_map(options)
    if wants_help(chosen):
        format = format_ or (None if image is None else open_image(image, opens_parents=False).format)
        print_option_help(context, format or "qcow2", amend=True)
        return
    if image is None:
        raise UsageError("the name of the image is missing", hint="`imgtool amend --help` shows the usage")
    if not chosen:
        raise UsageError("nothing to change was given", hint="for example -o compat=1.1; -o help lists the options")
    settle(image, image_opts=image_opts, dry_run=dry_run)
    opened = open_image(image, format=format_, image_opts=image_opts)
    header = header_of(opened)
    if header is not None and opened.path is not None:
        refuse_amend(header, opened.path, chosen)
        if "data_file" in chosen and not force:
            _check_data_file(opened, header, chosen["data_file"])
    arguments: dict[str, Any] = {"format": opened.format, "cache": cache, "force": force, "objects": objects}
    program = qemu_img(context)
    # a copy would leave the key that is to be erased in the blocks of the old file
    keys = opened.format == "luks" or any(key.startswith("encrypt.") for key in chosen)
    change = OnCopy(opened, in_place=keys)
    if dry_run:
        from imgtool.qemu import img_argv

        argv = img_argv.amend(program.program, opened.source, chosen, **arguments)
        change.show_plan(context, argv)
        return
    with (
        explained(context, formats=[format_], option_format=opened.format, options=chosen, amend=True),
        progress(context, "amend") as show,
    ):
        changed = change.run(program, lambda source: program.amend(source, chosen, progress=show, **arguments))

    def lines() -> Iterator[str]:
        done = ", ".join(f"{printable(key)}={printable(str(value))}" for key, value in chosen.items())
        yield f"{opened.name}: {done}"

    say(context, to_builtins(changed), lines())


def _check_data_file(opened: Opened, header: Header, name: str) -> None:
    """RefusedError when the image has no external data file, or not under `name`: QEMU writes any name, and then does
    not open the image any more, not even to write another."""
    from imgtool.chain.look import LOCAL_PROTOCOLS
    from imgtool.image.reference import parse_data_file

    if not getattr(header.details, "external_data", False):
        raise RefusedError(
            f"{opened.place} has no external data file that could get another name",
            hint="`imgtool convert -O qcow2 -o data_file=NAME` makes an image that has one",
            path=opened.path,
        )
    directory = os.path.dirname(opened.path or "")
    found = parse_data_file(os.fsencode(name), directory=directory) if name else None
    place = directory if found is None else found.path if found.protocol in LOCAL_PROTOCOLS else None
    if place is not None and (not os.path.exists(place) or os.path.isdir(place)):
        raise RefusedError(
            f"{printable(place)} is no file: {opened.place}, without its data, could not be opened any more",
            hint="`imgtool chain move` renames a data file, and the image follows; --force writes the name",
            path=opened.path,
        )
