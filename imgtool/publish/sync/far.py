"""The other host: where it is, and what is done there."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shlex
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import msgspec

from imgtool.errors import ImageError, ImgtoolError, UsageError
from imgtool.image.names import printable
from imgtool.publish.oci.blob import PIECE, Blob
from imgtool.publish.sync.scripts import LOOK, TAKE, TIDY
from imgtool.publish.sync.ssh import FAILED, Line, Ssh
from imgtool.qemu.process import Completed, Runner, failure, run

_PLACE = re.compile(r"(?P<host>(?:[^@:/]+@)?(?:\[[0-9A-Fa-f:.]+\]|[^:/\[\]]+)):(?P<folder>.*)", re.DOTALL)
_LINE = re.compile(r"(-|\d+) (-|[0-9a-f]{64}) (-|\.imgtool-sync-[0-9a-f-]+\.part) (\d+) ([01])")
"""What the other host says of an image."""
_EXISTS, _OTHER, _FEWER = 71, 72, 73
_MOST_WORDS = 64 << 10
"""Bytes of names in one command line; Linux takes 128 KiB."""
_LETS_IN = "does the ssh command below let you in, without asking for anything?"
_RESUMES = "run it again, and it resumes where it stopped: nothing half sent has a name there"


class Place(NamedTuple):
    host: str
    """As ssh takes it."""
    folder: str


class Seen(NamedTuple):
    """What is at an image's place there."""

    size: int | None
    sha256: str | None
    """None where the size is another."""
    part: str | None = None
    """The file that holds what was sent of it before, without its folder."""
    part_size: int = 0
    parts: bool = False
    """Whether there are parts of it, be they of what it is now or was earlier."""


class Wanted(NamedTuple):
    """An image as it is to be there."""

    name: str
    """Below the folder there."""
    size: int
    sha256: str

    @property
    def parts(self) -> str:
        """How the names of its parts begin, whatever they hold."""
        folder, name = os.path.split(self.name)
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()
        return os.path.join(folder, f".imgtool-sync-{digest[:16]}-")

    @property
    def mine(self) -> str:
        """How those go on that hold these bytes."""
        return f"{self.sha256[:40]}-"


def parse_place(text: str) -> Place:
    """`[user@]host:folder`; a folder that is not absolute, or none, is below the user's home there. UsageError for
    anything else."""
    match = _PLACE.fullmatch(text)
    if match is None or match["host"].startswith("-"):
        raise UsageError(f"{printable(text)} is not HOST:DIR", hint="such as root@host:/var/lib/images")
    folder = match["folder"]
    if folder == "~" or folder.startswith("~/"):
        folder = folder[2:]
    folder = folder or "."
    return Place(match["host"].replace("[", "").replace("]", ""), f"./{folder}" if folder[0] == "-" else folder)


def command_of(script: str, arguments: Iterable[str]) -> str:
    """One command line for whatever shell the user has there."""
    return "exec " + shlex.join(["sh", "-c", script.strip(), "sh", *arguments])


