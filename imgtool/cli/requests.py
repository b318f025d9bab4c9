"""What the commands share that ask `imgtool.operations` for a change: they look, then show the plan or do it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Protocol

from imgtool.cli.context import Context
from imgtool.cli.images import Opened, emit_command, explained, not_found, open_image, qemu_img, touched
from imgtool.cli.progress import progress
from imgtool.errors import ImageNotFoundError, RefusedError, UsageError
from imgtool.image.names import absolute, printable
from imgtool.image.qapi_json import to_builtins

if TYPE_CHECKING:
    from imgtool.image.header import Header
    from imgtool.operations.inplace import CopyRequest
    from imgtool.operations.plan import Plan
    from imgtool.qemu.img_argv import Source
    from imgtool.qemu.qemu_img import QemuImg
    from imgtool.qemu.results import Changed


class Request(Protocol):
    """A change that may be made."""

    def plan(self, program: str) -> Plan: ...


@contextmanager
def looking(name: str) -> Iterator[None]:
    """Inside the `with` block, an image that is missing is reported under the name that the user gave."""
    try:
        yield
    except ImageNotFoundError as error:
        if error.path == absolute(name):
            raise not_found(error, name) from error
        raise


def show_plan(context: Context, request: Request) -> None:
    from imgtool.cli.plan import emit_plan

    emit_plan(context, request.plan(context.programs.find("qemu-img")))


def said(context: Context, value: object, lines: Iterable[str], notes: Sequence[str] = ()) -> None:
    """The answer, and what is worth a remark."""
    from imgtool.cli.images import say
    from imgtool.cli.output import remark

    for note in notes:
        remark(context, note)
    say(context, value, lines)


def settle(opened_name: str, *, image_opts: bool, dry_run: bool, again: str | None = None) -> None:
    """Finishes interrupted changes, before an image that is to be changed is looked at."""
    if not image_opts and not dry_run:
        from imgtool.operations.inplace import settle

        settle(absolute(opened_name), again=again)


def header_of(opened: Opened) -> Header | None:
    """What the image's own header says; None for one that is given by its options."""
    if opened.top is None:
        return None
    from imgtool.operations.around import header_of

    return header_of(opened.top)


class OnCopy:
    """A verb of qemu-img that may be run on a copy of the image, which then takes its place; in place where the image
    is given by its options, or `in_place` says so."""

    def __init__(self, opened: Opened, *, same_content: bool = True, in_place: bool = False) -> None:
        """Raises as `CopyRequest` does."""
        self._source = opened.source
        self._request: CopyRequest | None = None
        if opened.path is not None and not in_place:
            from imgtool.operations.inplace import CopyRequest

            self._request = CopyRequest(opened.path, format=opened.format, same_content=same_content)

    def show_plan(
        self, context: Context, argv: Sequence[str], *, reads: Iterable[Source] = (), notes: Iterable[str] = ()
    ) -> None:
        """The answer of `--dry-run`; `argv` is that of the verb on the image itself, which `reads` other images."""
        from msgspec.structs import replace

        from imgtool.cli.images import touched
        from imgtool.cli.plan import emit_plan
        from imgtool.operations.plan import Plan

        if self._request is None:
            plan = Plan(commands=(tuple(argv),), images=(touched(self._source, "write"),))
        else:
            plan = self._request.plan(argv)
        read = (touched(source, "read") for source in reads)
        emit_plan(context, replace(plan, images=(*plan.images, *read), notes=(*notes, *plan.notes)))

    def run(self, program: QemuImg, verb: Callable[[Any], Changed]) -> Changed:
        """What `verb` answers."""
        return verb(self._source) if self._request is None else self._request.make(program, verb)


_DOING = {"commit": "committing", "rebase": "rebasing"}


def change_unseen(
    context: Context,
    verb: Literal["commit", "rebase"],
    image: str,
    formats: Sequence[str | None],
    arguments: dict[str, Any],
    *,
    told: str,
    force: bool,
    dry_run: bool,
) -> None:
    """Has qemu-img change an image that is given by its options, and says `told` of it: imgtool can neither look
    at it nor work on a copy. `formats` are those named on the command line, the image's own first."""
    opened = open_image(image, format=formats[0], image_opts=True)
    if not force:
        raise RefusedError(
            f"imgtool cannot look at {printable(image)}, an image given by its options: what stands on it is not "
            f"known, and {_DOING[verb]} it would be done in place",
            hint="--force lets qemu-img do it",
        )
    program = qemu_img(context)
    if dry_run:
        from imgtool.qemu import img_argv

        argv = getattr(img_argv, verb)(program.program, opened.source, **arguments)
        emit_command(context, argv, [touched(opened.source, "write")])
        return
    with explained(context, formats=formats), progress(context, verb) as show:
        changed = getattr(program, verb)(opened.source, progress=show, **arguments)
    said(context, to_builtins(changed), [f"{opened.name}: {told}"])


def only_with_image_opts(**given: object) -> None:
    """UsageError for options that are of use only for an image given by its options."""
    for name, value in given.items():
        if value:
            raise UsageError(
                f"--{name.replace('_', '-')} is of use only with --image-opts",
                hint="an image given by its name is copied, and the copy changed: nobody else writes it",
            )
