"""`imgtool inspect FILE…`"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

from imgtool.cli.context import Context, output_option, pass_context
from imgtool.cli.options import FILE_NAME, format_option
from imgtool.cli.output import emit, report
from imgtool.cli.render import bad, doubtful, fields, good, size
from imgtool.errors import ImageFormatError, ImgtoolError, UsageError
from imgtool.image.header import FORMATS
from imgtool.image.names import absolute, printable

if TYPE_CHECKING:
    from imgtool.image.findings import Finding
    from imgtool.image.inspect import Inspection

PROBLEMS = 3
STDIN = "-"

_COLORS: dict[str, Callable[[str], str]] = {"error": bad, "warning": doubtful, "info": str}


@click.command(
    epilog="\b\nExit status: 0 safe, 1 cannot be inspected, 3 not safe.\n\n"
    "\b\nVerdicts (the worst one found is given):\n"
    "  safe               refers to nothing else, and nothing is out of proportion\n"
    "  refers-to-host     it names other files, devices or directories of this host\n"
    "  refers-to-network  opening it connects to a server\n"
    "  bomb               small here, huge or endless when it is opened\n"
    "  malformed          damaged, or crafted to look so\n"
    "  unknown            imgtool cannot tell what it needs, or its end is missing\n"
    "\n"
    "\b\nExamples:\n"
    "  imgtool inspect download.qcow2 && imgtool convert -O raw download.qcow2 disk.img\n"
    "  curl -s https://example.org/disk.qcow2 | imgtool inspect -\n"
    "  imgtool inspect uploads/* --output json | jq -r '.[] | select(.verdict != \"safe\") | .path'"
)
# No --trust: nothing is opened but the file itself, and a verdict is about the image, not about its reader.
@click.argument("images", type=FILE_NAME, metavar="FILE…", nargs=-1, required=True)
@format_option("Treat it as this format and no other; by default its contents decide.")
@output_option()
@pass_context
def inspect(context: Context, images: tuple[str, ...], format_: str | None) -> int:
    """Tell whether an image of unknown origin is safe to open. imgtool itself reads it: no QEMU program is started,
    and no other file, device or server is touched. `-` reads the first 4 MiB of a pipe.

    One image gives one JSON object, several give a list of them.
    """
    if format_ is not None and format_ not in FORMATS:
        raise UsageError(f"{printable(format_)!r} is no image format", hint=f"one of {', '.join(FORMATS)}")
    found: list[Inspection] = []
    failed: list[ImgtoolError] = []
    for name in images:
        try:
            found.append(_look(name, format_))
        except ImgtoolError as error:
            if len(images) == 1:
                raise
            failed.append(error)
    if found:
        emit(context, found[0] if len(images) == 1 else found, () if context.json else _lines(found))
    for one_error in failed:
        report(context, one_error)
    if failed:
        return 1
    return 0 if all(one.safe for one in found) else PROBLEMS


def _look(name: str, format: str | None) -> Inspection:
    from imgtool.image import inspect as looking

    if name == STDIN:
        try:
            fd = sys.stdin.fileno()
        except (AttributeError, OSError, ValueError):
            raise ImageFormatError("there is nothing on stdin") from None
        if os.isatty(fd):
            raise UsageError("stdin is a terminal", hint="pipe an image into it, or name a file")
        return looking.inspect(fd, format=format)
    from imgtool.cli.images import not_found
    from imgtool.cli.info_answer import open_readable
    from imgtool.errors import ImageNotFoundError

    path = absolute(name)
    try:
        fd = open_readable(path)
    except ImageNotFoundError as error:
        raise not_found(error, name) from error
    try:
        return looking.inspect(fd, path=path, format=format)
    finally:
        os.close(fd)


def _lines(found: list[Inspection]) -> Iterator[str]:
    for number, one in enumerate(found):
        if number:
            yield ""
        yield from fields(_pairs(one))
        for finding in one.findings:
            yield f"{_COLORS[finding.severity](finding.severity)}: {_said(finding)}"


def _pairs(one: Inspection) -> Iterator[tuple[str, str]]:
    yield "image", "standard input" if one.path is None else printable(one.path)
    yield "verdict", good(one.verdict) if one.safe else bad(one.verdict)
    if one.format is not None:
        yield "format", one.format
    if one.virtual_size is not None:
        yield "virtual size", size(one.virtual_size)
    if one.file_size is not None:
        yield "file size", size(one.file_size)
    if one.encryption is not None:
        yield "encryption", printable(one.encryption)
    if one.snapshots:
        yield "snapshots", str(one.snapshots)
    if one.features:
        yield "features", ", ".join(printable(feature) for feature in one.features)
    if one.contents:
        yield "holds", ", ".join(one.contents)
    for named in one.references:
        format = "" if named.format is None else f" ({printable(named.format)})"
        yield named.role.replace("-", " "), printable(named.name) + format


def _said(finding: Finding) -> str:
    cve = f" {finding.cve}" if finding.cve else ""
    return f"{finding.message} [{finding.code}]{cve}"
