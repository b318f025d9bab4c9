"""`imgtool chain repair IMAGE|DIR…` and `imgtool chain anchor OVERLAY…`"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from imgtool.cli.chain_verify import human as verify_lines
from imgtool.cli.chain_verify import status_of
from imgtool.cli.context import (
    Context,
    dry_run_option,
    output_option,
    pass_context,
    progress_option,
    quiet_option,
)
from imgtool.cli.options import Word, file_argument, force_option, store_option

if TYPE_CHECKING:
    from imgtool.operations.anchor import Anchored
    from imgtool.operations.repair import Repaired


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool chain repair --dry-run /var/lib/libvirt/images\n"
    "  imgtool chain repair --only missing-parent vms --store bases\n"
    "  imgtool chain repair --deep disk.qcow2"
)
@file_argument("images", metavar="IMAGE|DIR…", nargs=-1)
@store_option("Also look in this directory and below.")
@click.option(
    "--only",
    type=Word("defects"),
    metavar="CODE",
    multiple=True,
    help="Repair only defects with this code. May be repeated.",
)
@click.option("--deep", is_flag=True, help="Look as `chain verify --deep` does.")
@progress_option
@quiet_option
@dry_run_option
@output_option()
@pass_context
def repair(
    context: Context,
    images: tuple[str, ...],
    stores: tuple[str, ...],
    only: tuple[str, ...],
    deep: bool,
    dry_run: bool,
) -> int:
    """Repair what `chain verify` finds in IMAGE or DIR, where nothing can be lost by doing so.

    Missing or wrong backing formats are corrected, moved backing files are found again where an anchor proves their
    identity, interrupted changes are finished, leftovers are removed, and leaked space is given back on a copy, which
    is compared with the image before it takes its place. Damaged images are left alone. The exit status is 3 when
    errors are left.
    """
    from imgtool.cli.output import emit
    from imgtool.cli.progress import progress
    from imgtool.operations.repair import DEEP, RepairRequest

    deep = deep or any(code in DEEP for code in only)
    with progress(context, "verify") as show:
        request = RepairRequest(
            images, only=only, store=stores, deep=context.qemu_img if deep else None, progress=show
        )
    if dry_run:
        from imgtool.cli.plan import emit_plan

        emit_plan(context, request.plan(context.programs.find("qemu-img")))
        return 0
    done = request.make(context.qemu_img)
    emit(context, done, _repaired(done, context.quiet))
    return status_of(done.left)


def _repaired(done: Repaired, quiet: bool) -> Iterator[str]:
    from imgtool.chain.draw import relative
    from imgtool.cli.render import bad, good

    for one in done.mended:
        word = good("repaired") if one.done else bad("not repaired")
        yield f"{word}: {relative(one.path, os.getcwd())}: {one.message} [{one.code}]"
    yield from verify_lines(done.left, quiet=quiet)


@click.command(
    epilog="\b\nExamples:\n  imgtool chain anchor overlay.qcow2\n  imgtool chain anchor --deep vms/*.qcow2"
)
@file_argument("overlays", metavar="OVERLAY…", nargs=-1)
@click.option(
    "--deep", is_flag=True, help="Read the backing file: record its contents, or prove that they are unchanged."
)
@force_option("With --deep: accept contents that differ or were never recorded.")
@progress_option
@quiet_option
@dry_run_option
@output_option()
@pass_context
def anchor(context: Context, overlays: tuple[str, ...], deep: bool, force: bool, dry_run: bool) -> None:
    """Record in each OVERLAY the current state of its backing file, so that a later change is noticed.

    Overlays created by imgtool have this anchor from the start. Use this command to accept a backing file that was
    written or copied; with --deep imgtool reads it and verifies its contents, if they were recorded before.
    """
    from imgtool.cli.images import say
    from imgtool.cli.progress import progress
    from imgtool.operations.anchor import AnchorRequest

    request = AnchorRequest(overlays, deep=deep, force=force, settle=not dry_run)
    if dry_run:
        from imgtool.cli.plan import emit_plan

        emit_plan(context, request.plan())
        return
    with progress(context, "read") as show:
        done = request.make(context.qemu_img, progress=show)
    say(context, done, _anchored(done))


def _anchored(done: list[Anchored]) -> Iterator[str]:
    from imgtool.chain.draw import relative

    for one in done:
        here = os.getcwd()
        how = ", proven to hold what it did" if one.proven else ""
        yield f"{relative(one.path, here)} remembers {relative(one.parent, here)} as it is now{how}"
