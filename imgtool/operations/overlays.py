"""Making many overlays of one base at once.

They differ in nothing but their names, so qemu-img makes the first, and the others have its bytes: exactly what
qemu-img would have made, at a fraction of the time.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

from msgspec.structs import replace

from imgtool.chain.graph import Image
from imgtool.chain.scan import absolute as absolute_path
from imgtool.errors import ImageError, ImageExistsError, UsageError
from imgtool.image.names import PathLike, printable
from imgtool.operations.overlay import OverlayRequest
from imgtool.operations.plan import Plan, Touched
from imgtool.qemu.img_argv import OptionValue
from imgtool.qemu.qemu_img import QemuImg

NUMBER = "{n}"
"""Stands in an overlay's name for 1, 2, 3…"""

_BLOCK = 4096


class OverlaysRequest:
    """`count` overlays that may be made: everything about them was looked at and allowed, nothing was changed."""

    def __init__(
        self,
        base: PathLike,
        count: int,
        overlay: PathLike | None = None,
        *,
        options: Mapping[str, OptionValue] | None = None,
        **others: Any,
    ) -> None:
        """`overlay` is a directory, None for that of `base`, or a path with `NUMBER` in its name. All else is as for
        `imgtool.operations.overlay.new_overlay`."""
        given = dict(options or {})
        if "data_file" in given:
            raise UsageError("-o data_file cannot be shared by several overlays", hint="make them one at a time")
        if given.get("preallocation", "off") != "off":
            raise UsageError("several overlays cannot be preallocated", hint="make them one at a time")
        self._pattern = None
        if overlay is not None:
            name = absolute_path(overlay)
            if NUMBER in os.path.basename(name):
                self._pattern = name
                overlay = name.replace(NUMBER, "1")
            elif not os.path.isdir(name):
                raise UsageError(
                    f"{printable(name)} would be the name of {count} overlays",
                    hint=f"write {NUMBER} where their number goes, or give a directory",
                )
        self._first = OverlayRequest(base, overlay, options=given, **others)
        self.base = self._first.base
        self.paths = self._names(count)
        self._first.path = self.paths[0]

    def _names(self, count: int) -> list[str]:
        if self._pattern is None:
            return list(islice(self._first.names(), count))
        folder, name = os.path.split(self._pattern)
        paths = [os.path.join(folder, name.replace(NUMBER, str(number))) for number in range(1, count + 1)]
        taken = set(os.listdir(folder))
        for path in paths:
            if os.path.basename(path) in taken:
                raise ImageExistsError(
                    f"{printable(path)} exists already", hint="choose another name, or a directory", path=path
                )
        return paths

    def plan(self, program: str) -> Plan:
        plan = self._first.plan(program)
        images = [Touched(path=path, action="create") for path in self.paths[1:]]
        notes = [f"the other {len(images)} have the same bytes"] if images else []
        return replace(plan, images=(*plan.images, *images), notes=(*plan.notes, *notes))

    def make(self, qemu_img: QemuImg) -> list[Image]:
        """Makes them, all or, should anything fail, none. Killed half-way there may be some, each of them whole."""
        first = self._first.make(qemu_img)
        try:
            _copy(first.path, self.paths[1:])
        except BaseException:
            os.unlink(first.path)
            raise
        return [replace(first, path=path, actual_size=os.stat(path).st_blocks * 512) for path in self.paths]


def new_overlays(
    base: PathLike, count: int, overlay: PathLike | None = None, *, qemu_img: QemuImg | None = None, **others: Any
) -> list[Image]:
    """Makes `count` overlays of `base`, all or none: see `OverlaysRequest`. Raises as `new_overlay`; ImageExistsError
    when any of the names is taken."""
    return OverlaysRequest(base, count, overlay, **others).make(qemu_img or QemuImg())


def _copy(path: str, copies: list[str]) -> None:
    """Makes files with the bytes of the one at `path`, in its directory, on disk before they appear there. All or,
    when that fails, none."""
    if not copies:
        return
    directory = os.path.dirname(path)
    hidden: str | None = None
    made: list[tuple[str, str]] = []
    try:
        hidden = tempfile.mkdtemp(prefix=".imgtool-", dir=directory)
        write = _writer(path)
        for number in range(len(copies)):
            write(os.path.join(hidden, str(number)))
        _sync(hidden)
        for number, place in enumerate(copies):
            source = os.path.join(hidden, str(number))
            made.append((source, place))
            _appear(source, place)
        _sync_file(directory)
    except BaseException as error:
        _undo(made)
        if isinstance(error, OSError):
            raise ImageError(f"the overlays cannot be made: {error.strerror}", path=directory) from error
        raise
    finally:
        if hidden is not None:
            shutil.rmtree(hidden, ignore_errors=True)


def _writer(path: str) -> Callable[[str], None]:
    """What writes the bytes of the file at `path` into a new one. Blocks of zeros are left out."""
    with open(path, "rb") as file:
        content = file.read()
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    zeros = bytes(_BLOCK)
    pieces = [(at, content[at : at + _BLOCK]) for at in range(0, len(content), _BLOCK)]
    pieces = [(at, piece) for at, piece in pieces if piece != zeros[: len(piece)]]

    def write(place: str) -> None:
        fd = os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
        try:
            os.ftruncate(fd, len(content))
            for at, piece in pieces:
                if os.pwrite(fd, piece, at) != len(piece):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), place)
        finally:
            os.close(fd)

    return write


def _appear(source: str, place: str) -> None:
    """The file `source` gets the name `place` too, which nobody else may have."""
    try:
        os.link(source, place, follow_symlinks=False)
    except FileExistsError:
        raise ImageExistsError(f"{printable(place)} was made by somebody else meanwhile", path=place) from None
    except PermissionError:  # a file system without hard links
        if os.path.lexists(place):
            raise
        os.rename(source, place)


def _undo(made: Iterable[tuple[str, str]]) -> None:
    for source, place in made:
        try:
            ours = not os.path.lexists(source) or os.path.samestat(os.lstat(source), os.lstat(place))
            if ours:
                os.unlink(place)
        except OSError:
            continue


def _sync(directory: str) -> None:
    """Brings the files in the directory to disk, with all else that was written to their file system: a thousand, one
    by one, take a hundred times as long."""
    if not sys.platform.startswith("linux"):
        for name in os.listdir(directory):
            _sync_file(os.path.join(directory, name))
        return
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if libc.syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), directory)
    finally:
        os.close(fd)


def _sync_file(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
