"""`imgtool info IMAGE…`"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

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
from imgtool.errors import CommandError, ImageFormatError, ImageNotFoundError, ImgtoolError, UsageError
from imgtool.image.header import FORMATS, Header, read_header
from imgtool.image.names import absolute, printable
from imgtool.image.qapi import ImageInfo, to_builtins
from imgtool.qemu.img_argv import ImageOpts
from imgtool.qemu.img_base import QUICK_LIMITS
from imgtool.qemu.img_read import Reading
from imgtool.qemu.inputs import check_input

PROBLEMS = 3


class Request(NamedTuple):
    """What `info` is asked for, beside the images."""

    format: str | None = None
    image_opts: bool = False
    force_share: bool = True
    backing_chain: bool = False
    objects: tuple[str, ...] = ()


class Answer(NamedTuple):
    name: str
    """What people see."""
    info: ImageInfo
    in_use: str | None = None
    findings: tuple[str, ...] = ()


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool info disk.qcow2\n"
    "  imgtool info --backing-chain overlay.qcow2\n"
    "  imgtool info *.qcow2 --output json | jq '.[].\"virtual-size\"'\n"
    "  imgtool info --image-opts driver=raw,file.driver=nbd,file.host=localhost"
)
@file_argument("images", metavar="FILE…", nargs=-1)
@format_option()
@click.option("--backing-chain", is_flag=True, help="The image and all it stands on, the base last.")
@force_share_option("Read it even while a virtual machine writes it: done anyway, taken for qemu-img's sake.")
@image_opts_option
@object_option
@timeout_option
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
    """Say what an image is: its format, its sizes, its backing file, its snapshots.

    Nothing but the image itself is opened. One image answers with one JSON object, several with a list of them;
    --backing-chain with a list a chain. Images of running virtual machines can be asked about. With --backing-chain
    a parent that is missing is said, and the exit status is 3.
    """
    if image_opts and format_ is not None:
        raise UsageError("-f and --image-opts exclude each other", hint="write driver=FORMAT among the options")
    if image_opts and backing_chain:
        raise UsageError("--backing-chain is not for --image-opts", hint="ask about one image at a time")
    request = Request(format_, image_opts, True, backing_chain, objects)
    # not all of QemuImg: what the other verbs import costs as much as qemu-img takes to answer
    limits = QUICK_LIMITS if timeout is None else QUICK_LIMITS._replace(seconds=timeout)
    program = Reading(context.programs, limits=limits)
    chains: list[list[Answer]] = []
    failed: list[ImgtoolError] = []
    for name in images:
        try:
            chains.append(
                chain_answers(program, name, request) if backing_chain else [answer(program, name, request)]
            )
        except ImgtoolError as error:
            better = _explained(context, error, name, request)
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


def answer(program: Reading, name: str, request: Request) -> Answer:
    """What is known of the image `name`; ImageError when it is none."""
    if request.image_opts:
        found = program.info(ImageOpts(name), force_share=request.force_share, objects=request.objects)
        return Answer(printable(name), found)
    path = absolute(name)
    fd = open_readable(path)
    try:
        header = header_of(fd, path, request.format)
        in_use = _in_use(fd, path)
    finally:
        os.close(fd)
    format = request.format or (header.format if header else None)
    found = program.info(path, format=format, force_share=request.force_share, objects=request.objects)
    return Answer(printable(name), restored(found, header, path) if header else found, in_use)


def chain_answers(program: Reading, name: str, request: Request) -> list[Answer]:
    """`answer` for each image of the chain, one at a time, so that what is wrong below hides nothing above."""
    from imgtool.chain.walk import walk

    answers = [answer(program, name, request)]
    path = absolute(name)
    chain = walk(path, format=request.format if request.format in FORMATS else None)
    for child, image in itertools.pairwise(chain):
        said = child.backing.format if child.backing else None
        problems = [_located(image.path, found.message) for found in image.findings if found.severity == "error"]
        if image.format is None:
            problems = problems or [f"{printable(image.path)} is no file here and was not looked at"]
            answers[-1] = answers[-1]._replace(findings=(*answers[-1].findings, *problems))
            break
        try:
            one = answer(program, image.path, request._replace(format=said or image.format, objects=()))
        except ImgtoolError as error:
            answers[-1] = answers[-1]._replace(findings=(*answers[-1].findings, _located(image.path, error.message)))
            break
        answers.append(one)
    ring = [found.message for found in chain[-1].findings if found.code in ("cycle", "self-reference")]
    if ring:
        answers[-1] = answers[-1]._replace(findings=(*answers[-1].findings, *ring))
    return answers


def _located(path: str, message: str) -> str:
    name = printable(path)
    return message if name in message else f"{name}: {message}"


def open_readable(path: str) -> int:
    """A descriptor of the regular file or block device at `path`; the error of `check_input` for anything else."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
            return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        pass
    check_input(path)
    raise ImageNotFoundError(f"{printable(path)} came and went while it was looked at", path=path)


def header_of(fd: int, path: str, format: str | None) -> Header | None:
    """The header of an image that is all there; None in a format that imgtool does not read.

    ImageFormatError when it is empty or cut off. With `format` an empty file is what the user says it is.
    """
    if format is not None and format not in FORMATS:
        return None
    end = os.lseek(fd, 0, os.SEEK_END)
    if end == 0 and format is None:
        raise ImageFormatError(
            "the file is empty: there is no image in it",
            hint="to take it for a raw disk of no bytes: -f raw",
            path=path,
        )
    try:
        header = read_header(fd, format=format, name=path)
    except ImageFormatError as error:
        error.path = path
        if error.hint is None:
            error.hint = (
                "the image is damaged, or was cut off when it was copied" if format is None else "leave out -f?"
            )
        raise
    details = header.details
    for what, attribute in (("L1 table", "l1_offset"), ("refcount table", "refcount_table_offset")):
        offset = getattr(details, attribute, 0)
        if offset >= end > 0 and offset:
            raise ImageFormatError(
                f"the image is cut off: it ends after {end} bytes, and its {what} is at {offset}",
                hint="copy it again, whole",
                path=path,
            )
    return header


def restored(info: ImageInfo, header: Header, path: str) -> ImageInfo:
    """`info` with the names of other files as they are in the header, where qemu-img's JSON lost bytes of them."""
    if header.backing is None or "\ufffd" not in (info.backing_filename or ""):
        return info
    from msgspec.structs import replace

    from imgtool.image.reference import parse

    full = parse(header.backing, directory=os.path.dirname(path)).path or info.full_backing_filename
    return replace(info, backing_filename=os.fsdecode(header.backing), full_backing_filename=full)


def _in_use(fd: int, path: str) -> str | None:
    from imgtool.image.locks import holders, lock_state

    state = lock_state(fd)
    if state is None:
        return None
    who = ", ".join(f"{printable(holder.program)} (pid {holder.pid})" for holder in holders(path))
    return f"by {who or 'another process'}, for {'writing' if state == 'write' else 'reading'}"


def _explained(context: Context, error: ImgtoolError, name: str, request: Request) -> ImgtoolError:
    """`error` with what else can be said about it."""
    from imgtool.cli.images import check_formats, not_found

    if isinstance(error, ImageNotFoundError):
        return not_found(error, name)
    if isinstance(error, CommandError):
        try:
            check_formats(context, [request.format])
        except UsageError as better:
            return better
        if error.hint is None:
            error.hint = "the image is damaged, was cut off when it was copied, or is in another format"
    return error
