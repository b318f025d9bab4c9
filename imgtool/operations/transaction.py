"""Several files changed as one: prepared beside them first, then put in place by steps that a journal records.

Nothing that a user can see changes while new versions are prepared; dying there leaves hidden files that the next run
takes away. When all is prepared and on disk the steps are written into the journal, and from then on the change will
happen: whoever dies in the middle, the next run finds the journal and does the remaining steps
(`imgtool.operations.journal`). Callers order their steps so that every image reads right between any two of them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

from imgtool.errors import (
    ImageError,
    ImageExistsError,
    ImageInUseError,
    ImageNotFoundError,
    ImgtoolError,
    RefusedError,
)
from imgtool.image.attributes import refuse_fixed
from imgtool.image.locks import forbid_writers, is_open
from imgtool.image.names import HIDDEN, printable
from imgtool.image.users import users_of
from imgtool.operations.alone import alone_in
from imgtool.operations.copying import copy_file
from imgtool.operations.journal import (
    SUFFIX,
    clear,
    first_line,
    relative_to,
    steps_record,
    unfinished,
)
from imgtool.operations.meanwhile import changed, gone, stopped_at
from imgtool.operations.replaceable import check_removable, check_replaceable, take_attributes
from imgtool.operations.steps import OvertakenError, Step, StoppedError, do_all, identity
from imgtool.operations.syncing import sync, sync_all
from imgtool.qemu.img_base import rename_in

_HEAD = 1 << 16
"""Bytes at the beginning of a file that are looked at for changes which leave its time as it was: see `Step`."""


class _Held(NamedTuple):
    fd: int
    path: str
    identity: tuple[int, ...]
    head: int
    """Hash of the first bytes."""


class Transaction:
    """A change of one or more files, all or nothing. A context manager: leaving it without `commit` undoes it.

    Paths are absolute. A symlink that is to be replaced stays, and the file it leads to is replaced.
    """

    def __init__(self, beside: str) -> None:
        """`beside` is the first file the change is about; the journal lies in its directory."""
        self.directory = os.path.dirname(os.path.realpath(beside))
        self._token = os.urandom(6).hex()
        self.journal = os.path.join(self.directory, f"{HIDDEN}{self._token}{SUFFIX}")
        self._journal_fd = -1
        self._held: dict[str, _Held] = {}
        self._closed: list[str] = []
        self._staged: list[str] = []
        self._shown: dict[str, str] = {}
        self._steps: list[Step] = []
        self._linking: dict[int, bool] = {}
        """Device → whether its files may have several names."""
        self._decided = False

    def __enter__(self) -> Self:
        refuse_fixed(self.directory)
        try:
            self._journal_fd = os.open(
                self.journal, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
            fcntl.flock(self._journal_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._write(first_line(os.fstat(self._journal_fd).st_ino))
        except OSError as error:
            if self._journal_fd >= 0:
                with contextlib.suppress(OSError):
                    os.unlink(self.journal)
            self.close()
            raise os_error(error, self.directory, "cannot be written to") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, ImgtoolError):
            rename_in(error, self._shown)
            error.path = self._shown.get(error.path or "", error.path)
        try:
            if not self._decided:
                clear(self.journal, self._staged)
        finally:
            self.close()

    def hold(self, path: str) -> None:
        """Keeps QEMU programs from writing the image at `path` until the end, and notes what it is now: `commit`
        refuses if it changed. ImageInUseError when a program writes it already."""
        if path in self._held:
            return
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError as error:
            raise gone(path) from error
        except OSError as error:
            raise os_error(error, path, "cannot be opened") from error
        self._held[path] = _Held(fd, path, identity(os.fstat(fd)), _head_of(fd))
        if not forbid_writers(fd):
            users = users_of(path)
            raise ImageInUseError(f"{printable(path)} is in use for writing{users.by}", hint=users.ending, path=path)

    def close_to_others(self, path: str) -> None:
        """While this change is put in place no other imgtool changes the directory of `path` either, which is only
        read: see `alone`."""
        self._closed.append(path)

    def stage(self, target: str, *, copy_of: str | None = None) -> str:
        """A hidden file in the directory of `target`, on which its new version can be made; empty, or a copy of the
        file `copy_of` with its permissions."""
        folder = os.path.dirname(os.path.realpath(target))
        refuse_fixed(folder)
        staged = os.path.join(folder, f"{HIDDEN}{self._token}-{len(self._staged)}.tmp")
        self._record({"stage": os.path.relpath(staged, self.directory)})
        self._staged.append(staged)
        self._shown[staged] = target
        try:
            self._create(staged, copy_of)
        except OSError as error:
            what = "needs a new version beside it" if os.path.lexists(target) else "cannot be made"
            raise os_error(error, target, what) from error
        return staged

    def stage_all(self, targets: Sequence[str]) -> list[str]:
        """Names of hidden files, none of which exists yet, under which the new files `targets` can be made."""
        folders = {folder: os.path.realpath(folder) for folder in {*map(os.path.dirname, targets)}}
        for folder in folders.values():
            refuse_fixed(folder)
        first = len(self._staged)
        staged = [
            os.path.join(folders[os.path.dirname(target)], f"{HIDDEN}{self._token}-{number}.tmp")
            for number, target in enumerate(targets, first)
        ]
        relative = relative_to(self.directory)
        if staged:
            self._record(*({"stage": relative(path)} for path in staged))
        self._staged += staged
        self._shown.update(zip(staged, targets, strict=True))
        return staged

    def can_link(self, path: str) -> bool:
        """Whether the file `path` may have a second name: not on every file system, and (protected_hardlinks in
        proc(5)) only for those who own it or may write it."""
        status = os.lstat(path)
        if status.st_uid != os.geteuid() and not os.access(path, os.R_OK | os.W_OK):
            return False
        if status.st_dev not in self._linking:
            self._linking[status.st_dev] = self._try_link(path)
        return self._linking[status.st_dev]

    def _try_link(self, beside: str) -> bool:
        staged = self.stage(beside)
        (other,) = self.stage_all([beside])
        try:
            os.link(staged, other)
        except OSError:
            return False
        return True

    @staticmethod
    def _create(staged: str, copy_of: str | None) -> None:
        fd = os.open(staged, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            if copy_of is not None:
                source = os.open(copy_of, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    copy_file(source, fd)
                finally:
                    os.close(source)
        finally:
            os.close(fd)

    def replace(self, target: str, staged: str) -> None:
        """`staged` becomes `target`, with the owner, permissions and attributes that `target` has. RefusedError as of
        `check_replaceable`."""
        target = os.path.realpath(target)
        check_replaceable(target)
        self._steps.append(Step("replace", staged, target, os.lstat(staged).st_ino, identity(os.lstat(target))))

    def place(self, target: str, staged: str) -> None:
        """`staged` becomes `target`, a new name. ImageExistsError when there is something of that name."""
        if staged not in self._shown:
            check_removable(staged)
        if os.path.lexists(target):
            raise ImageExistsError(f"{printable(target)} already exists", path=target)
        self._steps.append(Step("place", staged, target, os.lstat(staged).st_ino))

    def link(self, source: str, target: str) -> None:
        """`target` becomes a further name of the file `source`, in the same file system."""
        refuse_fixed(source)
        if os.path.lexists(target):
            raise ImageExistsError(f"{printable(target)} already exists", path=target)
        self._steps.append(Step("link", source, target, os.lstat(source).st_ino))

    def remove(self, target: str) -> None:
        """The name `target` goes. When a step before it replaces `target`, nothing is removed."""
        check_removable(target)
        status = os.lstat(target)
        self._steps.append(Step("remove", "", target, status.st_ino, identity(status)))

    def patch(self, target: str, head: bytes, *, by_then: str | None = None) -> None:
        """The file `target`, held before, gets `head` as its first bytes: a header with another reference or anchor,
        while a guest reads the same. `by_then` is its name where the steps before give it another."""
        assert target in self._held, "a file that is patched in place is held"
        target = os.path.realpath(target)
        refuse_fixed(target)
        if not os.access(target, os.W_OK):
            raise RefusedError(
                f"{printable(target)} may not be written", hint="its permissions forbid it", path=target
            )
        status = os.lstat(target)
        old = self._head(target, status.st_ino, len(head))
        self._steps.append(
            Step("patch", "", by_then or target, status.st_ino, data=head, old=old, mtime_ns=status.st_mtime_ns)
        )

    def _head(self, target: str, inode: int, size: int) -> bytes:
        """What the file will begin with when the steps so far are done."""
        with open(target, "rb") as file:
            head = file.read(size).ljust(size, b"\0")
        for step in self._steps:
            if step.verb == "patch" and step.inode == inode:
                head = step.data[:size] + head[len(step.data) :]
        return head

    def commit(self, confirm: Callable[[], None] | None = None) -> None:
        """Puts everything in place. After this returns it is on disk.

        `confirm` is called when no other imgtool can change these directories any more; what it raises stops all.
        Raises before anything changed when a held image is not what it was, or the first step fails; ImageError with
        the way to finish when a later one does, ImageInUseError when another program came between two of them."""
        try:
            for step in self._steps:
                if step.verb == "replace":
                    take_attributes(step.source, step.target)
            sync_all(self._staged)
        except OSError as error:
            raise os_error(error, self.directory, "cannot be written to") from error
        with self.alone(confirm):
            undecided = self._decide()
            try:
                do_all(self._steps)
            except StoppedError as stopped:
                raise self._stopped(stopped, undecided) from stopped.cause
            clear(self.journal, self._staged, done=True)

    def _stopped(self, stopped: StoppedError, undecided: int) -> BaseException:
        """The error for a change that stopped at a step. While names were only added that is taken back, and all is
        as before it was decided, when the journal was `undecided` bytes long; what replaced or removed something
        stays, and the journal with it if the steps that are left can still be done."""
        path = stopped.steps[-1].target
        try:
            if stopped.take_back():
                os.ftruncate(self._journal_fd, undecided)
                self._decided = False
                return self._undone(stopped.cause, path)
        except OSError as worse:
            return unfinished(StoppedError(stopped.steps, worse))
        if not stopped.overtaken:
            return unfinished(stopped)
        clear(self.journal, self._staged, done=True)
        return stopped_at(path)

    @staticmethod
    def _undone(cause: BaseException, path: str) -> BaseException:
        if isinstance(cause, FileExistsError):
            return ImageExistsError(f"{printable(path)} was created by another program", path=path)
        if isinstance(cause, OvertakenError):
            return changed(path)
        return os_error(cause, path, "cannot be put in place") if isinstance(cause, OSError) else cause

    @contextlib.contextmanager
    def alone(self, confirm: Callable[[], None] | None = None) -> Iterator[None]:
        """Inside the `with` block, no other imgtool changes these directories; what is held is what it was, and
        confirmed."""
        with alone_in(self._directories()):
            for held in self._held.values():
                self._check_unchanged(held)
            self._check_unread()
            if confirm is not None:
                confirm()
            yield

    def _decide(self) -> int:
        """From when this record is on disk the change will happen. Returns how long the journal was before it."""
        size = os.fstat(self._journal_fd).st_size
        try:
            self._record(steps_record(self._steps, self.directory))
            os.fsync(self._journal_fd)
            sync(self.directory)
        except (OSError, ImageError) as error:
            with contextlib.suppress(OSError):  # the record may be on disk all the same
                os.ftruncate(self._journal_fd, size)
            if isinstance(error, OSError):
                raise os_error(error, self.directory, "cannot be written to") from error
            raise
        self._decided = True
        return size

    def _directories(self) -> list[str]:
        others = [*self._held, *self._closed, *(step.target for step in self._steps if step.verb != "place")]
        folders = {os.path.dirname(step.target) for step in self._steps if step.verb == "place"}
        return sorted(
            {
                self.directory,
                *(os.path.dirname(os.path.realpath(path)) for path in others),
                *map(os.path.realpath, folders),
            }
        )

    def _check_unchanged(self, held: _Held) -> None:
        try:
            now = identity(os.stat(held.path))
        except FileNotFoundError as error:
            raise gone(held.path) from error
        except OSError as error:
            raise os_error(error, held.path, "cannot be looked at") from error
        if now != held.identity or _head_of(held.fd) != held.head:
            raise changed(held.path)

    def _check_unread(self) -> None:
        """ImageInUseError when a program has opened a held image that is to be replaced or removed: see
        `refuse_in_use`."""
        verbs = {step.was[0]: step.verb for step in self._steps if step.verb in ("replace", "remove")}
        for held in self._held.values():
            verb = verbs.get(held.identity[0])
            if verb is not None and is_open(held.fd):
                users = users_of(held.path)
                raise ImageInUseError(
                    f"{printable(held.path)} is in use{users.by}: it cannot be {verb}d",
                    hint=f"nothing was changed; {users.ending}",
                    path=held.path,
                )

    def _record(self, *lines: dict[str, Any]) -> None:
        try:
            self._write("\n".join(map(json.dumps, lines)).encode())
        except OSError as error:
            raise os_error(error, self.directory, "cannot be written to") from error

    def _write(self, line: bytes) -> None:
        """An incomplete line does not count: see `journal`."""
        if os.write(self._journal_fd, line + b"\n") != len(line) + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        for held in self._held.values():
            os.close(held.fd)
        self._held.clear()
        if self._journal_fd >= 0:
            os.close(self._journal_fd)
            self._journal_fd = -1


def _head_of(fd: int) -> int:
    return hash(os.pread(fd, _HEAD, 0))


def os_error(error: OSError, path: str, what: str) -> ImageError:
    """The error for a file or directory that the system does not let us change as we wanted."""
    if isinstance(error, FileNotFoundError):
        return ImageNotFoundError(f"{printable(path)} does not exist", path=path)
    hint = None
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and os.path.isdir(path):
        hint = "images are changed on a copy beside them, which then takes their place"
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "make room there, and run the command again: images are changed on a copy beside them"
    return ImageError(f"{printable(path)} {what}: {error.strerror}", hint=hint, path=path)
