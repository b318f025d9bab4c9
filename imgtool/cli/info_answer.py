"""What `imgtool info` answers: each image looked at natively, then asked about."""

from __future__ import annotations

import itertools
import os
import stat
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from imgtool.cli.context import Context
from imgtool.errors import CommandError, ImageFormatError, ImageNotFoundError, ImgtoolError, UsageError
from imgtool.image.header import FORMATS, Header, read_header
from imgtool.image.names import absolute, printable
from imgtool.qemu.img_argv import ImageOpts
from imgtool.qemu.img_info import Asking
from imgtool.qemu.inputs import check_input

if TYPE_CHECKING:
    from imgtool.image.qapi import ImageInfo


class Request(Struct, frozen=True):
    """What `info` is asked for, beside the images."""

    format: str | None = None
    image_opts: bool = False
    force_share: bool = True
    backing_chain: bool = False
    objects: tuple[str, ...] = ()
    holders: bool = True
    """Whether to find out who has the images open."""


class Answer(Struct, frozen=True):
    name: str
    """What people see."""
    info: ImageInfo
    in_use: str | None = None
    findings: tuple[str, ...] = ()


def reader(context: Context, timeout: float | None) -> Asking:
    """qemu-img for `info` only."""
    return Asking(context.programs, **context.limits(timeout))


def answer(program: Asking, name: str, request: Request) -> Answer:
    """What is known of the image `name`; ImageError when it is none."""
    if request.image_opts:
        found = program.info(ImageOpts(name), force_share=request.force_share, objects=request.objects)
        return Answer(printable(name), found)
    path = absolute(name)
    fd = open_readable(path)
    try:
        header = header_of(fd, path, request.format)
        in_use = _in_use(fd, path) if request.holders else None
    finally:
        os.close(fd)
    format = request.format or (header.format if header else None)
    found = program.info(path, format=format, force_share=request.force_share, objects=request.objects)
    return Answer(printable(name), restored(found, header, path) if header else found, in_use)


def chain_answers(program: Asking, name: str, request: Request) -> list[Answer]:
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
            answers[-1] = replace(answers[-1], findings=(*answers[-1].findings, *problems))
            break
        try:
            one = answer(program, image.path, replace(request, format=said or image.format, objects=()))
        except ImgtoolError as error:
            answers[-1] = replace(answers[-1], findings=(*answers[-1].findings, _located(image.path, error.message)))
            break
        answers.append(one)
    ring = [found.message for found in chain[-1].findings if found.code in ("cycle", "self-reference")]
    if ring:
        answers[-1] = replace(answers[-1], findings=(*answers[-1].findings, *ring))
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
    try:
        end = os.lseek(fd, 0, os.SEEK_END)
    except OSError as error:  # a file of /proc, or of a file system that fails
        raise ImageFormatError(f"the image cannot be read: {error.strerror}", path=path) from error
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
    from imgtool.image.reference import parse

    full = parse(header.backing, directory=os.path.dirname(path)).path or info.full_backing_filename
    return replace(info, backing_filename=os.fsdecode(header.backing), full_backing_filename=full)


def _in_use(fd: int, path: str) -> str | None:
    from imgtool.image.locks import lock_state
    from imgtool.image.users import users_of

    state = lock_state(fd)
    if state is None:
        return None
    return f"by {users_of(path).names or 'another process'}, for {'writing' if state == 'write' else 'reading'}"


def explained(context: Context, error: ImgtoolError, name: str, request: Request) -> ImgtoolError:
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
