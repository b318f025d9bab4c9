"""`imgtool chain verify IMAGE|DIR…`"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from imgtool.cli.context import Context, output_option, pass_context, progress_option, quiet_option
from imgtool.cli.options import file_argument, format_option, store_option

if TYPE_CHECKING:
    from imgtool.chain.verify import Defect, Verification

PROBLEMS = 3
"""The exit status when there are some."""

_COLORS = {"error": "red", "warning": "yellow", "info": "cyan"}
_SHOWN_IMAGES = 3


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool chain verify /var/lib/libvirt/images\n"
    "  imgtool chain verify --deep disk.qcow2\n"
    "  imgtool chain verify vms --store bases --strict\n"
    "  imgtool chain verify . --output json | jq -r '.defects[] | select(.repair) | .repair | @sh'"
)
@file_argument("images", metavar="IMAGE|DIR…", nargs=-1)
@store_option("Also look in this directory and below.")
@format_option("The format of IMAGE; without it, its header decides.")
@click.option(
    "--deep",
    is_flag=True,
    help="Have QEMU check every image, open parents on other hosts, and compare contents with what anchors record.",
)
@click.option("--strict", is_flag=True, help="Warnings count as problems.")
@progress_option
@quiet_option
@output_option()
@pass_context
def verify(
    context: Context, images: tuple[str, ...], stores: tuple[str, ...], format_: str | None, deep: bool, strict: bool
) -> int:
    """Find everything that is wrong with the images in each directory DIR and below, or with each IMAGE, what it
    stands on and what stands on it.

    Headers are read without starting QEMU; nothing is changed. Each defect has a code, the images it affects, and the
    command that repairs it. The exit status is 3 when there are errors.
    """
    from imgtool.chain import verify as chain
    from imgtool.cli.output import emit
    from imgtool.cli.progress import progress

    with progress(context, "verify") as show:
        found = chain.verify(
            images,
            store=stores,
            format=format_,
            deep=deep,
            qemu_img=context.qemu_img if deep else None,
            progress=show,
        )
    emit(context, found, human(found, quiet=context.quiet))
    return status_of(found, strict=strict)


def status_of(found: Verification, *, strict: bool = False) -> int:
    return PROBLEMS if found.errors or (strict and found.warnings) else 0


def human(found: Verification, *, quiet: bool = False) -> Iterator[str]:
    for defect in found.defects:
        if not (quiet and defect.severity == "info"):
            yield from _lines(defect)
    yield summary(found)


def summary(found: Verification) -> str:
    from imgtool.cli.render import bad, counted, doubtful, good

    parts = [counted(found.images, "image") + (f", {found.checked} checked" if found.checked else "")]
    if found.errors:
        parts.append(bad(counted(found.errors, "error")))
    if found.warnings:
        parts.append(doubtful(counted(found.warnings, "warning")))
    if not found.errors and not found.warnings:
        parts.append(good("no defects"))
    return ": ".join([parts[0], ", ".join(parts[1:])])


def _lines(defect: Defect) -> Iterator[str]:
    from imgtool.chain.draw import relative
    from imgtool.cli.render import shell

    where = "" if defect.path is None else f"{relative(defect.path, os.getcwd())}: "
    grade = click.style(defect.severity, fg=_COLORS[defect.severity])
    yield f"{grade}: {where}{defect.message} [{defect.code}]"
    above = [path for path in defect.images if path != defect.path]
    if above:
        shown = ", ".join(relative(path, os.getcwd()) for path in above[:_SHOWN_IMAGES])
        more = len(above) - _SHOWN_IMAGES
        yield f"  hurts:  {shown}{f' and {more} more' if more > 0 else ''}"
    if defect.repair is not None:
        yield f"  repair: {shell(defect.repair)}"
    if defect.hint is not None:
        yield f"  hint:   {defect.hint}"
