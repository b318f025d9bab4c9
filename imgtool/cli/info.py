"""`imgtool info IMAGE…`"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from imgtool.cli.context import Context, output_option, pass_context
from imgtool.cli.options import (
    file_argument,
    force_share_option,
    format_option,
    image_opts_option,
    object_option,
    timeout_option,
)
from imgtool.cli.output import emit, report, warn
from imgtool.errors import ImgtoolError, UsageError

if TYPE_CHECKING:
    from imgtool.cli.info_answer import Answer

PROBLEMS = 3


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool info disk.qcow2\n"
    "  imgtool info --backing-chain overlay.qcow2\n"
    "  imgtool info *.qcow2 --output json | jq '.[].\"virtual-size\"'\n"
    "  imgtool info --image-opts driver=raw,file.driver=nbd,file.host=localhost"
)
@file_argument("images", metavar="FILE…", nargs=-1)
@format_option()
@click.option("--backing-chain", is_flag=True, help="Show the image and everything it stands on, the base last.")
@force_share_option(
    "Read it even while a virtual machine writes it. Always on; accepted for compatibility with qemu-img."
)
@image_opts_option
@object_option
@timeout_option(default="60")
@output_option()
@pass_context
def info(
    context: Context,
    images: tuple[str, ...],
    format_: str | None,
    backing_chain: bool,
    force_share: bool,
    image_opts: bool,
    objects: tuple[str, ...],
    timeout: float | None,
) -> int:
    """Show what an image is: its format, its sizes, its backing file, its snapshots.

    Only the image itself is opened. One image gives one JSON object, several give a list of them; --backing-chain
    gives one list per chain. Images of running virtual machines can be read. With --backing-chain, a missing parent
    is reported and the exit status is 3.
    """
    if image_opts and format_ is not None:
        raise UsageError("-f and --image-opts exclude each other", hint="write driver=FORMAT among the options")
    if image_opts and backing_chain:
        raise UsageError("--backing-chain is not for --image-opts", hint="ask about one image at a time")
    from imgtool.cli import info_answer

    request = info_answer.Request(format_, image_opts, True, backing_chain, objects, holders=not context.json)
    program = info_answer.reader(context, timeout)
    chains: list[list[Answer]] = []
    failed: list[ImgtoolError] = []
    for name in images:
        try:
            chains.append(
                info_answer.chain_answers(program, name, request)
                if backing_chain
                else [info_answer.answer(program, name, request)]
            )
        except ImgtoolError as error:
            better = info_answer.explained(context, error, name, request)
            if len(images) == 1:
                raise better from None
            failed.append(better)
    if chains:
        _emit(context, chains, len(images), backing_chain)
    for one_error in failed:
        report(context, one_error)
    findings = [finding for chain in chains for one in chain for finding in one.findings]
    if context.json:
        for finding in findings:
            warn(context, finding)
    if failed:
        return 1
    return PROBLEMS if findings else 0


def _emit(context: Context, chains: list[list[Answer]], asked: int, backing_chain: bool) -> None:
    from imgtool.image.qapi_json import to_builtins

    values = [[to_builtins(one.info) for one in chain] for chain in chains]
    document = values if backing_chain else [chain[0] for chain in values]

    def lines() -> Iterator[str]:
        from imgtool.cli.describe import describe

        first = True
        for chain in chains:
            for one in chain:
                if not first:
                    yield ""
                first = False
                yield from describe(one)

    emit(context, document[0] if asked == 1 else document, () if context.json else lines())
