"""`imgtool chain collect DIR`"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from imgtool.cli.context import Context, dry_run_option, output_option, pass_context, quiet_option
from imgtool.cli.options import FILE_NAME, file_argument, store_option
from imgtool.errors import UsageError

if TYPE_CHECKING:
    from imgtool.operations.plan import Plan
    from imgtool.operations.quarantine import Garbage, Quarantined


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool chain collect --dry-run /srv/vms --keep /srv/vms/web.qcow2 --keep /srv/vms/db.qcow2\n"
    "  imgtool chain collect . --keep web.qcow2\n"
    "  imgtool chain collect . --undo\n"
    "  imgtool chain collect . --list\n"
    "  imgtool chain collect . --purge"
)
@file_argument("directory", metavar="DIR")
@click.option(
    "-k",
    "--keep",
    type=FILE_NAME,
    metavar="IMAGE",
    multiple=True,
    help="Keep this image and what it stands on. May be repeated.",
)
@store_option("Also look in this directory and below.")
@click.option("--undo", is_flag=True, help="Bring back the last batch, or that of --id.")
@click.option("--purge", is_flag=True, help="Delete batches for good: all of them, or that of --id.")
@click.option("-l", "--list", "list_", is_flag=True, help="List the batches in quarantine.")
@click.option("--id", "id_", metavar="ID", help="The batch of one run; --list shows them.")
@quiet_option
@dry_run_option
@output_option()
@pass_context
def collect(
    context: Context,
    directory: str,
    keep: tuple[str, ...],
    stores: tuple[str, ...],
    undo: bool,
    purge: bool,
    list_: bool,
    id_: str | None,
    dry_run: bool,
) -> None:
    """Move the images in DIR and below that nothing needs into a quarantine in DIR.

    Needed are the images of --keep, those that a program has open, those of imgtool's machines and builds, images
    outside DIR that imgtool made or that are found in --store, and everything that these stand on. Nothing is deleted
    before --purge; --undo brings it back.
    """
    from imgtool.cli.images import say
    from imgtool.operations.collect import CollectRequest
    from imgtool.operations.quarantine import PurgeRequest, UndoRequest, quarantined

    if undo + purge + list_ + bool(keep) > 1:
        raise UsageError("--keep, --undo, --purge and --list exclude each other", hint="one of them at a time")
    if id_ is not None and not (undo or purge):
        raise UsageError("--id is for --undo and --purge", hint="`imgtool chain collect --list` shows what there is")
    if list_:
        from imgtool.cli.output import emit

        found = quarantined(directory)
        emit(context, found, _listed(found))
        return
    request: UndoRequest | PurgeRequest | CollectRequest
    if undo:
        request = UndoRequest(directory, id_)
    elif purge:
        request = PurgeRequest(directory, id_)
    else:
        request = CollectRequest(directory, keep=keep, needed=list(_needed()), store=stores, settle=not dry_run)
    if dry_run:
        _plan(context, request.plan())
    elif isinstance(request, UndoRequest):
        back = request.make()
        say(context, back, _files("brought back", back.files))
    elif isinstance(request, PurgeRequest):
        gone = request.make()
        say(context, gone, _files("deleted", [file for batch in gone for file in batch.files]))
    else:
        done = request.make()
        say(
            context,
            done,
            _files(
                "put away",
                done.files,
                kept=done.kept,
                undo=() if done.id is None else ("--undo", "--id", done.id, directory),
            ),
        )


def _needed() -> Iterator[str]:
    """What the machines that run and the layers of builds consist of."""
    from imgtool.build.store import Store
    from imgtool.errors import ImgtoolError
    from imgtool.machine.runtime import vms

    for _, state in vms():
        yield from (image.path for image in state.images)
    try:
        for layer in Store().layers():
            yield layer.image
            yield layer.manifest.base
    except ImgtoolError:
        return  # there were no builds


def _plan(context: Context, plan: Plan) -> None:
    from imgtool.cli.plan import emit_plan

    emit_plan(context, plan)


def _files(
    verb: str, files: Sequence[Garbage], *, kept: int | None = None, undo: tuple[str, ...] = ()
) -> Iterator[str]:
    from imgtool.chain.draw import relative
    from imgtool.cli.render import counted, shell, short_size

    for file in files:
        yield f"{verb}: {relative(file.path, os.getcwd())}, {short_size(file.bytes)}"
    total = short_size(sum(file.bytes for file in files))
    rest = "" if kept is None else f"; {counted(kept, 'image')} needed"
    yield f"{counted(len(files), 'image')} {verb}, {total}{rest}"
    if undo:
        yield f"`imgtool chain collect {shell(undo)}` brings them back, --purge deletes them"


def _listed(found: Sequence[Quarantined]) -> Iterator[str]:
    from imgtool.cli.render import counted, date, short_size
    from imgtool.image.names import printable

    if not found:
        yield "nothing is put away"
    for one in found:
        what = f"{counted(len(one.files), 'image')}, {short_size(one.bytes)}"
        yield f"{printable(one.id)}  {date(int(one.made))}  {what}"