class Far:
    """A folder of another host."""

    def __init__(self, place: Place, ssh: Ssh, runner: Runner = run) -> None:
        self.place = place
        self.runner = runner
        self._line = Line(ssh, place.host, runner)

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Inside the `with` block, one connection serves everything that is done there. CommandError in ssh's words
        when there is none."""
        with self._line.shared() as failed:
            if failed is not None:
                self._checked(failed)
            yield

    def look(self, wanted: Sequence[Wanted]) -> list[Seen]:
        """What there is of the images `wanted`."""
        found: list[Seen] = []
        for some in _in_lines(wanted):
            words = [word for one in some for word in (one.name, one.parts, one.mine, str(one.size))]
            lines = self._run(LOOK, words).stdout.decode(errors="replace").splitlines()
            found += [_seen(line) for line in lines[: len(some)]]
            found += [Seen(None, None)] * max(0, len(some) - len(lines))
        return found

    def tidy(self, whole: Sequence[Wanted]) -> None:
        """Removes the parts that earlier runs left of images that are there."""
        for some in _in_lines(whole):
            self._run(TIDY, [one.parts for one in some])

    def send(
        self,
        blob: Blob,
        stretches: Sequence[tuple[int, int]],
        *,
        wanted: Wanted,
        part: str | None,
        twin: str | None,
        mode: int,
        time: str,
        progress: Callable[[int], None],
    ) -> None:
        """Has the file `wanted` there be `blob`, whose `stretches` (offset, length) are missing in `part`, or in the
        image `twin` there. All or nothing of it gets the name. ImageError when the blob cannot be read, or other
        bytes arrive than its digest is of."""
        folder = os.path.dirname(wanted.name)
        mine = f"{wanted.parts}{wanted.mine}{secrets.token_hex(4)}.part"
        words = [
            self.place.folder,
            wanted.name,
            mine,
            wanted.parts,
            "" if part is None else os.path.join(folder, part),
            twin or "",
        ]
        words += [str(wanted.size), wanted.sha256, f"{mode:o}", time]
        words += [str(number) for stretch in stretches for number in stretch]
        argv = self._line.argv(command_of(TAKE, words))
        end, source = os.pipe()
        pump = _Pump(blob, stretches, source, progress)
        pump.start()
        try:
            done = _run_with(self.runner, argv, end)
        finally:
            os.close(end)
            pump.join()
        if pump.error is not None:
            raise pump.error
        if done.status == _EXISTS:
            raise ImgtoolError(f"{printable(wanted.name)} was created there by another program in the meantime")
        if done.status == _OTHER:
            raise ImageError(
                f"{printable(wanted.name)} arrived with other bytes than were sent, and was thrown away",
                hint="try again",
            )
        if done.status == _FEWER:
            done = msgspec.structs.replace(done, stderr=b"the connection ended too early")
        self._checked(done)

    def _run(self, script: str, words: Iterable[str]) -> Completed:
        return self._checked(self.runner(self._line.argv(command_of(script, [self.place.folder, *words]))))

    def _checked(self, done: Completed) -> Completed:
        if done.status == 0:
            return done
        plain = self._line.plain(done)
        if done.status == FAILED:
            raise failure(plain, hint=f"{_LETS_IN} {_RESUMES}")
        if done.status == _FEWER or done.status < 0:
            raise failure(plain, hint=_RESUMES)
        raise failure(plain, hint=f"once that is mended there, {_RESUMES}", whose=self.place.host)


def _in_lines(wanted: Sequence[Wanted]) -> Iterator[Sequence[Wanted]]:
    """As many at a time as one command line holds."""
    some: list[Wanted] = []
    used = 0
    for one in wanted:
        size = sum(len(os.fsencode(shlex.quote(word))) for word in (one.name, one.parts, one.mine)) + 32
        if some and used + size > _MOST_WORDS:
            yield some
            some, used = [], 0
        some.append(one)
        used += size
    if some:
        yield some


def _seen(line: str) -> Seen:
    match = _LINE.fullmatch(line)
    if match is None:
        return Seen(None, None)
    size, digest, part, have, left = match.groups()
    return Seen(
        None if size == "-" else int(size),
        None if digest == "-" else digest,
        None if part == "-" else part,
        int(have),
        left == "1",
    )


def _run_with(runner: Runner, argv: Sequence[str], stdin: int) -> Completed:
    return runner(argv, stdin=stdin)  # type: ignore[call-arg]


class _Pump(threading.Thread):
    """Writes the stretches into the pipe `target`, and closes it; stops when nobody reads any more."""

    def __init__(
        self, blob: Blob, stretches: Sequence[tuple[int, int]], target: int, progress: Callable[[int], None]
    ) -> None:
        super().__init__(daemon=True)
        self._blob = blob
        self._stretches = stretches
        self._target = target
        self._progress = progress
        self.error: ImgtoolError | None = None
        """Why the blob could not be read."""

    def run(self) -> None:
        try:
            for offset, length in self._stretches:
                self._write(offset, offset + length)
        except ImgtoolError as error:
            self.error = error
        except BrokenPipeError:
            return  # what ssh says counts
        except OSError as error:
            self.error = ImageError(f"the image cannot be read: {error.strerror}")
        finally:
            os.close(self._target)

    def _write(self, at: int, end: int) -> None:
        while at < end:
            piece = self._blob.read(at, min(PIECE, end - at))
            left = memoryview(piece)
            while left:
                left = left[os.write(self._target, left) :]
            self._progress(len(piece))
            at += len(piece)
