"""`imgtool snapshot -l|-c|-a|-d IMAGE`"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from imgtool.cli.context import Context, dry_run_option, output_option, pass_context, quiet_option
from imgtool.cli.images import (
    Opened,
    check_formats,
    explained,
    open_image,
    qemu_img,
    refuse_with_children,
    say,
    snapshot_known,
)
from imgtool.cli.options import (
    SNAPSHOT,
    file_argument,
    force_option,
    force_share_option,
    format_option,
    image_opts_option,
    object_option,
)
from imgtool.cli.output import emit, warn
from imgtool.cli.render import counted
from imgtool.cli.requests import OnCopy, header_of, settle
from imgtool.errors import RefusedError, UsageError
from imgtool.image.header import Qcow2Details
from imgtool.image.names import pasted, printable
from imgtool.image.qapi import SnapshotInfo
from imgtool.image.qapi_json import to_builtins

if TYPE_CHECKING:
    from typing import Literal

    from imgtool.qemu.results import Changed

Snapshots = list[SnapshotInfo]
"""The document of `snapshot -l --output json`."""


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool snapshot -l disk.qcow2\n"
    "  imgtool snapshot -c before-upgrade disk.qcow2\n"
    "  imgtool snapshot -a before-upgrade disk.qcow2\n"
    "  imgtool snapshot -d before-upgrade disk.qcow2"
)
@file_argument()
@click.option("-l", "--list", "list_", is_flag=True, help="List the snapshots (the default action).")
@click.option("-c", "--create", metavar="NAME", help="Save the disk's current state under this name.")
@click.option(
    "-a",
    "--apply",
    type=SNAPSHOT,
    metavar="SNAPSHOT",
    help="Revert the disk to this snapshot; its current state is lost.",
)
@click.option("-d", "--delete", type=SNAPSHOT, metavar="SNAPSHOT", help="Delete this snapshot.")
@format_option()
@force_share_option("List the snapshots even while a virtual machine writes the image. Always on.")
@image_opts_option
@object_option
@force_option("With -a: apply even if other images stand on it. With -c: allow a second snapshot of the same name.")
@quiet_option
@dry_run_option
@output_option()
@pass_context
def snapshot(
    context: Context,
    image: str,
    list_: bool,
    create: str | None,
    apply: str | None,
    delete: str | None,
    format_: str | None,
    force_share: bool,
    image_opts: bool,
    objects: tuple[str, ...],
    force: bool,
    dry_run: bool,
) -> None:
    """List, create, apply or delete the snapshots stored inside a qcow2. A SNAPSHOT is given by name or ID."""
    asked: list[tuple[Literal["create", "apply", "delete"], str]] = []
    if create is not None:
        asked.append(("create", create))
    if apply is not None:
        asked.append(("apply", apply))
    if delete is not None:
        asked.append(("delete", delete))
    if len(asked) + list_ > 1:
        raise UsageError("-l, -c, -a and -d exclude each other", hint="one of them at a time")
    if asked:
        settle(image, image_opts=image_opts, dry_run=dry_run)
    opened = open_image(image, format=format_, image_opts=image_opts, opens_parents=bool(asked))
    if not asked:
        _list(context, opened, format_, objects)
        return
    verb, name = asked[0]
    if verb == "create":
        check_formats(context, [format_])
        _refuse_without_snapshots(opened)
    _check(opened, verb, name, force)
    if verb == "delete":
        name = _deletable(opened, name)
    program = qemu_img(context)
    lost = _lost(opened, name) if verb == "apply" else None
    change = OnCopy(opened, same_content=verb != "apply")
    if dry_run:
        from imgtool.qemu import img_argv

        argv = img_argv.snapshot(program.program, opened.source, verb, name, format=opened.format, objects=objects)
        change.show_plan(context, argv, notes=[] if lost is None else [lost])
        return
    if lost is not None:
        warn(context, lost)
    methods = {
        "create": program.snapshot_create,
        "apply": program.snapshot_apply,
        "delete": program.snapshot_delete,
    }
    with explained(context, formats=[format_]):
        changed = change.run(
            program, lambda source: methods[verb](source, name, format=opened.format, objects=objects)
        )
    say(context, to_builtins(changed), _changed(opened, verb, name, changed))


def _list(context: Context, opened: Opened, format_: str | None, objects: tuple[str, ...]) -> None:
    with explained(context, formats=[format_]):
        found = qemu_img(context).snapshot_list(opened.source, format=opened.format, objects=objects)

    def lines() -> Iterator[str]:
        from imgtool.cli.describe import snapshot_table

        if found:
            yield from snapshot_table(found)
        else:
            yield f"{opened.name} has no snapshots"

    emit(context, to_builtins(found), lines())


def _refuse_without_snapshots(opened: Opened) -> None:
    """RefusedError when QEMU can keep no snapshot in the image: it is no qcow2, or its data lies in another file."""
    header = header_of(opened)
    if header is None or opened.path is None:
        return
    instead = f"`imgtool overlay new {pasted(opened.path)}` keeps the disk as it is: what comes goes into the overlay"
    if opened.format != "qcow2":
        raise RefusedError(
            f"QEMU keeps snapshots in qcow2 images only, and {opened.place} is {opened.format}",
            hint=f"`imgtool convert -O qcow2` makes one; {instead}",
            path=opened.path,
        )
    if isinstance(header.details, Qcow2Details) and header.details.external_data:
        raise RefusedError(
            f"{opened.place} keeps its data in another file, where QEMU can keep no snapshots",
            hint=instead,
            path=opened.path,
        )


def _check(opened: Opened, verb: str, name: str, force: bool) -> None:
    if verb != "create":
        snapshot_known(opened, name)
    elif not force and opened.top is not None and any(one.name == name for one in opened.top.snapshots):
        raise RefusedError(
            f"{opened.place} has a snapshot {printable(name)!r} already",
            path=opened.path,
            hint="choose another name, or delete it first: imgtool snapshot -d …; --force makes a second one",
        )
    if verb == "apply":
        refuse_with_children(opened, force=force, doing="applying a snapshot")


def _lost(opened: Opened, wanted: str) -> str | None:
    """What applying a snapshot loses."""
    from imgtool.operations.guards import lost_by_apply

    if opened.top is None or opened.path is None or opened.format != "qcow2":
        return None
    identity = next((one.id for one in opened.top.snapshots if wanted in (one.id, one.name)), wanted)
    return lost_by_apply(opened.path, identity)


def _deletable(opened: Opened, wanted: str) -> str:
    """The name to delete `wanted` by: qemu-img deletes by name only, and the first that has it."""
    known = opened.top.snapshots if opened.top is not None else ()
    if not known or any(one.name == wanted for one in known):
        return wanted
    name = next(one.name for one in known if one.id == wanted)
    if sum(one.name == name for one in known) > 1:
        raise RefusedError(
            f"{opened.place} has several snapshots {printable(name)!r}, and qemu-img deletes by name",
            path=opened.path,
            hint=f"-d {printable(name)} deletes the first of them",
        )
    return name


def _changed(opened: Opened, verb: str, name: str, changed: Changed) -> Iterator[str]:
    if verb == "apply":
        yield f"{opened.name}: set back to snapshot {printable(name)}"
        return
    left = counted(len(changed.after.snapshots or ()), "snapshot")
    yield f"{opened.name}: snapshot {printable(name)} {'made' if verb == 'create' else 'deleted'}, {left} now"
