"""What a move means for the images around it: which files get which names, and which references have to follow."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
from msgspec import UNSET

from imgtool.chain.graph import Graph, Image
from imgtool.chain.link import link
from imgtool.chain.scan import absolute
from imgtool.chain.store import Store
from imgtool.errors import ImageExistsError, ImageNotFoundError, RefusedError, UsageError
from imgtool.image.names import PathLike, Paths, pasted, paths_of, printable
from imgtool.operations.overlay import reference_to
from imgtool.operations.relink import Link
from imgtool.qemu.inputs import check_name


class MovedFile(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """A file that lies elsewhere now."""

    path: str
    """Where it was."""
    to: str
    """Where it is."""
    copied: bool
    """Whether it lies on another file system now, or had to be written anew."""


class Followed(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """An image whose header names something else now."""

    path: str
    """As it is called now."""
    backing: str | None
    """The backing file's name in its header."""


class Moved(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What a move did."""

    files: tuple[MovedFile, ...]
    """What lies elsewhere now."""
    followed: tuple[Followed, ...]
    """The images whose headers were changed, so that they still find it."""


class Renamed(NamedTuple):
    """What is renamed, old → new."""

    files: dict[str, str]
    directories: dict[str, str]
    """Those that are made anew and left behind; each after the one it is in."""
    tops: list[str]
    """The directories that were named."""


class Reference(NamedTuple):
    """What an image's header is to say; None where it stays as it is."""

    image: Image
    backing: Link | None
    data_file: str | None
    on_the_way: Link | None
    """The backing file by a name that leads there from both places, for the time between."""
    data_file_on_the_way: str | None


def place_of(path: str) -> tuple[Hashable, str]:
    """Which entry of which directory `path` is: equal for all names of one entry, by symlinks or bind mounts."""
    folder, name = os.path.split(path)
    try:
        status = os.stat(folder)
    except OSError:
        return os.path.realpath(folder), name
    return (status.st_dev, status.st_ino), name


def renamed(sources: Sequence[PathLike], target: PathLike) -> Renamed:
    """The new names for `sources` at, or where it is a directory in, `target`: as of mv(1)."""
    text = os.fsdecode(target)
    goal = absolute(text)
    into = os.path.isdir(goal)
    if not sources:
        raise UsageError("there is nothing to move")
    if not into and (len(sources) > 1 or text.endswith("/")):
        raise ImageNotFoundError(f"there is no directory {printable(goal)}", path=goal, hint="make it first")
    if not into and not os.path.isdir(os.path.dirname(goal)):
        raise ImageNotFoundError(
            f"{printable(goal)} cannot be made", path=goal, hint=f"there is no directory {os.path.dirname(goal)}"
        )
    found = Renamed({}, {}, [])
    for source in sources:
        old = absolute(source)
        new = os.path.join(goal, os.path.basename(old)) if into else goal
        _gather(old, new, found)
    return found


def _gather(old: str, new: str, found: Renamed) -> None:
    for path in (old, new):
        check_name(path)
    shown = printable(old)
    try:
        status = os.lstat(old)
    except OSError as error:
        raise ImageNotFoundError(f"{shown} does not exist", path=old) from error
    if stat.S_ISLNK(status.st_mode):
        raise RefusedError(
            f"{shown} is a symlink", hint=f"move what it leads to: {printable(os.path.realpath(old))}", path=old
        )
    if place_of(old) == place_of(new):
        raise UsageError(f"{shown} would stay where it is", path=old)
    if os.path.lexists(new):
        raise ImageExistsError(f"{printable(new)} already exists", path=new, hint="move or remove it first")
    if stat.S_ISREG(status.st_mode):
        found.files[old] = new
    elif stat.S_ISDIR(status.st_mode):
        if _is_inside(new, old):
            raise UsageError(f"{shown} cannot be moved into itself", path=old)
        found.tops.append(old)
        _gather_tree(old, new, old, found)
    else:
        raise RefusedError(f"{shown} is neither a file nor a directory", path=old)


def _is_inside(path: str, directory: str) -> bool:
    """Whether `path`, which need not exist, is in `directory` or below."""
    above = existing(path)
    while not os.path.samefile(above, directory):
        if above == os.path.dirname(above):
            return False
        above = os.path.dirname(above)
    return True


def _gather_tree(old: str, new: str, top: str, found: Renamed) -> None:
    found.directories[old] = new
    with os.scandir(old) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            target = os.path.join(new, entry.name)
            if entry.is_dir(follow_symlinks=False):
                _gather_tree(entry.path, target, top, found)
            elif entry.is_symlink():
                _check_symlink(entry.path, top)
                found.files[entry.path] = target
            elif entry.is_file(follow_symlinks=False):
                found.files[entry.path] = target
            else:
                raise RefusedError(f"{printable(entry.path)} is neither a file nor a directory", path=entry.path)


def _check_symlink(path: str, top: str) -> None:
    """RefusedError when the symlink at `path`, in the directory `top` that is moved, would lead elsewhere then: when
    it is relative and leads out of it, or absolute and leads into it."""
    text = os.readlink(path)
    goal = os.path.join(os.path.dirname(path), text)
    folder, name = os.path.split(goal)
    place = os.path.realpath(goal) if name in ("", ".", "..") else os.path.join(os.path.realpath(folder), name)
    inside = f"{place}/".startswith(os.path.realpath(top) + "/")
    if inside == os.path.isabs(text):
        raise RefusedError(
            f"{printable(path)} is a symlink that would lead elsewhere afterwards: to {printable(text)}",
            hint=f"make it {'relative' if inside else 'absolute'}, or remove it, first",
            path=path,
        )


def around_of(files: Iterable[str], directories: Sequence[str], stores: Paths) -> Graph:
    """The graph around `files` and all in `directories`: their chains, and whatever may stand on them: in the
    directories of the files' chains, in those beside the `directories`, where imgtool made overlays of them, in
    `stores` and below."""
    found = Store()
    asked = [found.given(path) for path in files]
    for directory in directories:
        found.tree(directory)
    moved = list(found.images)
    found.follow()
    for image in asked:
        for folder in found.directories_of_chain(image):
            found.directory(folder)
    for directory in directories:
        for below in found.directory(os.path.dirname(directory)):
            found.directory(below)
    for store in paths_of(stores):
        found.tree(absolute(store))
    found.remembered(moved)
    found.symlinks()
    found.follow()
    return link(found.images, found.findings(), found.node_of)


class Names:
    """Where everything is after the move."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self._new = {place_of(old): new for old, new in files.items()}

    def moves(self, path: str) -> bool:
        return place_of(path) in self._new

    def after(self, path: str) -> str:
        return self._new.get(place_of(path), path)

    def reference(self, image: Image, parent: Image | None) -> Reference | None:
        """What the header of `image` has to say after the move, None where it says it already. RefusedError where it
        cannot be made to."""
        self._refuse_tree(image)
        backing = self._backing(image, parent)
        data_file = self._data_file(image)
        if backing is None and data_file is None:
            return None
        on_the_way = None
        if backing is not None and image.backing is not None and image.backing.path is not None:
            on_the_way = Link(image.backing.path, backing.format)
        kept = image.data_file.path if data_file is not None and image.data_file is not UNSET else None
        return Reference(image, backing, data_file, on_the_way, kept)

    def _refuse_tree(self, image: Image) -> None:
        """A tree of several files, or one with options, is named as it is, or not at all."""
        backing = image.backing
        if backing is None or not backing.files:
            return
        goes = backing.relative is True and place_of(image.path) != place_of(self.after(image.path))
        if goes or any(self.moves(file) for file in backing.files):
            raise RefusedError(
                f"{printable(image.path)} names its backing file by a tree of options, in which the new name would "
                f"have to stand: {printable(backing.reference)}",
                hint=f"`imgtool chain flatten {pasted(image.path)}` makes it independent",
                path=image.path,
            )

    def _backing(self, image: Image, parent: Image | None) -> Link | None:
        backing = image.backing
        if backing is None or backing.path is None:
            return None
        new_parent, new_image = self.after(backing.path), self.after(image.path)
        text = backing.reference
        relative = backing.relative or not (text.startswith("/") or backing.kind != "file")
        if relative:
            there = os.path.join(os.path.dirname(new_image), _without_protocol(text))
            if backing.kind == "file" and place_of(there) == place_of(new_parent):
                return None
        elif new_parent == backing.path:
            return None
        if backing.kind != "file":
            _refuse_options(image)
        format = backing.format or (parent.format if parent is not None else None) or "raw"
        named = relative and backing.kind == "file" and not self._is_elsewhere(image)
        # the path must depend neither on the current directory nor on the name an image is opened by
        return Link(reference_to(new_parent, os.path.dirname(new_image), absolute=not named), format)

    def _is_elsewhere(self, image: Image) -> bool:
        """Whether the image has names in other directories, where a relative reference would mean another file, or
        may have: hard links that were not found."""
        names = [name for name in image.all_names if not os.path.islink(name)]
        folders = {os.path.realpath(os.path.dirname(name)) for name in image.all_names}
        return len(folders) > 1 or os.stat(image.path).st_nlink > len(names)

    def _data_file(self, image: Image) -> str | None:
        data = image.data_file
        if data is UNSET or data.path is None:
            return None
        new, new_image = self.after(data.path), self.after(image.path)
        if data.reference.startswith("/"):
            return None if new == data.path else new
        there = os.path.join(os.path.dirname(new_image), data.reference)
        return None if place_of(there) == place_of(new) else new


def _without_protocol(text: str) -> str:
    return text.removeprefix("file:")


def _refuse_options(image: Image) -> None:
    """A json: tree may say more than where the file is, which a plain name could not."""
    import json

    assert image.backing is not None
    text = image.backing.reference
    if not text.startswith("json:"):
        return
    known = {"driver", "filename", "file.driver", "file.filename", "file"}
    tree = json.loads(text[5:])
    inner = tree.get("file")
    words = {*tree, *(f"file.{key}" for key in inner)} if isinstance(inner, dict) else set(tree)
    if not words <= known:
        raise RefusedError(
            f"{printable(image.path)} names its backing file with options that would be lost: {printable(text)}",
            hint=f"`imgtool rebase -u -b FILE -F FORMAT {pasted(image.path)}` gives it a plain name first",
            path=image.path,
        )


def allow_open_files(wanted: int) -> None:
    """Raises the limit on open files where possible: a change keeps open every image that it holds."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted + 256:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, wanted + 256), hard))


def files_of(image: Image) -> Iterator[str]:
    """The files that the image refers to."""
    if image.backing is not None and image.backing.path is not None:
        yield image.backing.path
    if image.data_file is not msgspec.UNSET and image.data_file.path is not None:
        yield image.data_file.path


def existing(path: str) -> str:
    """The nearest existing directory above `path`."""
    folder = os.path.dirname(path)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder
