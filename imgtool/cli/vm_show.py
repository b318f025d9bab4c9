"""`imgtool vm list` and `vm show`: what VMs there are, and what one is and has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from imgtool.cli.context import Context, output_option, pass_context
from imgtool.cli.vm import name_argument

if TYPE_CHECKING:
    from imgtool.machine.control import Status


@click.command("list", epilog="\b\nExamples:\n  imgtool vm list\n  imgtool vm list --output json")
@output_option()
@pass_context
def list_(context: Context, /) -> None:
    """List running VMs, including those of other terminals."""
    from imgtool.cli.output import emit, warn
    from imgtool.machine.control import status
    from imgtool.machine.runtime import not_understood, unknown_vms, vms

    found = [status(one, state) for one, state in vms()]
    for one in unknown_vms():
        error = not_understood(one)
        warn(context, f"{error.message}; {error.hint}")
    emit(context, found, _table(found))


def _table(found: list[Status]) -> Iterator[str]:
    if not found:
        yield "no VMs"
        return
    width = max(len(one.name) for one in found)
    for one in found:
        yield f"{one.name:{width}}  {one.status:11}  {_summary(one)}".rstrip()


def _summary(one: Status) -> str:
    from imgtool.image.names import printable
    from imgtool.sizes import format_size

    parts = [f"pid {one.pid}"] if one.pid else []
    if one.cpus is not None and one.memory is not None:
        parts += [f"{one.cpus} CPU{'s' if one.cpus > 1 else ''}", format_size(one.memory), str(one.accelerator)]
    parts += [printable(drive.file) for drive in one.drives[:1] if drive.file]
    parts += [f"{file.code}: {printable(file.path)}" for file in one.lost]
    return ", ".join(parts)


@click.command(epilog="\b\nExamples:\n  imgtool vm show web\n  imgtool vm show web --output json")
@name_argument
@output_option()
@pass_context
def show(context: Context, /, name: str) -> None:
    """Show the VM NAME: its state, its parts, its files, the command it was started with.

    A disk that was deleted, replaced or moved while the VM has it open is told, with the command that saves it.
    """
    from imgtool.cli.output import emit
    from imgtool.machine.control import status
    from imgtool.machine.runtime import find

    one, state = find(name)
    found = status(one, state)
    emit(context, found, _description(found))


def _description(one: Status) -> Iterator[str]:
    import datetime

    from imgtool.cli.render import shell
    from imgtool.image.names import printable
    from imgtool.sizes import format_size

    yield f"name       {one.name}"
    yield f"status     {one.status}"
    yield f"pid        {one.pid}"
    yield f"started    {datetime.datetime.fromtimestamp(one.created).isoformat(' ', 'seconds')}"
    if one.cpus is not None and one.memory is not None:
        yield f"cpus       {one.cpus} ({one.accelerator})"
        yield f"memory     {format_size(one.memory)}"
    for drive in one.drives:
        how = ", read-only" if drive.read_only else ", writes are thrown away" if drive.ephemeral else ""
        yield f"drive      {drive.device}: {printable(drive.file or 'empty')} ({drive.format}{how})"
    for file in one.lost:
        yield f"{file.severity:11}{file.message}"
        yield f"hint       {file.hint}"
    if one.display:
        yield f"vnc        {one.display}"
    if one.password_file:
        yield f"password   in {printable(one.password_file)}"
    yield f"directory  {one.directory}"
    yield f"command    {shell(one.command)}"
