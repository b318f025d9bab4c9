"""Making many overlays of one base at once.

They differ only in their names, so qemu-img makes the first and the others get its bytes: exactly what qemu-img
would have made, in a fraction of the time.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from msgspec.structs import replace

from imgtool.chain.graph import Image
from imgtool.chain.look import Looker
from imgtool.chain.scan import absolute as absolute_path
from imgtool.errors import ImageError, ImageExistsError, UsageError
from imgtool.image.names import PathLike, printable
from imgtool.operations.anchoring import add_anchor_if_room
from imgtool.operations.overlay import FORMAT, OverlayRequest
from imgtool.operations.plan import Plan, Touched
from imgtool.operations.transaction import Transaction
from imgtool.qemu.img_argv import OptionValue
from imgtool.qemu.qemu_img import QemuImg
from imgtool.sizes import Size

NUMBER = "{n}"
"""Stands in an overlay's name for 1, 2, 3…"""

_BLOCK = 4096


class OverlaysRequest:
    """`count` overlays that may be made: every check has passed, and nothing has been changed yet."""

    def __init__(
        self,
        base: PathLike,
        count: int,
        overlay: PathLike | None = None,
        *,
        options: Mapping[str, OptionValue] | None = None,
        **others: Any,
    ) -> None:
        """See `new_overlays`."""
        given = dict(options or {})
        if "data_file" in given:
            raise UsageError("-o data_file cannot be shared by several overlays", hint="make them one at a time")
        if given.get("preallocation", "off") != "off":
            raise UsageError("several overlays cannot be preallocated", hint="make them one at a time")
        self._pattern = None
        if overlay is not None:
            name = absolute_path(overlay)
            folder, last = os.path.split(name)
            if NUMBER in last:
                self._pattern = name
                overlay = os.path.join(folder, last.replace(NUMBER, "1"))
            elif not os.path.isdir(name):
                raise UsageError(
                    f"{printable(name)} would be the name of {count} overlays",
                    hint=f"write {NUMBER} where their number goes, or give a directory",
                )
        self._first = OverlayRequest(base, overlay, options=given, **others)
        self.base, self.base_format = self._first.base, self._first.base_format
        self.paths = self._names(count)

    def _names(self, count: int) -> list[str]:
        if self._pattern is None:
            self._first.path = None
            return list(islice(self._first.names(), count))
        folder, name = os.path.split(self._pattern)
        paths = [os.path.join(folder, name.replace(NUMBER, str(number))) for number in range(1, count + 1)]
        taken = set(os.listdir(folder))
        for path in paths:
            if os.path.basename(path) in taken:
                raise ImageExistsError(
                    f"{printable(path)} already exists", hint="choose another name, or a directory", path=path
                )
        return paths

    def plan(self, program: str) -> Plan:
        self._first.path = self.paths[0]
        plan = self._first.plan(program)
        images = [Touched(path=path, action="create") for path in self.paths[1:]]
        others = "the other one has" if len(images) == 1 else f"the other {len(images)} have"
        notes = [f"{others} the same bytes"] if images else []
        return replace(plan, images=(*plan.images, *images), notes=(*plan.notes, *notes))

    def make(self, qemu_img: QemuImg) -> list[Image]:
        """Makes them, all or, should anything fail, none. Killed half-way there are none, or some and a journal from
        which the next run in that directory makes the others."""
        while True:
            try:
                return self._make(qemu_img)
            except ImageExistsError:
                if self._pattern is not None:
                    raise
                self.paths = self._names(len(self.paths))  # another process was faster

    def _make(self, qemu_img: QemuImg) -> list[Image]:
        first = self._first
        with Transaction(self.paths[0]) as change:
            staged = [change.stage(self.paths[0]), *change.stage_all(self.paths[1:])]
            qemu_img.create_over(
                staged[0],
                first.size,
                format=FORMAT,
                backing=first.reference,
                backing_format=first.base_format,
                opens_backing=True,
                options=first.options,
            )
            try:
                if first.anchor:
                    add_anchor_if_room(staged[0], first.base)
                _copy(staged[0], staged[1:])
            except OSError as error:
                raise ImageError(f"the overlays cannot be made: {error.strerror}", path=first.directory) from error
            for path, made in zip(self.paths, staged, strict=True):
                change.place(path, made)
            change.close_to_others(first.base)
            change.commit(first.seen.confirm)
        image, _ = Looker().at(self.paths[0])
        image.parent, image.depth = first.base, first.depth
        return [replace(image, path=path, actual_size=os.stat(path).st_blocks * 512) for path in self.paths]


def new_overlays(
    base: PathLike,
    count: int,
    overlay: PathLike | None = None,
    *,
    absolute: bool = False,
    size: Size | None = None,
    options: Mapping[str, OptionValue] | None = None,
    base_format: str | None = None,
    allow_smaller: bool = False,
    anchor: bool = True,
    force: bool = False,
    qemu_img: QemuImg | None = None,
) -> list[Image]:
    """Makes `count` qcow2 overlays of `base`, all or none, much faster than one at a time. Returns them in the
    order of their numbers.

    `overlay` is a path with `{n}` in its name, which stands for 1, 2, 3…, or a directory in which free names are
    chosen; None is the directory of `base`. All else is as for `new_overlay`, which also says what is raised;
    ImageExistsError when any of the names is taken, UsageError for options that several overlays cannot share.
    """
    request = OverlaysRequest(
        base,
        count,
        overlay,
        absolute=absolute,
        size=size,
        options=options,
        base_format=base_format,
        allow_smaller=allow_smaller,
        anchor=anchor,
        force=force,
    )
    return request.make(qemu_img or QemuImg())


def _copy(path: str, copies: list[str]) -> None:
    """Makes files with the bytes of the one at `path`."""
    write = _writer(path)
    for place in copies:
        write(place)


def _writer(path: str) -> Callable[[str], None]:
    """What writes the bytes of the file at `path` into a new one. Blocks of zeros are skipped."""
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
