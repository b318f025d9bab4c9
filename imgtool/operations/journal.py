"""Journals of decided changes: what `imgtool.operations.transaction` writes, and who finishes it.

A journal is `.imgtool-TOKEN.journal` beside the first file of its change, its lines JSON; the process that works on
it holds flock(2) on it. It names its own inode, so that one that came in an archive is no journal. A step is a
rename, a hard link, an unlink, or one write that the journal holds whole: each file reads as before it or as after,
and doing it twice is doing it once.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

from imgtool.errors import ImageError
from imgtool.image.names import HIDDEN, printable
from imgtool.operations.alone import alone_in
from imgtool.operations.steps import Step, StoppedError, do_all
from imgtool.qemu.replace import clear_left

SUFFIX = ".journal"
_TRIAL = ".trial"
_DONE = ".done"
"""The suffix of a journal whose steps are done, while something that was staged is still to be taken away."""

given_up: list[tuple[str, str]] = []
"""The files at which changes ended that this process was to finish, and why, in words."""


def journals(directory: str) -> list[str]:
    """The journals in `directory`, of running and of interrupted changes."""
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    return sorted(os.path.join(directory, n) for n in names if n.startswith(HIDDEN) and n.endswith((SUFFIX, _DONE)))


def recover(directory: str) -> list[str]:
    """Finishes, or where nothing was decided undoes, the changes in `directory` whose process is gone, and takes away
    what it left of new images. Returns the paths that were finished. ImageError when a remaining step fails."""
    finished: list[str] = []
    _clear_trials(directory)
    clear_left(directory)
    for journal in journals(directory):
        with _adopted(journal) as adopted:
            if adopted:
                steps, staged = _read(journal)
                if journal.endswith(_DONE):
                    clear(journal, staged)
                elif _finish(journal, steps, staged):
                    finished += [step.target for step in steps]
    return finished


def _trial_name(path: str) -> str:
    """A hidden second name for the file `path`, to find out whether it can have one."""
    return os.path.join(os.path.dirname(path), f"{HIDDEN}{os.getpid()}-{os.lstat(path).st_ino}{_TRIAL}")


def can_be_linked(path: str) -> bool:
    """Whether the file may have a second name: not on every file system, nor for every user."""
    trial = _trial_name(path)
    try:
        os.link(path, trial, follow_symlinks=False)
    except OSError:
        return False
    with contextlib.suppress(OSError):  # `recover` takes it away then
        os.unlink(trial)
    return True


def _clear_trials(directory: str) -> None:
    """Removes the trial names of processes that are gone; the files still have their own names."""
    with contextlib.suppress(OSError):
        for name in os.listdir(directory):
            if name.startswith(HIDDEN) and name.endswith(_TRIAL):
                pid, _, inode = name[len(HIDDEN) : -len(_TRIAL)].partition("-")
                path = os.path.join(directory, name)
                status = os.lstat(path)
                if inode == str(status.st_ino) and status.st_nlink > 1 and not os.path.exists(f"/proc/{pid}"):
                    os.unlink(path)


@contextlib.contextmanager
def _adopted(journal: str) -> Iterator[bool]:
    """Whether we hold the journal now: its process is gone, and nobody else is recovering it."""
    try:
        fd = os.open(journal, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield _is_ours(fd)
    finally:
        os.close(fd)


def _is_ours(fd: int) -> bool:
    """Whether the journal was made here by this user, and has not been done with while we waited."""
    status = os.fstat(fd)
    line, newline, _ = os.pread(fd, 4096, 0).partition(b"\n")
    expected = first_line(status.st_ino)
    made_here = (
        line == expected if newline else expected.startswith(line)
    )  # its process may have died in the first line
    return made_here and status.st_nlink == 1 and status.st_uid == os.geteuid()


def first_line(inode: int) -> bytes:
    return json.dumps({"inode": inode}).encode()


def relative_to(directory: str) -> Callable[[str], str]:
    """What makes a path relative to `directory`, and leaves an empty one as it is. Quick for thousands."""

    @cache
    def folder_of(folder: str) -> str:
        relative = os.path.relpath(folder, directory)
        return "" if relative == os.curdir else relative

    def relative(path: str) -> str:
        folder, name = os.path.split(path)
        return os.path.join(folder_of(folder), name) if path else ""

    return relative


def steps_record(steps: Sequence[Step], directory: str) -> dict[str, Any]:
    """The record that decides a change. Paths are relative to the journal's directory, which may be moved."""

    relative = relative_to(directory)
    return {
        "steps": [
            {
                "verb": step.verb,
                "source": relative(step.source),
                "target": relative(step.target),
                "inode": step.inode,
                "was": step.was,
                "data": base64.b64encode(step.data).decode(),
                "old": base64.b64encode(step.old).decode(),
                "mtime": step.mtime_ns,
            }
            for step in steps
        ]
    }


