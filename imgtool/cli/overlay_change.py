"""`imgtool overlay reset` and `imgtool overlay delete`"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from imgtool.cli.context import Context, dry_run_option, output_option, pass_context, quiet_option
from imgtool.cli.images import qemu_img
from imgtool.cli.options import file_argument, force_option, store_option
from imgtool.cli.render import size
from imgtool.cli.requests import looking, said, show_plan
from imgtool.image.names import printable

if TYPE_CHECKING:
    from imgtool.operations.delete import Deleted


@click.command(epilog="\b\nExamples:\n  imgtool overlay reset vm.qcow2\n  imgtool overlay reset vm.qcow2 --dry-run")
@file_argument("image", metavar="OVERLAY")
@store_option()
@force_option("Even if other images stand on it, or internal snapshots would be lost.")
@quiet_option
@dry_run_option
@output_option()
@pass_context
def reset(context: Context, image: str, stores: tuple[str, ...], force: bool, dry_run: bool) -> None:
    """Empty OVERLAY, so that it reads what its backing file holds. What a guest wrote to it is lost; its name, size,
    options and permissions stay.
    """
    from imgtool.operations.reset import ResetRequest

    with looking(image):
        request = ResetRequest(image, force=force, store=stores, settle=not dry_run)
    if dry_run:
        show_plan(context, request)
        return
    done = request.make(qemu_img(context))
    said(context, done, [f"{printable(image)}: reads {printable(done.base)} again"], done.notes)


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool overlay delete vm.qcow2\n"
    "  imgtool overlay delete vm.qcow2 --store /srv/vms --dry-run"
)
@file_argument("image", metavar="OVERLAY")
@store_option()
@force_option("Even if other images stand on it, it is sealed, or it is not an overlay.")
@quiet_option
@dry_run_option
@output_option()
@pass_context
def delete(context: Context, image: str, stores: tuple[str, ...], force: bool, dry_run: bool) -> None:
    """Delete OVERLAY, and the external data file beside it if it has one. Refused while anything stands on it or has
    it open.
    """
    from imgtool.operations.delete import DeleteRequest

    with looking(image):
        request = DeleteRequest(image, force=force, store=stores, settle=not dry_run)
    if dry_run:
        from imgtool.cli.plan import emit_plan

        emit_plan(context, request.plan())
        return
    done = request.make()
    said(context, done, _lines(done), done.notes)


def _lines(done: Deleted) -> Iterator[str]:
    for file in done.files:
        yield f"deleted {printable(file)}"
    yield f"{size(done.freed)} freed"
