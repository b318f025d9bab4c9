"""What all of QemuImg's methods share: running qemu-img on images, and what its failure means."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from imgtool.errors import CommandError, CommandTimeout, ImgtoolError, UsageError
from imgtool.image.names import absolute, printable, printable_lines
from imgtool.image.qapi import BlockChildInfo, BlockNodeInfo, FormatSpecific, ImageInfo, VmdkInfo, decode
from imgtool.qemu import img_argv
from imgtool.qemu.img_argv import ImageOpts, Source
from imgtool.qemu.inputs import check_input, in_use
from imgtool.qemu.process import NO_LIMITS, Completed, Limits, failure
from imgtool.qemu.programs import Programs
from imgtool.qemu.progress import ProgressParser

QUICK_LIMITS = Limits(seconds=60, cpu_seconds=30, address_space=2 << 30)
"""For verbs that look at metadata only: what keeps a hostile image from holding imgtool up."""

Progress = Callable[[float], None]
"""Called with a percentage, 0 to 100, each time qemu-img reports one."""


class ImgBase:
    """Runs qemu-img. `limits` bound the quick verbs that change nothing; `long_limits` the other ones that work
    on no image in place. A verb that changes an image in place is never stopped half-way."""

    def __init__(
        self,
        programs: Programs | None = None,
        *,
        limits: Limits = QUICK_LIMITS,
        long_limits: Limits = NO_LIMITS,
    ) -> None:
        self.programs = programs or Programs()
        self.limits = limits
        self.long_limits = long_limits

    @property
    def program(self) -> str:
        """The path of qemu-img. ProgramError when there is none."""
        return self.programs.find("qemu-img")

    def _read(
        self,
        argv: Sequence[str],
        images: Sequence[Source],
        *,
        force_share: bool,
        limits: Limits,
        progress: Progress | None = None,
        answers: Collection[int] = (0,),
    ) -> Completed:
        """Runs a verb that changes nothing; with `progress` stdout is what is left beside the percentages."""
        for image in images:
            if not isinstance(image, ImageOpts):
                check_input(absolute(image))
        try:
            done = self._run(argv, limits, progress)
        except CommandTimeout as error:
            error.path = place_of(images[0]) if images else None
            raise
        if done.status not in answers:
            raise _read_failure(done, images, force_share)
        return done

    def _change(
        self,
        argv: Sequence[str],
        image: Source,
        *,
        others: Sequence[Source] = (),
        dirty: bool = False,
        progress: Progress | None = None,
    ) -> Completed:
        """Runs a verb that writes to `image` and reads `others`. qemu-img has exited with 0 after failed writes, so
        whatever it says on stderr is a failure too.

        Not so what QEMU's block layer says while it mends an image that was not closed cleanly (`dirty`), as it does
        with every such image that it opens for writing: those lines do not begin with the program's name.
        """
        for other in others:
            if not isinstance(other, ImageOpts):
                check_input(absolute(other))
        if not isinstance(image, ImageOpts):
            check_input(absolute(image), write=True)
        done = self._run(argv, NO_LIMITS, progress)
        if done.status != 0 or _complaint(done, dirty):
            raise _change_failure(done, image)
        return done

    def _run(self, argv: Sequence[str], limits: Limits, progress: Progress | None) -> Completed:
        if any("\0" in word for word in argv):
            raise UsageError("no name and no option can hold a NUL byte")
        if progress is None:
            return self.programs.runner(argv, limits=limits)
        parser = ProgressParser()

        def take(piece: bytes) -> None:
            for percentage in parser.feed(piece):
                progress(percentage)

        done = self.programs.runner(argv, limits=limits, on_stdout=take)
        return done._replace(stdout=parser.text.encode())

    def _info(
        self, image: Source, format: str | None, objects: Sequence[str], *, force_share: bool = True
    ) -> ImageInfo:
        argv = img_argv.info(self.program, image, format=format, force_share=force_share, objects=objects)
        done = self._read(argv, [image], force_share=force_share, limits=self.limits)
        return named(decode(ImageInfo, done.stdout), image)


def place_of(image: Source) -> str:
    """What a result calls `image`: its absolute path, or its option string."""
    return image.text if isinstance(image, ImageOpts) else absolute(image)


def notes_of(done: Completed) -> str:
    """What a program that succeeded said on stderr."""
    return printable_lines(done.stderr.decode(errors="surrogateescape")).strip()


def named(info: ImageInfo, image: Source) -> ImageInfo:
    """`info` with the caller's path wherever qemu-img writes the image's own name, which it spells with U+FFFD when
    it is no UTF-8."""
    if isinstance(image, ImageOpts) or info.filename == absolute(image):
        return info
    renamed = _renamed(info, info.filename, absolute(image))
    assert isinstance(renamed, ImageInfo)
    return renamed


def _renamed(info: BlockNodeInfo, said: str, path: str) -> BlockNodeInfo:
    children = info.children
    if children is not None:
        children = tuple(
            BlockChildInfo(name=child.name, info=_renamed(child.info, said, path), unknown=child.unknown)
            for child in children
        )
    specific = info.format_specific
    if specific is not None and isinstance(specific.data, VmdkInfo):
        extents = tuple(
            msgspec.structs.replace(extent, filename=path) if extent.filename == said else extent
            for extent in specific.data.extents
        )
        data = msgspec.structs.replace(specific.data, extents=extents)
        specific = FormatSpecific(type=specific.type, data=data, unknown=specific.unknown)
    filename = path if info.filename == said else info.filename
    return msgspec.structs.replace(info, filename=filename, children=children, format_specific=specific)


def _complaint(done: Completed, dirty: bool) -> bytes:
    """What qemu-img itself says on stderr; for an image that was not dirty all of it."""
    if not dirty:
        return done.stderr.strip()
    names = (b"qemu-img: ", os.fsencode(os.path.basename(done.argv[0])) + b": ")
    return b"".join(line for line in done.stderr.splitlines() if line.startswith(names))


def _read_failure(done: Completed, images: Sequence[Source], force_share: bool) -> ImgtoolError:
    error = failure(done, path=place_of(images[0]) if images else None)
    for image in images:
        if not force_share and not isinstance(image, ImageOpts):
            busy = in_use(absolute(image), write=False, cause=error)
            if busy is not None:
                return busy
    return error


def _change_failure(done: Completed, image: Source) -> ImgtoolError:
    place = place_of(image)
    hint = None
    if done.status == 0:
        hint = f"it ended as if all were well, but check {printable(place)} before using it"
    error = failure(done, path=place, hint=hint)
    if done.status != 0 and not isinstance(image, ImageOpts):
        busy = in_use(place, write=True, cause=error)
        if busy is not None:
            return busy
    return error


def renamed_error(error: CommandError, names: Mapping[str, str]) -> CommandError:
    """`error` with the names of hidden files in its message replaced by those of the files they stand for."""
    for hidden, shown in names.items():
        error.message = error.message.replace(printable(hidden), printable(shown))
    error.args = (error.message,)
    return error
