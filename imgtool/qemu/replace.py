"""Making a file that appears under its name only when it is complete and on disk, whatever happens meanwhile.

The work is done under a hidden name in the target's own directory, next to a lock file held with flock(2) for as long
as this process lives; what a killed process left behind is held by nobody, and the next run for the same target takes
it away, as does whoever makes or changes another image there (`clear_left`). The lock is on a file of its own because
on NFS flock(2) would collide with QEMU's locks on the image.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator

from imgtool.errors import (
    ImageError,
    ImageExistsError,
    ImageInUseError,
    ImageNotFoundError,
    RefusedError,
)
from imgtool.image.attributes import refuse_fixed
from imgtool.image.names import HIDDEN, PathLike, absolute, printable
from imgtool.qemu.inputs import in_use
from imgtool.qemu.process import hint_of

_LOCK = ".lock"


@contextlib.contextmanager
def replacing(target: PathLike, *, overwrite: bool = False, several_files: bool = False) -> Iterator[str]:
    """Yields the path to write instead of `target`; at the end of the `with` block, what was written there becomes
    `target` at once.

    The path is an empty file, which no ordinary error leaves behind. With `several_files` it is a name that does not
    exist yet, the target's own, in a hidden directory: other files made beside it are moved before it, and it last.
    The permissions of a file that is replaced stay; a target that is a symlink stays one.

    ImageExistsError when `target` exists and not `overwrite`; ImageInUseError when a QEMU program holds it or another
    imgtool is making it; RefusedError when what stands in the way cannot be replaced in one step.
    """
    given = absolute(target)
    final = os.path.realpath(given) if os.path.islink(given) and overwrite else given
    clear_left(os.path.dirname(final))
    _check_target(final, overwrite)
    work = _Work(final, several_files)
    with _held(work):
        try:
            with _said(final):
                place = work.start(_status(final))
            yield place
            _check_target(final, overwrite)
            with _said(final):
                work.finish(overwrite)
        finally:
            work.clear()


def clear_left(directory: str) -> None:
    """Takes away what runs of this user that were killed left of images they were making in `directory`."""
    try:
        names = [name for name in os.listdir(directory) if name.startswith(HIDDEN) and name.endswith(_LOCK)]
    except OSError:
        return
    for name in names:
        lock = os.path.join(directory, name)
        with contextlib.suppress(OSError), _unheld(lock) as is_left:
            if is_left:
                work = _work_of(lock)
                work.clear()
                os.unlink(work.lock)


def _work_of(lock: str) -> _Work:
    """The work whose lock file that is. Of an image of several files its name is told by what is left of it, and has
    to be known to find those that were moved already."""
    stem = lock.removesuffix(_LOCK)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for name in os.listdir(f"{stem}.d"):
            work = _Work(os.path.join(os.path.dirname(lock), name), several_files=True)
            if work.lock == lock:
                return work
    return _Work(lock, several_files=False, stem=stem)


@contextlib.contextmanager
def _unheld(lock: str) -> Iterator[bool]:
    """Whether the lock file is this user's and nobody held it; now we do."""
    fd = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = os.fstat(fd)
        yield status.st_uid == os.geteuid() and os.path.samestat(status, os.lstat(lock))
    finally:
        os.close(fd)


@contextlib.contextmanager
def _said(final: str) -> Iterator[None]:
    """Turns errors of the file system (no space, no permission) into errors about `final`."""
    try:
        yield
    except OSError as error:
        raise ImageError(
            f"{printable(final)} cannot be made: {error.strerror}", hint=hint_of(error.errno), path=final
        ) from error


