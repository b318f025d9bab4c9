"""What all of QemuImg's methods share: running qemu-img on images, and what its failure means."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, TypedDict

import msgspec

from imgtool.errors import CommandError, CommandTimeout, ImageFormatError, ImgtoolError, RefusedError, UsageError
from imgtool.image.links import PROTOCOLS
from imgtool.image.names import absolute, printable, printable_lines
from imgtool.image.policy import (
    FORCED_DEPTH,
    Approved,
    Policy,
    approve,
    approve_options,
    current,
    working_directory,
)
from imgtool.image.reference import parse
from imgtool.qemu import img_argv
from imgtool.qemu.img_types import Backing, ImageOpts, Source, Verbatim, parse_options
from imgtool.qemu.inputs import check_input, in_use
from imgtool.qemu.process import NO_LIMITS, Completed, Limits, failure
from imgtool.qemu.programs import Programs

if TYPE_CHECKING:
    from imgtool.image.qapi import ImageInfo

ADDRESS_SPACE = 2 << 30
QUICK_LIMITS = Limits(seconds=60, cpu_seconds=30, address_space=ADDRESS_SPACE)
"""For verbs that look at metadata only: what keeps a hostile image from holding imgtool up."""

LONG_LIMITS = Limits(address_space=ADDRESS_SPACE)
"""For verbs that read a whole disk, which takes as long as it takes."""

Progress = Callable[[float], None]
"""Called with a percentage, 0 to 100, each time qemu-img reports one."""


class ImgBase:
    """Runs qemu-img."""

    def __init__(
        self,
        programs: Programs | None = None,
        *,
        limits: Limits = QUICK_LIMITS,
        long_limits: Limits = LONG_LIMITS,
        policy: Policy | None = None,
    ) -> None:
        """`limits` bound the quick verbs that change nothing; `long_limits` the other ones that work on no image in
        place. A verb that changes an image in place is never stopped half-way.

        Nothing is given to qemu-img that `policy` (None: the one in force) does not allow; the images of one call may
        refer to each other.
        """
        self.programs = programs or Programs()
        self.policy = policy
        self.limits = limits
        self.long_limits = long_limits

    @property
    def program(self) -> str:
        """The path of qemu-img. ProgramError when there is none."""
        return self.programs.find("qemu-img")

    def _approve(
        self,
        images: Sequence[Source],
        formats: Sequence[str | None],
        *,
        parents: bool = True,
        without: Collection[str] = (),
    ) -> str | None:
        """Lets pass what the policy allows, else raises PolicyError (see `imgtool.image.policy.approve`, also for
        `parents` and `without`). `formats` are those of `images`, as far as they are known. Returns the directory
        that qemu-img has to be started in, None where it does not matter."""
        policy = self.policy or current()
        paths = [absolute(image) for image in images if not isinstance(image, ImageOpts)]
        policy = msgspec.structs.replace(policy.naming(*paths), max_depth=FORCED_DEPTH)
        approved: list[Approved] = []
        for image, format in zip_longest(images, formats[: len(images)]):
            if isinstance(image, ImageOpts):
                approved += approve_options(parse_options(image.text), policy, parents=parents)
            else:
                approved += approve(image, policy, format=format, parents=parents, without=without)
        return working_directory(approved)

    def _approve_parent(self, image: str, backing: Backing | None, format: str | None) -> str | None:
        """As `_approve`, for what an image at `image` is to stand on: the user named it."""
        if backing is None:
            return None
        if not isinstance(backing, Verbatim):
            return self._approve(some(place_named(image, backing)), [format])
        try:
            reference = parse(os.fsencode(backing.text), directory=os.path.dirname(image))
        except ImageFormatError:
            return None  # qemu-img says what is wrong with it
        for leaf in reference.leaves:
            if leaf.path is not None and leaf.protocol in ("file", "host_device"):
                self._approve([leaf.path], [leaf.format])
        return os.path.dirname(image) if reference.relative else None

    def _read(
        self,
        argv: Sequence[str],
        images: Sequence[Source],
        *,
        formats: Sequence[str | None] = (),
        own: bool = False,
        parents: bool = True,
        without: Collection[str] = (),
        force_share: bool,
        limits: Limits,
        progress: Progress | None = None,
        answers: Collection[int] = (0,),
        meanwhile: Callable[[], object] | None = None,
    ) -> Completed:
        """Runs a verb that changes nothing; with `progress` stdout is what is left beside the percentages. Images are
        approved as by `_approve`, unless they are what an approved call has just made (`own`)."""
        for image in images:
            if not isinstance(image, ImageOpts):
                check_input(absolute(image))
        if own:
            cwd = _own_directory(images[0], formats[0])
        else:
            cwd = self._approve(images, formats, parents=parents, without=without)
        try:
            done = self._run(argv, limits, progress, cwd, meanwhile)
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
        cwd: str | None = None,
        dirty: bool = False,
        progress: Progress | None = None,
    ) -> Completed:
        """Runs a verb that writes to `image` and reads `others`, all of which were approved: see `_approve`. qemu-img
        has exited with 0 after failed writes, so whatever it says on stderr is a failure too.

        Not so what QEMU's block layer says while it mends an image that was not closed cleanly (`dirty`), as it does
        with every such image that it opens for writing: those lines do not begin with the program's name.
        """
        for other in others:
            if not isinstance(other, ImageOpts):
                check_input(absolute(other))
        if not isinstance(image, ImageOpts):
            check_input(absolute(image), write=True)
        done = self._run(argv, NO_LIMITS, progress, cwd)
        if done.status != 0 or _complaint(done, dirty):
            raise _change_failure(done, image)
        return done

    def _run(
        self,
        argv: Sequence[str],
        limits: Limits,
        progress: Progress | None,
        cwd: str | None = None,
        meanwhile: Callable[[], object] | None = None,
    ) -> Completed:
        if any("\0" in word for word in argv):
            raise UsageError("no name and no option can hold a NUL byte")
        extras: _Extras = {}
        if meanwhile is not None:
            extras["meanwhile"] = meanwhile
        if cwd is not None and cwd != os.getcwd():
            _refuse_relative(argv, cwd)
            extras["cwd"] = cwd
        if progress is None:
            return self.programs.runner(argv, limits=limits, **extras)
        from imgtool.qemu.progress import ProgressParser

        parser = ProgressParser()

        def take(piece: bytes) -> None:
            for percentage in parser.feed(piece):
                progress(percentage)

        done = self.programs.runner(argv, limits=limits, on_stdout=take, **extras)
        return msgspec.structs.replace(done, stdout=parser.text.encode())

    def _info(
        self,
        image: Source,
        format: str | None,
        objects: Sequence[str],
        *,
        force_share: bool = True,
        own: bool = False,
        without: Collection[str] = (),
    ) -> ImageInfo:
        """What qemu-img says of `image`; `own` and `without` are as for `_read`."""
        argv = img_argv.info(self.program, image, format=format, force_share=force_share, objects=objects)
        done = self._read(
            argv,
            [image],
            formats=[format],
            own=own,
            parents=False,
            without=without,
            force_share=force_share,
            limits=self.limits,
            meanwhile=_learn_to_read,
        )
        from imgtool.qemu.answers import image_info

        return image_info(done.stdout, image)


class _Extras(TypedDict, total=False):
    """What a Runner is given beside the usual."""

    cwd: str
    meanwhile: Callable[[], object]


def _own_directory(image: Source, format: str | None) -> str | None:
    """As `working_directory`, for an image that an approved call has just made."""
    if isinstance(image, ImageOpts):
        return None
    everything = Policy(directories=("/",), protocols=PROTOCOLS, guessed_formats=True)
    try:
        return working_directory(approve(image, everything, format=format, parents=False))
    except ImgtoolError:
        return None  # qemu-img says what is wrong with it


def _learn_to_read() -> None:
    """imgtool gets the types of the answer ready while qemu-img makes it: both take about as long."""
    from imgtool.qemu import answers

    answers.prepare()


def _refuse_relative(argv: Sequence[str], cwd: str) -> None:
    """RefusedError when options (of objects, or that name an image) name files that are meant from imgtool's own
    current directory, while qemu-img has to run in `cwd`."""
    for word in argv:
        if "file" not in word or "=" not in word or word.startswith("/"):
            continue
        try:
            options = parse_options(word)
        except UsageError:
            continue
        for key, value in options.items():
            if key.rpartition(".")[2] in ("file", "filename") and not value.startswith("/"):
                raise RefusedError(
                    f"{printable(key)}={printable(value)} is a file of the current directory, but qemu-img has to "
                    f"run in {printable(cwd)}, where an image refers to a file by a relative name",
                    hint=f"give the absolute path: {printable(key)}={printable(absolute(value))}",
                )


def place_named(image: str, backing: Backing | None) -> str | None:
    """The file that `backing` is for an image at `image`; None for what is no path."""
    if backing is None or isinstance(backing, Verbatim):
        return None
    return os.path.join(os.path.dirname(image), os.fsdecode(backing))


def some(path: str | None) -> list[str]:
    """`path`, if there is one."""
    return [] if path is None else [path]


def place_of(image: Source) -> str:
    """What a result calls `image`: its absolute path, or its option string."""
    return image.text if isinstance(image, ImageOpts) else absolute(image)


def notes_of(done: Completed) -> str:
    """What a successful program wrote to stderr."""
    return printable_lines(done.stderr.decode(errors="surrogateescape")).strip()


def _complaint(done: Completed, dirty: bool) -> bytes:
    """What qemu-img itself wrote to stderr; all of stderr for an image that was not dirty."""
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
    """`error`, with names as `rename_in` makes them."""
    rename_in(error, names)
    return error


def rename_in(error: ImgtoolError, names: Mapping[str, str]) -> None:
    """Replaces the names of hidden files in the message of `error` by those of the files they stand for. A command
    line keeps them and says what they were: run on the files themselves, it may destroy them."""
    for hidden, shown in names.items():
        error.message = error.message.replace(printable(hidden), printable(shown))
        if error.path == hidden:
            error.path = shown
        if isinstance(error, CommandError) and error.comment is not None:
            error.comment = error.comment.replace(printable(hidden), printable(shown))
    error.args = (error.message,)
    if isinstance(error, CommandError):
        stood = [
            f"{printable(hidden)} stood for {printable(shown)}"
            for hidden, shown in names.items()
            if any(os.path.basename(hidden) in word for word in error.argv)
        ]
        if stood:
            error.comment = f"gone by now: {', '.join(stood)}"
