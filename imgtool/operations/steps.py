"""The steps of a decided change, each of one name or one header: doing it twice is doing it once, and whenever the
process dies each file is as before it or as after."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from imgtool.image.locks import is_open, lock_state
from imgtool.operations.syncing import make_folder, sync

_SECTOR = 512

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


_ADDING = ("place", "link")


class OvertakenError(Exception):
    """The files are not what they were when the change was decided: another program has changed them."""


class StoppedError(Exception):
    """The last of `steps` could not be done, for the reason in `cause`; those before it were."""

    def __init__(self, steps: Sequence[Step], cause: BaseException) -> None:
        super().__init__()
        self.steps, self.cause = steps, cause

    @property
    def overtaken(self) -> bool:
        """Whether another program was faster: it changed the files, or took a new name."""
        return isinstance(self.cause, OvertakenError | FileExistsError)

    def take_back(self) -> bool:
        """Takes back what was done, and is true when nothing was done then: so long as names were only added."""
        *before, last = self.steps
        if not _adds_only(before) or (last.verb not in _ADDING and not _is_to_do(last)):
            return False
        _withdraw([step for step in self.steps if step.verb in _ADDING])
        return True


def do_all(steps: Sequence[Step]) -> None:
    """Does the steps not done yet, and brings each to the disk before the next, or all at once where their order does
    not matter. StoppedError when it cannot go on."""
    patches = [(number, step.inode, step.data) for number, step in enumerate(steps) if step.verb == "patch"]
    at_once = _adds_only(steps)
    number = 0
    try:
        for number, step in enumerate(steps):
            _do(step, [data for later, inode, data in patches if later > number and inode == step.inode])
            if not at_once:
                _sync_names([step])
        if at_once:
            _sync_names(steps)
    except BaseException as error:
        raise StoppedError(steps[: number + 1], error) from error


def _adds_only(steps: Sequence[Step]) -> bool:
    return all(step.verb in _ADDING for step in steps)


def _is_to_do(step: Step) -> bool:
    """Whether nothing of a step that does not only add a name was done."""
    if step.verb == "patch":
        return False
    return _inode(step.target) == step.was[0]


def _withdraw(steps: Sequence[Step]) -> None:
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
    """OvertakenError when the target is not what it was, or a program has opened it since, by an overlay that nobody
    knows maybe: see `imgtool.operations.around.refuse_in_use`. A file that keeps another name may lose this one."""
    status = os.lstat(step.target)
    if identity(status) != step.was:
        raise OvertakenError
    if stat.S_ISREG(status.st_mode):
        fd = os.open(step.target, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if lock_state(fd) == "write" or (is_open(fd) and status.st_nlink == 1):
                raise OvertakenError
        finally:
            os.close(fd)


def _link(step: Step) -> None:
    """`link` and `place`: unlike rename(2), link(2) never replaces what another process has created."""
    if _inode(step.target) != step.inode:
        make_folder(os.path.dirname(step.target))  # the interrupted run may have removed it
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
