"""The quarantine of a directory: what `collect` put away, and how it comes back or goes for good.

It lies in the directory itself, so that nothing is copied; there the images lie below each other as they did, and a
manifest says where from.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Sequence

import msgspec

from imgtool.chain.hidden import KEPT
from imgtool.chain.scan import absolute
from imgtool.errors import ImageError, ImageInUseError, ImageNotFoundError, RefusedError
from imgtool.image.locks import lock_state
from imgtool.image.names import PathLike, pasted, printable
from imgtool.image.users import users_of
from imgtool.operations.alone import if_alone_in
from imgtool.operations.journal import recover
from imgtool.operations.plan import Plan, Touched
from imgtool.operations.syncing import make_folder
from imgtool.operations.transaction import Transaction

MANIFEST = "manifest.json"


class Garbage(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """One file that nothing needs."""

    path: str
    """Where it was when it was found."""
    format: str | None
    """As QEMU calls it; None for what is no image."""
    parent: str | None
    """The image it stands on; None at a base."""
    bytes: int
    """Allocated on the host."""


class Quarantined(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What one run of collect put away: the manifest in the quarantine."""

    id: str
    """By which `chain collect --undo` and `--purge` find it."""
    directory: str
    """The directory that was collected; the files lie below the quarantine as they did below it."""
    made: float
    """Seconds since 1970."""
    files: tuple[Garbage, ...]
    """What was put away."""

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


Batches = list[Quarantined]
"""The document of `chain collect --list --output json`, and of --purge."""


def quarantined(directory: PathLike) -> list[Quarantined]:
    """What lies in the quarantine of `directory`, the oldest first."""
    place = os.path.join(directory_at(directory), KEPT)
    found = []
    try:
        names = sorted(os.listdir(place))
    except OSError:
        return []
    for name in names:
        try:
            with open(os.path.join(place, name, MANIFEST), "rb") as file:
                found.append(msgspec.convert(json.loads(file.read()), Quarantined))
        except (OSError, ValueError):  # msgspec's errors are of these, too
            continue
    return found


def manifest_of(batch: Quarantined) -> bytes:
    """The manifest, by Python's `json`: it writes and reads names that are not UTF-8, which msgspec does not."""
    return json.dumps(msgspec.to_builtins(batch)).encode()


class UndoRequest:
    """A batch that may be brought back, the last one where none is named. Nothing was changed."""

    def __init__(self, directory: PathLike, name: str | None = None) -> None:
        self.box, self.batch = _chosen(directory, name)
        self.places = {self._inside(file.path): file.path for file in self.batch.files}
        for old, new in self.places.items():
            if os.path.lexists(new):
                raise RefusedError(
                    f"{printable(new)} exists again; it is not replaced",
                    hint="move it away first",
                    path=new,
                )
            if not os.path.lexists(old):
                raise ImageNotFoundError(f"{printable(old)} is no longer in the quarantine", path=old)

    def _inside(self, path: str) -> str:
        return os.path.join(self.box, os.path.relpath(path, self.batch.directory))

    def plan(self) -> Plan:
        images = tuple(Touched(path=old, action="rename", to=new) for old, new in self.places.items())
        return Plan(commands=(), images=images, total=self.batch.bytes)

    def make(self) -> Quarantined:
        """Brings it back, all or nothing: what the images stand on first."""
        made: list[str] = []
        depth = {file.path: _depth(file, self.batch.files) for file in self.batch.files}
        order = sorted(self.places, key=lambda old: -depth[self.places[old]])
        try:
            with Transaction(os.path.dirname(self.box)) as change:
                rename_all(change, self.places, order)
                change.remove(os.path.join(self.box, MANIFEST))
                change.commit(lambda: make_folders(map(os.path.dirname, self.places.values()), made))
        except BaseException:
            remove_empty(reversed(made))
            raise
        _clear_box(self.box)
        return self.batch


class PurgeRequest:
    """Batches that may be deleted for good: that of the name, or all. Nothing was changed."""

    def __init__(self, directory: PathLike, name: str | None = None) -> None:
        top = directory_at(directory)
        _settle(top)
        names = [name] if name is not None else [one.id for one in quarantined(top)]
        self.batches = [_chosen(top, one) for one in names]
        for box, batch in self.batches:
            for file in batch.files:
                _refuse_used(os.path.join(box, os.path.relpath(file.path, batch.directory)))

    def plan(self) -> Plan:
        images = [
            Touched(path=os.path.join(box, os.path.relpath(file.path, batch.directory)), action="delete")
            for box, batch in self.batches
            for file in batch.files
        ]
        return Plan(commands=(), images=tuple(images), total=sum(batch.bytes for _, batch in self.batches))

    def make(self) -> list[Quarantined]:
        """Deletes them. The manifest goes last, so that an interrupted run can be repeated."""
        for box, _ in self.batches:
            for folder, names, files in os.walk(box, topdown=False):
                for name in files:
                    if (folder, name) != (box, MANIFEST):
                        os.unlink(os.path.join(folder, name))
                for name in names:
                    os.rmdir(os.path.join(folder, name))
            os.unlink(os.path.join(box, MANIFEST))
            _clear_box(box)
        return [batch for _, batch in self.batches]


