"""Delete: removes an overlay that nothing needs any more, with its external data file if it has one."""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec

from imgtool.chain.graph import Image
from imgtool.errors import RefusedError
from imgtool.image.names import PathLike, Paths, pasted, printable
from imgtool.operations.around import Around, listed, names, refuse_in_use, refuse_sealed
from imgtool.operations.plan import Plan, Touched
from imgtool.operations.replaceable import check_removable
from imgtool.operations.syncing import sync
from imgtool.operations.transaction import Transaction, os_error


class Deleted(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """An overlay that is gone."""

    path: str
    """The overlay."""
    files: tuple[str, ...]
    """Every file that was deleted."""
    freed: int
    """Bytes on the host."""
    notes: tuple[str, ...] = ()
    """What else is good to know, in words."""


class DeleteRequest:
    """A deletion that may be made: every check has passed, and nothing has been changed yet."""

    def __init__(self, overlay: PathLike, *, force: bool = False, store: Paths = (), settle: bool = True) -> None:
        """See `delete`."""
        self.around = around = Around(overlay, store=store, settle=settle, whole=False)
        self.image = image = around.image
        shown = printable(image.path)
        children = around.children(image, but=[image.path])
        refuse_in_use([image], why="it cannot be deleted", even_reading=True)
        if children and not force:
            raise RefusedError(
                f"{names(children)} {'stands' if len(children) == 1 else 'stand'} on {shown}",
                hint=f"{self._way_out(children)}; --force deletes it anyway",
                path=image.path,
            )
        refuse_in_use(children, why=f"it stands on {shown}", even_reading=True)
        if image.backing is None and not force:
            raise RefusedError(
                f"{shown} is not an overlay: it stands on nothing, and its data exists nowhere else",
                hint="--force deletes it anyway",
                path=image.path,
            )
        if image.data_file_of:
            raise RefusedError(
                f"{shown} holds the data of {listed(image.data_file_of)}",
                hint="delete that one instead",
                path=image.path,
            )
        if not force:
            refuse_sealed(image)
        self._refuse_other_names(force)
        self.notes: list[str] = []
        self.files = [image.path, *self._data_file()]
        for file in self.files:
            check_removable(file)

    def _way_out(self, children: list[Image]) -> str:
        """What to do first, so that nothing stands on it any more."""
        child = pasted(children[0].path)
        if self.image.backing is not None and len(children) == 1:
            return f"`imgtool chain shorten --delete {child}` merges it into what stands on it"
        return f"`imgtool chain flatten {child}` makes {'that' if len(children) == 1 else 'one of them'} independent"

    def _refuse_other_names(self, force: bool) -> None:
        others = [name for name in self.image.all_names if name != self.image.path]
        if others and not force:
            raise RefusedError(
                f"{printable(self.image.path)} has other names: {listed(others)}",
                hint="delete those first; --force deletes this one name",
                path=self.image.path,
            )

    def _data_file(self) -> list[str]:
        """Its external data file, if that is certain to be nothing else. A header may name any file of the host."""
        found = self.image.data_file
        if self.image.extents:
            self.notes.append(f"the files that hold its data are left: {listed(self.image.extents)}")
        if not found or found.path is None or not os.path.isfile(found.path):
            return []
        data = self.around.find(found.path)
        if os.path.dirname(os.path.realpath(found.path)) != os.path.dirname(os.path.realpath(self.image.path)):
            why = "it lies in another directory"
        elif os.path.islink(found.path) or data is None or data.format != "raw":
            why = "it is an image by itself"
        elif [user for user in data.data_file_of or () if user != self.image.path] or data.children:
            why = "other images need it"
        else:
            refuse_in_use([data], why="it holds the data of what is to be deleted", even_reading=True)
            return [found.path]
        self.notes.append(f"its data file {printable(found.path)} is left: {why}")
        return []

    def plan(self) -> Plan:
        images = (Touched(path=file, action="delete") for file in self.files)
        return Plan(commands=(), images=tuple(images), notes=tuple(self.notes), total=self._freed())

    def _freed(self) -> int:
        found = [os.lstat(file) for file in self.files]
        return sum(status.st_blocks * 512 for status in found if status.st_nlink == 1)

    def make(self) -> Deleted:
        """Deletes: all the files or none."""
        freed = self._freed()
        if self.files == [self.image.path]:
            _remove_one(self.image.path, self.around.confirm)
        else:
            self._remove_all()
        return Deleted(path=self.image.path, files=tuple(self.files), freed=freed, notes=tuple(self.notes))

    def _remove_all(self) -> None:
        with Transaction(self.image.path) as change:
            change.hold(self.image.path)
            for file in self.files:  # the image before its data, so that it never exists without them
                change.remove(file)
            change.commit(self.around.confirm)


def delete(overlay: PathLike, *, force: bool = False, store: Paths = ()) -> Deleted:
    """Deletes `overlay`, and the external data file beside it unless something else needs that.

    RefusedError when something stands on it, or it is not an overlay, is sealed, or has other names (none of these
    with `force`); ImageInUseError when a program has it open.
    """
    return DeleteRequest(overlay, force=force, store=store).make()


def _remove_one(path: str, confirm: Callable[[], None]) -> None:
    """The name `path` goes, and is gone on disk after this returns. One step needs no journal, so that there is room
    for it on a full disk. Raises as `Transaction.hold`, `remove` and `commit` do."""
    change = Transaction(path)
    try:
        change.hold(path)
        check_removable(path)
        with change.alone(confirm):
            try:
                os.unlink(path)
                sync(os.path.dirname(path))
            except OSError as error:
                raise os_error(error, path, "cannot be removed") from error
    finally:
        change.close()
