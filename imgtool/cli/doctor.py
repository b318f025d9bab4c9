"""`imgtool doctor`: what this host has of all that a machine may want."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from imgtool.cli.context import Context, output_option, pass_context
from imgtool.cli.options import Word

if TYPE_CHECKING:
    from imgtool.machine.doctor import Check

PROBLEMS = 3
"""The exit status when something that was asked for is missing."""


@click.command(
    epilog="\b\nExamples:\n  imgtool doctor\n  imgtool doctor --need kvm,nat || echo 'this host will not do'"
)
@click.option(
    "--need",
    "needs",
    type=Word("needs"),
    multiple=True,
    metavar="NAME,…",
    help="Exit with 3 unless all of these are available.",
)
@output_option()
@pass_context
def doctor(context: Context, /, needs: tuple[str, ...]) -> int:
    """Show what this host has for virtual machines, and how to get what it lacks.

    Accelerators are tested by running guest code under them. Nothing is changed. Without --need the exit status is 0
    whatever is missing.
    """
    import sys

    from imgtool.cli.context import want_color
    from imgtool.cli.output import emit
    from imgtool.machine.doctor import NAMES, examine, needed

    wanted = [name.strip() for text in needs for name in text.split(",") if name.strip()]
    _check_names(wanted, NAMES)
    found = examine(context.programs)
    shown = [check for check in found if not wanted or check.name in wanted]
    emit(context, shown, _lines(shown, color=want_color(context, sys.stdout)))
    return PROBLEMS if needed(found, wanted) else 0


def _check_names(wanted: Sequence[str], names: Sequence[str]) -> None:
    from imgtool.errors import UsageError
    from imgtool.image.names import printable

    for name in wanted:
        if name not in names:
            raise UsageError(f"--need knows no {printable(name)!r}", hint=f"it knows: {', '.join(names)}")


def _lines(checks: Sequence[Check], *, color: bool) -> Iterator[str]:
    from imgtool.image.names import printable_lines

    width = max((len(check.name) for check in checks), default=0)
    for check in checks:
        mark = "ok     " if check.ok else "missing"
        if color:
            mark = click.style(mark, fg="green" if check.ok else "yellow")
        yield f"{mark}  {check.name:{width}}  {printable_lines(check.detail)}"
        if check.fix:
            yield f"{'':9}{'':{width}}  fix: {printable_lines(check.fix)}"
