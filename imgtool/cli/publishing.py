"""What the commands share that send an image to a registry: `push` and `export containerdisk`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import click

from imgtool.cli.context import Context
from imgtool.errors import UsageError

if TYPE_CHECKING:
    from imgtool.operations.plan import Plan
    from imgtool.qemu.qemu_img import QemuImg

Made = TypeVar("Made", covariant=True)


class Request(Protocol[Made]):
    """An image that may be sent."""

    @property
    def notes(self) -> Sequence[str]: ...

    def plan(self, program: str) -> Plan: ...

    def make(self, qemu_img: QemuImg, *, progress: Callable[[float], None] | None = None) -> Made: ...


annotation_option = click.option(
    "--annotation",
    "annotations",
    metavar="KEY=VALUE",
    multiple=True,
    help="Add this to the manifest. May be repeated.",
)


def annotation_map(given: tuple[str, ...]) -> dict[str, str]:
    """`KEY=VALUE` words as a mapping."""
    found = {}
    for word in given:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UsageError(f"{word!r} is not an annotation", hint="KEY=VALUE")
        found[key] = value
    return found


def publish(
    context: Context, request: Request[Made], what: str, lines: Callable[[Made], Iterable[str]], *, dry_run: bool
) -> None:
    """Shows the plan, or does it and answers with `lines` of what was made; `what` names the progress bar."""
    from imgtool.cli.images import qemu_img
    from imgtool.cli.output import emit, remark
    from imgtool.cli.progress import progress
    from imgtool.cli.requests import show_plan

    if dry_run:
        show_plan(context, request)
        return
    for note in request.notes:
        remark(context, note)
    with progress(context, what) as show:
        made = request.make(qemu_img(context), progress=show)
    emit(context, made, lines(made))
