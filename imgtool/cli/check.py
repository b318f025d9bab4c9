"""`imgtool check IMAGE`"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from imgtool.cli.context import Context, dry_run_option, output_option, pass_context, quiet_option
from imgtool.cli.images import Opened, emit_command, explained, open_image, qemu_img, refuse_with_children, touched
from imgtool.cli.options import (
    file_argument,
    force_option,
    force_share_option,
    format_option,
    image_opts_option,
    object_option,
    source_cache_option,
    timeout_option,
)
from imgtool.cli.output import emit
from imgtool.cli.render import bad, counted, doubtful, fields, good, shell, size
from imgtool.errors import ImgtoolError, UsageError
from imgtool.image.qapi import ImageCheck
from imgtool.image.qapi_json import to_builtins

if TYPE_CHECKING:
    from imgtool.qemu.results import CheckResult


class NotCheckedError(ImgtoolError):
    """A request that makes no sense. Not UsageError, whose exit status 2 says for this command: corrupt."""

    code = "usage"


class CheckCommand(click.Command):
    """Exits with qemu-img's own status: a wrong command line is 1, "could not check"."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            raise NotCheckedError(
                error.format_message(), hint="`imgtool check --help` shows how it is used"
            ) from error

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except UsageError as error:
            raise NotCheckedError(error.message, hint=error.hint, path=error.path) from error


@click.command(
    cls=CheckCommand,
    epilog="Exit status: 0 clean, 1 could not be checked, 2 corrupt, 3 only leaks, 63 the format has no check.\n\n"
    "\b\nExamples:\n"
    "  imgtool check disk.qcow2\n"
    "  imgtool check -r leaks disk.qcow2\n"
    "  imgtool check disk.qcow2 --output json | jq .leaks",
)
@file_argument()
@format_option()
@click.option(
    "-r",
    "--repair",
    type=click.Choice(["leaks", "all"]),
    help="Reclaim leaked space, or repair everything, which may guess wrong: make a copy first.",
)
@source_cache_option
@force_share_option("Read it even while a machine writes it; problems found may be transient.")
@image_opts_option
@object_option
@force_option("With -r all: repair it even if other images stand on it.")
@timeout_option(default="none")
@quiet_option
@dry_run_option
@output_option()
@pass_context
def check(
    context: Context,
    image: str,
    format_: str | None,
    repair: str | None,
    source_cache: str | None,
    force_share: bool,
    image_opts: bool,
    objects: tuple[str, ...],
    force: bool,
    timeout: float | None,
    dry_run: bool,
) -> int:
    """Check an image's internal structure: clusters used twice or leaked, tables that contradict each other.

    The content of the disk is not checked. Damage is reported together with the command that repairs it.
    """
    opened = open_image(image, format=format_, image_opts=image_opts)
    if repair == "all":
        refuse_with_children(opened, force=force, doing="a repair")
    program = qemu_img(context, timeout)
    arguments: dict[str, Any] = {
        "format": opened.format,
        "repair": repair,
        "source_cache": source_cache,
        "force_share": force_share,
        "objects": objects,
    }
    if dry_run:
        from imgtool.qemu import img_argv

        argv = img_argv.check(program.program, opened.source, **arguments)
        emit_command(context, argv, [touched(opened.source, "write" if repair else "read")])
        return 0
    with explained(context, formats=[format_]):
        result = program.check(opened.source, **arguments)
    if context.json:
        emit(context, _document(result), ())
    elif not context.quiet:
        emit(context, None, _lines(opened, image, result))
    return result.exit_status


def _document(result: CheckResult) -> object:
    """qemu-img's own report; for a format without a check, which has none, what there is to say."""
    if result.report is not None:
        return to_builtins(result.report)
    return {"filename": result.path, "status": result.status}


def _lines(opened: Opened, name: str, result: CheckResult) -> Iterator[str]:
    report = result.report
    if report is None:
        yield f"{opened.name}: {opened.format or 'this format'} images have nothing that could be checked"
        return
    yield from _fixed(report)
    if result.status == "clean":
        yield f"{opened.name}: {good('no errors found')}"
    else:
        yield f"{opened.name}: {'; '.join(_found(report))}"
        yield from _advice(opened, name, report)
    yield from fields(_numbers(report))


def _fixed(report: ImageCheck) -> Iterator[str]:
    for count, noun in ((report.leaks_fixed, "leak"), (report.corruptions_fixed, "error")):
        if count:
            yield f"repaired: {counted(count, noun)}"


def _found(report: ImageCheck) -> Iterator[str]:
    if report.corruptions:
        yield bad(f"{counted(report.corruptions, 'error')}, the data may be damaged")
    if report.leaks:
        yield doubtful(f"{counted(report.leaks, 'leaked cluster')}, space lost but no data harmed")
    if report.check_errors:
        yield bad(f"{counted(report.check_errors, 'place')} could not be checked")


def _advice(opened: Opened, name: str, report: ImageCheck) -> Iterator[str]:
    given = ["--image-opts"] if opened.path is None else ["-f", opened.format or ""]
    if name.startswith("-"):
        name = f"./{name}"
    if report.corruptions:
        if opened.path is not None:
            yield f"copy it first: {shell(['cp', '--sparse=always', name, f'{name}.damaged'])}"
        yield f"then repair:   {shell(['imgtool', 'check', '-r', 'all', *given, name])}"
    elif report.leaks:
        yield f"give the space back: {shell(['imgtool', 'check', '-r', 'leaks', *given, name])}"


def _numbers(report: ImageCheck) -> Iterator[tuple[str, str]]:
    total, used = report.total_clusters, report.allocated_clusters
    if total is not None:
        used = used or 0
        share = f" ({100 * used / total:.2f}%)" if total else ""
        yield "allocated", f"{used} of {counted(total, 'cluster')}{share}"
        if used:
            yield "fragmented", _share(report.fragmented_clusters or 0, used)
            yield "compressed", _share(report.compressed_clusters or 0, used)
    if report.image_end_offset is not None:
        yield "image end", size(report.image_end_offset)


def _share(count: int, of: int) -> str:
    return f"{count} ({100 * count / of:.2f}%)" if count else "none"