def _read(journal: str) -> tuple[list[Step], list[str]]:
    """The steps that were decided (none when the process died before) and the staged files."""
    directory = os.path.dirname(journal)

    def whole(path: str) -> str:
        return os.path.normpath(os.path.join(directory, path)) if path else ""

    steps: list[Step] = []
    staged: list[str] = []
    with open(journal, "rb") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:  # the line during which the process died
                break
            if "stage" in record:
                staged.append(whole(record["stage"]))
            steps += [
                Step(
                    words["verb"],
                    whole(words["source"]),
                    whole(words["target"]),
                    words["inode"],
                    tuple(words["was"]),
                    base64.b64decode(words["data"]),
                    base64.b64decode(words["old"]),
                    words["mtime"],
                )
                for words in record.get("steps", ())
            ]
    return steps, staged


def _finish(journal: str, steps: list[Step], staged: list[str]) -> bool:
    """Does the remaining steps, then removes the leftovers and the journal, in this order.

    False when a step could not be done any more: because somebody has moved or written the files meanwhile, or is
    about to (a machine was started on one of them), or because the file system does not let us, and all could be
    taken back. The steps end there then, which is noted in `given_up`; between any two of them every image reads
    right, and nothing that was written since is lost.
    """
    whole = True
    try:
        with alone_in(sorted({os.path.dirname(step.target) for step in steps})):
            do_all(steps)
    except StoppedError as stopped:
        whole = False
        if not stopped.overtaken and not _taken_back(stopped):
            raise unfinished(stopped) from stopped.cause
        given_up.append((stopped.steps[-1].target, _why(stopped)))
    clear(journal, staged, done=bool(steps))
    return whole


def _why(stopped: StoppedError) -> str:
    if stopped.overtaken and not isinstance(stopped.cause, OSError):
        return "another program has changed or opened it since"
    return (stopped.cause.strerror if isinstance(stopped.cause, OSError) else None) or str(stopped.cause)


def _taken_back(stopped: StoppedError) -> bool:
    try:
        return isinstance(stopped.cause, OSError) and stopped.take_back()
    except OSError:
        return False


def unfinished(stopped: StoppedError) -> BaseException:
    """The error for a change that was decided and is still to be finished."""
    if not isinstance(stopped.cause, OSError):
        return stopped.cause
    path = stopped.steps[-1].target
    return ImageError(
        f"the change was decided but not finished: {printable(path)}: {stopped.cause.strerror}",
        hint="once that is mended, the next imgtool command that changes an image here finishes it",
        path=path,
    )


def clear(journal: str, staged: list[str], *, done: bool = False) -> None:
    """Takes away staged files and then the journal. When one cannot be taken away the journal stays, so that the next
    run does it; with a note that its steps are `done`, if they are: they must not be done again then."""
    left = [path for path in staged if not _removed(path)]
    if left and (not done or _noted(journal)):
        return
    if not _removed(journal) and done:
        _noted(journal)


def _removed(path: str) -> bool:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _noted(journal: str) -> bool:
    """Noted in the file name, which takes no space on a full disk."""
    try:
        os.rename(journal, journal.removesuffix(SUFFIX) + _DONE)
    except OSError:
        return False
    return True