def undo(directory: PathLike, name: str | None = None) -> Quarantined:
    """Brings back what the last `collect`, or that of this name, put away."""
    return UndoRequest(directory, name).make()


def purge(directory: PathLike, name: str | None = None) -> list[Quarantined]:
    """Deletes for good what `collect` put away: that of this name, or all of it."""
    return PurgeRequest(directory, name).make()


def _chosen(directory: PathLike, name: str | None) -> tuple[str, Quarantined]:
    """The batch of that name, or the last one: where it lies, and its manifest."""
    top = directory_at(directory)
    _settle(top)
    found = [one for one in quarantined(top) if name is None or one.id == name]
    if not found or "/" in found[-1].id or found[-1].id.startswith("."):
        what = "no quarantine" if name is None else f"nothing of the name {printable(name)} in its quarantine"
        raise ImageNotFoundError(
            f"{printable(top)} has {what}",
            hint=f"`imgtool chain collect --list {pasted(top)}` shows what there is",
            path=top,
        )
    # the directory may have been moved since, with all that is in it
    batch = found[-1]

    def now(path: str) -> str:
        return os.path.normpath(os.path.join(top, os.path.relpath(path, batch.directory)))

    files = tuple(
        msgspec.structs.replace(file, path=now(file.path), parent=None if file.parent is None else now(file.parent))
        for file in batch.files
    )
    if not all(file.path.startswith(top + "/") for file in files):
        raise ImageError(f"the manifest of {printable(batch.id)} cannot be understood", path=top)
    return os.path.join(top, KEPT, batch.id), msgspec.structs.replace(batch, directory=top, files=files)


def _settle(top: str) -> None:
    """Finishes what was interrupted, and removes the empty folders of batches that are gone."""
    recover(top)
    place = os.path.join(top, KEPT)
    with if_alone_in(top) as alone, contextlib.suppress(OSError):
        for name in os.listdir(place) if alone else ():
            if not os.path.lexists(os.path.join(place, name, MANIFEST)):
                _clear_box(os.path.join(place, name))
        if alone:
            remove_empty([place])


def _depth(file: Garbage, files: Sequence[Garbage]) -> int:
    """How many of `files` lie below it."""
    parents = {one.path: one.parent for one in files}
    here, count = file.parent, 0
    while here in parents and count < len(files):
        here, count = parents[here], count + 1
    return count


def _refuse_used(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return
    try:
        if lock_state(fd) is not None:
            raise ImageInUseError(f"{printable(path)} is in use", hint=users_of(path).ending, path=path)
    finally:
        os.close(fd)


def _clear_box(box: str) -> None:
    """Takes away the folders of an empty batch, and the quarantine with the last one."""
    for folder, names, _ in os.walk(box, topdown=False):
        remove_empty(os.path.join(folder, name) for name in names)
    remove_empty([box, os.path.dirname(box)])


def rename_all(change: Transaction, places: dict[str, str], order: Sequence[str]) -> None:
    """Every file gets its new name before any loses its old one, and loses it before the file it stands on does.
    Where a file cannot have two names it goes from the one to the other, what stands on it before."""
    linked = {old for old in order if change.can_link(old)}
    for old in reversed(order):
        if old in linked:
            change.link(old, places[old])
    for old in order:
        if old in linked:
            change.remove(old)
        else:
            change.place(places[old], old)


def directory_at(path: PathLike) -> str:
    found = absolute(path)
    if not os.path.isdir(found):
        raise ImageNotFoundError(f"{printable(found)} is not a directory", path=found)
    return os.path.realpath(found)


def make_folders(folders: Iterable[str], made: list[str]) -> None:
    """Makes the `folders`, and notes in `made` what was not there."""
    for folder in folders:
        try:
            make_folder(folder, made.append)
        except OSError as error:
            raise ImageError(f"{printable(folder)} cannot be made: {error.strerror}", path=folder) from error


def remove_empty(folders: Iterable[str]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            os.rmdir(folder)
