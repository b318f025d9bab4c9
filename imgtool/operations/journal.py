"""Journals of changes that are decided: what `imgtool.operations.transaction` writes, and who finishes it.

A journal is `.imgtool-TOKEN.journal` beside the first file of its change, its lines JSON; the process that works on
it holds flock(2) on it. It names its own inode, so that one that came in an archive is no journal. A step is a
rename, a hard link, an unlink, or one write that the journal holds whole: each file reads as before it or as after,
and doing it twice is doing it once.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from imgtool.errors import ImageError

PREFIX, SUFFIX = ".imgtool-", ".journal"

Verb = Literal["replace", "place", "link", "remove", "patch"]


class Step(NamedTuple):
    """One change of one name. Doing it a second time does nothing.

    replace: the file `source`, of inode `inode`, takes the name `target`, whatever that was.
    place: the same, where nothing has that name yet.
    link: `target` becomes a further name of `source`, of inode `inode`.
    remove: the name `target` goes, if it is still the file of inode `inode`.
    patch: `data` is written at the beginning of `target`, if it is still the file of inode `inode`; its time of last
    change becomes `mtime_ns`, since overlays of it remember that and a guest reads the same through them.
    """

    verb: Verb
    source: str
    target: str
    inode: int = 0
    data: bytes = b""
    mtime_ns: int = 0


def journals(directory: str) -> list[str]:
    """The journals in `directory`, of running and of broken-off changes."""
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    return sorted(os.path.join(directory, n) for n in names if n.startswith(PREFIX) and n.endswith(SUFFIX))


def recover(directory: str) -> list[str]:
    """Finishes, or where nothing was decided undoes, the changes in `directory` whose process is gone. Returns the
    paths that were finished. ImageError when a remaining step fails."""
    finished: list[str] = []
    for journal in journals(directory):
        with _adopted(journal) as adopted:
            if adopted:
                steps, staged = _read(journal)
                finished += [step.target for step in steps]
                finish(journal, steps, staged)
    return finished


@contextlib.contextmanager
def _adopted(journal: str) -> Iterator[bool]:
    """Whether the journal is ours now: its process is gone, and nobody else is recovering it."""
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
    made_here = line == expected if newline else expected.startswith(line)  # it may have died in its first line
    return made_here and status.st_nlink == 1 and status.st_uid == os.geteuid()


def first_line(inode: int) -> bytes:
    return json.dumps({"inode": inode}).encode()


def steps_record(steps: Sequence[Step], directory: str) -> dict[str, Any]:
    """The record that decides a change. Paths are relative to the journal's directory, which may be moved."""

    def relative(path: str) -> str:
        return os.path.relpath(path, directory) if path else ""

    return {
        "steps": [
            {
                "verb": step.verb,
                "source": relative(step.source),
                "target": relative(step.target),
                "inode": step.inode,
                "mtime": step.mtime_ns,
                "data": base64.b64encode(step.data).decode(),
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
            except ValueError:  # the line it died in
                break
            if "stage" in record:
                staged.append(whole(record["stage"]))
            steps += [
                Step(
                    words["verb"],
                    whole(words["source"]),
                    whole(words["target"]),
                    words["inode"],
                    base64.b64decode(words["data"]),
                    words.get("mtime", 0),
                )
                for words in record.get("steps", ())
            ]
    return steps, staged


def finish(journal: str, steps: list[Step], staged: list[str]) -> None:
    """Does the steps not done yet, then takes away what is left over and the journal, in this order. Where a step
    cannot be done any more because the files were moved meanwhile, the steps end there: between any two of them
    every image reads right."""
    try:
        for step in steps:
            _do(step)
            sync(os.path.dirname(step.target))
    except _OvertakenError:
        pass
    except OSError as error:
        raise ImageError(
            f"the change was decided but not finished: {error.strerror}",
            hint="the next imgtool command that changes an image here finishes it",
            path=steps[0].target,
        ) from error
    for path in staged:
        with contextlib.suppress(OSError):
            os.unlink(path)
    with contextlib.suppress(OSError):
        os.unlink(journal)


class _OvertakenError(Exception):
    """What a step was to move is gone and not where it was to go: somebody else had his hands on it."""


def _do(step: Step) -> None:
    if step.verb == "remove":
        if _inode(step.target) == step.inode:
            os.unlink(step.target)
    elif step.verb == "patch":
        _patch(step)
    elif _inode(step.source) == step.inode:
        if step.verb == "replace":
            os.rename(step.source, step.target)
        else:
            _link(step)
    elif _inode(step.target) != step.inode:
        raise _OvertakenError


def _link(step: Step) -> None:
    """`link` and `place`: unlike rename(2), link(2) never replaces what somebody else made meanwhile."""
    if _inode(step.target) != step.inode:
        try:
            os.link(step.source, step.target, follow_symlinks=False)
        except OSError as error:
            no_links = error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
            if step.verb == "link" or not no_links or os.path.lexists(step.target):
                raise
            os.rename(step.source, step.target)
            return
    if step.verb == "place":
        os.unlink(step.source)


def _patch(step: Step) -> None:
    try:
        fd = os.open(step.target, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return  # moved on by a later step, which the run before did
    try:
        if os.fstat(fd).st_ino == step.inode:
            if os.pwrite(fd, step.data, 0) != len(step.data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.utime(fd, ns=(os.fstat(fd).st_atime_ns, step.mtime_ns))
            os.fsync(fd)
    finally:
        os.close(fd)


def _inode(path: str) -> int | None:
    try:
        return os.lstat(path).st_ino
    except (FileNotFoundError, NotADirectoryError):
        return None


def sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
