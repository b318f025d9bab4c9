"""`imgtool vm change` and `vm eject`."""

from __future__ import annotations

import click

from imgtool.cli.context import Context, output_option, pass_context
from imgtool.cli.options import file_argument, force_option, format_option
from imgtool.cli.vm import name_argument

drive_option = click.option("--drive", metavar="ID", help="The drive, such as cdrom or fda.  [default: the only one]")


@click.command(
    epilog="\b\nExamples:\n  imgtool vm change web disc2.iso\n  imgtool vm change web floppy.img --drive fda"
)
@name_argument
@file_argument("file")
@drive_option
@format_option("The format of FILE; without it, its header decides.")
@force_option("Take out even what the guest has locked, and put in what is in use or in doubt.")
@output_option()
@pass_context
def change(context: Context, /, name: str, file: str, drive: str | None, format_: str | None, force: bool) -> None:
    """Put FILE into the CD-ROM or floppy drive of NAME, in place of what is in it."""
    from imgtool.cli.output import emit
    from imgtool.image.names import absolute, printable
    from imgtool.machine import media
    from imgtool.machine.runtime import find

    changed = media.change(*find(name), absolute(file), drive=drive, format=format_, force=force)
    emit(context, changed, [f"{name}: {changed.drive}: {printable(str(changed.file))}"])


@click.command(epilog="\b\nExample:\n  imgtool vm eject web")
@name_argument
@drive_option
@force_option("Take out even what the guest has locked.")
@output_option()
@pass_context
def eject(context: Context, /, name: str, drive: str | None, force: bool) -> None:
    """Empty the CD-ROM or floppy drive of NAME."""
    from imgtool.cli.output import emit
    from imgtool.machine import media
    from imgtool.machine.runtime import find

    changed = media.eject(*find(name), drive=drive, force=force)
    emit(context, changed, [f"{name}: {changed.drive}: empty"])
