"""Journals of decided changes: what `imgtool.operations.transaction` writes, and who finishes it.

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
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

from imgtool.errors import ImageError
from imgtool.image.locks import lock_state
from imgtool.operations.syncing import sync

_SECTOR = 512

PREFIX, SUFFIX = ".imgtool-", ".journal"
_TRIAL = ".trial"
_DONE = ".done"
"""The suffix of a journal whose steps are done, while something that was staged is still to be taken away."""

Verb = Literal["replace", "place", "link", "remove", "patch"]


class Step(NamedTuple):
    """One change of one name. Doing it a second time does nothing.

    replace: the file `source`, of inode `inode`, takes the name `target`, if that is still what it `was`.
    place: the same, where nothing has that name yet.
    link: `target` becomes a further name of `source`, of inode `inode`.
    remove: the name `target` goes, if it is still what it `was`.
    patch: `data` is written at the beginning of `target`, of inode `inode`, if that still begins with `old`; its time
    of last change becomes `mtime_ns`, since overlays of it remember that and a guest reads the same through them.
    """

    verb: Verb
    source: str
    target: str
    inode: int = 0
    was: tuple[int, ...] = ()
    """`identity` of the target."""
    data: bytes = b""
    old: bytes = b""
    """As long as `data`."""
    mtime_ns: int = 0


def identity(status: os.stat_result) -> tuple[int, ...]:
    """Which file it is, and in which state."""
    return status.st_ino, status.st_size, status.st_mtime_ns


def journals(directory: str) -> list[str]:
    """The journals in `directory`, of running and of interrupted changes."""
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    return sorted(os.path.join(directory, n) for n in names if n.startswith(PREFIX) and n.endswith((SUFFIX, _DONE)))


def recover(directory: str) -> list[str]:
    """Finishes, or where nothing was decided undoes, the changes in `directory` whose process is gone. Returns the
    paths that were finished. ImageError when a remaining step fails."""
    finished: list[str] = []
    _clear_trials(directory)
    for journal in journals(directory):
        with _adopted(journal) as adopted:
            if adopted:
                steps, staged = _read(journal)
                if journal.endswith(_DONE):
                    clear(journal, staged)
                elif finish(journal, steps, staged):
                    finished += [step.target for step in steps]
    return finished


def _trial_name(path: str) -> str:
    """A hidden second name for the file `path`, to find out whether it can have one."""
    return os.path.join(os.path.dirname(path), f"{PREFIX}{os.getpid()}-{os.lstat(path).st_ino}{_TRIAL}")


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
            if name.startswith(PREFIX) and name.endswith(_TRIAL):
                pid, _, inode = name[len(PREFIX) : -len(_TRIAL)].partition("-")
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


def finish(journal: str, steps: list[Step], staged: list[str]) -> bool:
    """Does the remaining steps, then removes the leftovers and the journal, in this order.

    False when a step could not be done any more, because somebody has moved or written the files meanwhile, or is
    about to: a machine was started on one of them. The steps end there then; between any two of them every image
    reads right, and nothing that was written since is lost.
    """
    whole = True
    try:
        do_all(steps)
    except (OvertakenError, FileExistsError):
        whole = False
    except OSError as error:
        raise unfinished(error, steps) from error
    clear(journal, staged, done=bool(steps))
    return whole


def unfinished(error: OSError, steps: Sequence[Step]) -> ImageError:
    """The error for a change that was decided, and stopped at one of its steps."""
    return ImageError(
        f"the change was decided but not finished: {error.strerror}",
        hint="the next imgtool command that changes an image here finishes it",
        path=steps[0].target,
    )


def adds_only(steps: Sequence[Step]) -> bool:
    """Whether all that the steps do is to give new files their names, in whatever order."""
    return all(step.verb == "place" for step in steps)


def do_all(steps: Sequence[Step]) -> None:
    """Does the steps not done yet, and brings each to the disk before the next, or all at once where their order does
    not matter. FileExistsError when somebody else has taken a new name."""
    patches = [(number, step.inode, step.data) for number, step in enumerate(steps) if step.verb == "patch"]
    at_once = adds_only(steps)
    for number, step in enumerate(steps):
        _do(step, [data for later, inode, data in patches if later > number and inode == step.inode])
        if not at_once:
            _sync_names([step])
    if at_once:
        _sync_names(steps)


def withdraw(steps: Sequence[Step]) -> None:
    """Removes the names that the steps, which only add names, have given."""
    for step in reversed(steps):
        if _inode(step.target) != step.inode:
            continue
        if _inode(step.source) == step.inode:
            os.unlink(step.target)
        else:
            os.rename(step.target, step.source)
    _sync_names(steps)


def _sync_names(steps: Iterable[Step]) -> None:
    for directory in sorted({os.path.dirname(step.target) for step in steps}):
        with contextlib.suppress(FileNotFoundError):  # a folder that went with its last file
            sync(directory)


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


class OvertakenError(Exception):
    """The files are not what they were when the change was decided: another program has changed them."""


def _do(step: Step, later: list[bytes]) -> None:
    """Does a step; `later` is what patches after it write to the same file."""
    if step.verb == "remove":
        if _inode(step.target) == step.was[0]:
            _check_untouched(step)
            os.unlink(step.target)
    elif step.verb == "patch":
        _patch(step, later)
    elif _inode(step.source) == step.inode:
        if step.verb == "replace":
            _check_untouched(step)
            os.rename(step.source, step.target)
        else:
            _link(step)
    elif _inode(step.target) != step.inode:
        raise OvertakenError


def _check_untouched(step: Step) -> None:
    """OvertakenError when the target is not what it was, or a program is writing it."""
    status = os.lstat(step.target)
    if identity(status) != step.was:
        raise OvertakenError
    if stat.S_ISREG(status.st_mode):
        fd = os.open(step.target, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if lock_state(fd) == "write":
                raise OvertakenError
        finally:
            os.close(fd)


def _link(step: Step) -> None:
    """`link` and `place`: unlike rename(2), link(2) never replaces what another process has created."""
    if _inode(step.target) != step.inode:
        os.makedirs(os.path.dirname(step.target), exist_ok=True)  # the interrupted run may have removed it
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


def _patch(step: Step, later: list[bytes]) -> None:
    try:
        fd = os.open(step.target, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return  # moved on by a later step, which the earlier run did
    try:
        if os.fstat(fd).st_ino != step.inode:
            return
        now = os.pread(fd, len(step.data), 0).ljust(len(step.data), b"\0")
        if now != step.old and any(now[: len(data)] == data[: len(now)] for data in later):
            return  # the earlier run got further
        if lock_state(fd) == "write" or not _between(step.old, now, step.data):
            raise OvertakenError
        if os.pwrite(fd, step.data, 0) != len(step.data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.utime(fd, ns=(os.fstat(fd).st_atime_ns, step.mtime_ns))
        os.fsync(fd)
    finally:
        os.close(fd)


def _between(old: bytes, now: bytes, new: bytes) -> bool:
    """Whether `now` is `old`, of which perhaps some sectors were overwritten with `new`: power may fail half-way."""
    sectors = (slice(at, at + _SECTOR) for at in range(0, len(now), _SECTOR))
    return all(now[sector] in (old[sector], new[sector]) for sector in sectors)


def _inode(path: str) -> int | None:
    try:
        return os.lstat(path).st_ino
    except (FileNotFoundError, NotADirectoryError):
        return None