def _status(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def exists_already(path: str, status: os.stat_result) -> ImageExistsError:
    """The error for a new file whose name is taken by the file of this status."""
    replaceable = ", or --force to replace it" if stat.S_ISREG(status.st_mode) else ""
    return ImageExistsError(f"{printable(path)} already exists", hint=f"choose another name{replaceable}", path=path)


def _check_target(final: str, overwrite: bool) -> None:
    shown = printable(final)
    folder = os.path.dirname(final)
    refuse_fixed(folder)
    try:
        status = _status(final)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no file can have that name"
        raise ImageError(f"{shown} cannot be made: {reason}", path=final) from error
    if status is None:
        if not os.path.isdir(folder):
            raise ImageNotFoundError(
                f"{shown} cannot be made", hint=f"there is no directory {printable(folder)}", path=final
            )
        return
    if not overwrite:
        raise exists_already(final, status)
    if not stat.S_ISREG(status.st_mode):
        raise RefusedError(f"{shown} is no regular file and cannot be replaced by one", path=final)
    refuse_fixed(final)
    busy = in_use(final, write=True)
    if busy is not None:
        raise busy


class _Work:
    """The hidden names beside one target, and the steps from them to it."""

    def __init__(self, final: str, several_files: bool, *, stem: str | None = None) -> None:
        """`stem`, the beginning of the hidden names, follows from `final` unless that is not known."""
        import hashlib  # not by who only looks at images

        folder, self.name = os.path.split(final)
        if stem is None:
            # A hash: the name may be as long as names can be. Always the same: so the next run finds what was left.
            mark = hashlib.blake2b(os.fsencode(self.name), digest_size=8).hexdigest()
            stem = os.path.join(folder, HIDDEN + mark)
        self.folder = folder
        self.final = final
        self.several_files = several_files
        self.lock = stem + _LOCK
        self.file = f"{stem}.tmp"
        self.directory = f"{stem}.d"
        self.path = os.path.join(self.directory, self.name) if several_files else self.file
        self._open: int | None = None
        """Held as long as the file is worked on: if the disk fails to take what a program wrote, the kernel might
        forget that with a file which nobody has open, and fsync would say nothing of it."""

    def start(self, replaced: os.stat_result | None) -> str:
        """Makes the place to work in. O_EXCL: nobody's symlink is followed."""
        if self.several_files:
            os.mkdir(self.directory)
            return self.path
        mode = 0o644 if replaced is None else stat.S_IMODE(replaced.st_mode) | 0o600
        self._open = os.open(self.file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
        return self.path

    def finish(self, overwrite: bool) -> None:
        if overwrite:
            _keep_permissions(self.final, self.path)
        for name in self._others():
            _sync(os.path.join(self.directory, name))
        _sync(self.path)
        self._move_others()
        self._move(self.path, self.final, overwrite)
        _sync(self.folder)

    def _others(self) -> list[str]:
        return sorted(set(os.listdir(self.directory)) - {self.name}) if self.several_files else []

    def _move_others(self) -> None:
        """The files beside the image go first, so that whenever the image is there they are too. Their names are on
        disk before, so that the next run can take them away if it never comes to be."""
        others = self._others()
        for name in others:
            place = os.path.join(self.folder, name)
            if os.path.lexists(place):
                raise ImageExistsError(
                    f"{printable(place)} already exists, which {printable(self.name)} would consist of",
                    hint="remove it, or choose another name",
                    path=place,
                )
        if others:
            with open(self.lock, "r+b") as record:
                record.write(b"\0".join(os.fsencode(name) for name in others))
                record.flush()
                os.fsync(record.fileno())
            _sync(self.folder)
        for name in others:
            self._move(os.path.join(self.directory, name), os.path.join(self.folder, name), overwrite=False)

    def _move(self, source: str, place: str, overwrite: bool) -> None:
        if overwrite:
            os.rename(source, place)
            return
        try:
            os.link(source, place, follow_symlinks=False)  # unlike rename(2), it never replaces
            os.unlink(source)
        except FileExistsError:
            raise ImageExistsError(f"{printable(place)} was created by another program", path=place) from None
        except OSError:  # a file system without hard links
            os.rename(source, place)

    def clear(self) -> None:
        """Takes away whatever is unfinished: this run's or, before `start`, that of a run that was killed."""
        if self._open is not None:
            os.close(self._open)
            self._open = None
        for place in [*self._moved(), self.path, self.file]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(place)
        with contextlib.suppress(FileNotFoundError):
            from shutil import rmtree

            rmtree(self.directory)

    def _moved(self) -> list[str]:
        """The files that were moved for an image which then did not follow them."""
        image = os.path.join(self.directory, self.name)
        if not os.path.lexists(image) or _same(image, self.final):
            return []
        with open(self.lock, "rb") as record:
            names = [os.fsdecode(name) for name in record.read().split(b"\0") if name]
        inside = [os.path.join(self.directory, name) for name in names]
        places = [os.path.join(self.folder, name) for name in names]
        return [place for name, place in zip(inside, places, strict=True) if _gone(name) or _same(name, place)]


def _gone(path: str) -> bool:
    return not os.path.lexists(path)


def _same(path: str, other: str) -> bool:
    """Whether both are one file: a move is a link and an unlink, and may have been stopped between."""
    one, two = _status(path), _status(other)
    return one is not None and two is not None and os.path.samestat(one, two)


@contextlib.contextmanager
def _held(work: _Work) -> Iterator[None]:
    """Holds the lock of `work`, without anything of an earlier run left there."""
    fd = _lock(work)
    try:
        with _said(work.final):
            work.clear()
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(work.lock)
        os.close(fd)


def _lock(work: _Work) -> int:
    while True:
        try:
            fd = os.open(work.lock, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ImageError(
                f"{printable(work.final)} cannot be made: {error.strerror}",
                hint=hint_of(error.errno) or f"is {printable(work.folder)} writable?",
                path=work.final,
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise ImageInUseError(
                f"{printable(work.final)} is being made by another imgtool",
                hint="wait for it to end",
                path=work.final,
            ) from None
        # Between open and flock its last holder may have taken the file away, and another made a new one.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), os.lstat(work.lock)):
                return fd
        os.close(fd)


def _keep_permissions(final: str, path: str) -> None:
    """The new file keeps the old one's mode, and its owner where we may change owners."""
    status = _status(final)
    if status is None:
        return
    with contextlib.suppress(PermissionError):
        os.chown(path, status.st_uid, status.st_gid)
    os.chmod(path, stat.S_IMODE(status.st_mode))


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
