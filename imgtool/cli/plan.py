"""`--dry-run`: showing a plan."""

from __future__ import annotations

from collections.abc import Iterator

from imgtool.cli.context import Context
from imgtool.cli.output import emit
from imgtool.operations.plan import Plan


def emit_plan(context: Context, plan: Plan) -> None:
    emit(context, plan, plan_lines(plan))


def plan_lines(plan: Plan) -> Iterator[str]:
    from imgtool.cli.render import shell, size
    from imgtool.image.names import printable

    for image in plan.images:
        to = "" if image.to is None else f" to {printable(image.to)}"
        amount = "" if image.bytes is None else f", {size(image.bytes)}"
        yield f"{image.action:<7} {printable(image.path)}{to}{amount}"
    for command in plan.commands:
        yield f"run     {shell(command)}"
    if plan.total is not None:
        yield f"total   {size(plan.total)}"
    for note in plan.notes:
        yield f"note    {note}"
    if not (plan.images or plan.commands or plan.notes):
        yield "nothing to do"
