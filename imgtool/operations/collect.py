"""Collect: images that nothing needs go into a quarantine (operations/quarantine.py).

Needed is what is on the keep list, what a program has open, what images outside of the directory stand on, and all
that these stand on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator

import msgspec

from imgtool.chain.graph import Graph, Image
from imgtool.chain.hidden import KEPT
from imgtool.chain.link import link
from imgtool.chain.scan import absolute
from imgtool.chain.store import Store
from imgtool.errors import ImageNotFoundError, RefusedError, UsageError
from imgtool.image.names import HIDDEN, PathLike, Paths, paths_of, printable
from imgtool.operations.journal import recover
from imgtool.operations.meanwhile import stood_on
from imgtool.operations.moving import allow_open_files
from imgtool.operations.plan import Plan, Touched
from imgtool.operations.quarantine import (
    MANIFEST,
    Garbage,
    Quarantined,
    directory_at,
    make_folders,
    manifest_of,
    remove_empty,
    rename_all,
)
from imgtool.operations.transaction import Transaction


class Collected(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The answer of a run."""

    id: str | None
    """By which `undo` and `purge` find it; None when there was nothing to put away."""
    files: tuple[Garbage, ...]
    """What was put away."""
    kept: int
    """Images in the directory that are needed."""


class CollectRequest:
    """The files of a directory that may be quarantined. Nothing has been changed yet."""

    def __init__(
        self,
        directory: PathLike,
        *,
        keep: Paths,
        needed: Paths = (),
        store: Paths = (),
        settle: bool = True,
    ) -> None:
        """See `collect`."""
        self.directory = directory_at(directory)
        if not keep:
            raise UsageError(
                "no image to keep was named, so everything would be collected",
                hint="--keep IMAGE, once for each image that is needed; what they stand on is kept with them",
            )
        if settle:
            for folder in [self.directory, *_folders(self.directory)]:
                recover(folder)
        self._store = paths_of(store)
        found = Store()
        found.tree(self.directory)  # first: what is in it goes by the name it has there
        kept = [self._kept(found, path) for path in paths_of(keep)]
        kept += [found.given(absolute(path)) for path in paths_of(needed) if os.path.exists(path)]
        graph = self._graph(found)
        _refuse_unseen(graph)
        needs = self._needed(graph, kept)
        inside = [image for image in graph.images if self._is_inside(image)]
        self.kept = sum(image.path in needs for image in inside)
        self.garbage = [image for image in inside if image.path not in needs]
        for image in self.garbage:
            self._refuse_linked(image)

    def _graph(self, found: Store) -> Graph:
        for other in self._store:
            found.tree(absolute(other))
        found.remembered()
        found.symlinks()
        found.follow()
        return link(found.images, found.findings(), found.node_of)

    def _confirm(self) -> None:
        """ImageInUseError when something that stays stands on what goes: made since that was looked at."""
        found = Store()
        found.tree(self.directory)
        going = {image.path for image in self.garbage}
        for image in self._graph(found).images:
            if image.parent in going and image.path not in going:
                raise stood_on(image.parent)

    def _kept(self, found: Store, path: PathLike) -> Image:
        image = found.given(absolute(path))
        if image.has("missing"):
            raise ImageNotFoundError(
                f"{printable(image.path)} is to be kept, but does not exist",
                hint="what it stood on would be taken for unneeded; leave it out if that is right",
                path=image.path,
            )
        for problem in image.findings:
            if problem.code in ("not-a-file", "malformed", "reference-malformed"):
                raise RefusedError(
                    f"{printable(image.path)} is to be kept, but what it stands on is not known: {problem.message}",
                    hint="name images; what they stand on is kept with them",
                    path=image.path,
                )
        return image

    def _needed(self, graph: Graph, kept: Iterable[Image]) -> set[str]:
        by_path = graph.by_path()
        holding: dict[str, list[str]] = {}
        for file in graph.images:
            for owner in file.data_file_of or ():
                holding.setdefault(owner, []).append(file.path)
        waiting = [image.path for image in kept]
        waiting += [image.path for image in graph.images if image.in_use is not None]
        waiting += [
            image.path
            for image in graph.images
            if image.format is not None and not self._is_inside(image) and image.path.startswith("/")
        ]
        needed: set[str] = set()
        while waiting:
            image = by_path.get(waiting.pop())
            if image is None or image.path in needed:
                continue
            needed.add(image.path)
            waiting += [image.parent] if image.parent is not None else []
            waiting += (image.backing and image.backing.files) or ()
            waiting += [*holding.get(image.path, ()), *(image.data_file_of or ())]
        return needed

    def _is_inside(self, image: Image) -> bool:
        return image.path.startswith(self.directory + "/") and os.path.isfile(image.path)

    @staticmethod
    def _refuse_linked(image: Image) -> None:
        for name in image.all_names:
            if os.path.islink(name):
                raise RefusedError(
                    f"{printable(name)} is a symlink to {printable(image.path)}, which nothing needs",
                    hint="remove the symlink first, or keep the image",
                    path=image.path,
                )

    def files(self) -> tuple[Garbage, ...]:
        return tuple(
            Garbage(path=image.path, format=image.format, parent=image.parent, bytes=image.actual_size or 0)
            for image in self.garbage
        )

    def plan(self) -> Plan:
        where = os.path.join(self.directory, KEPT)
        return Plan(
            commands=(),
            images=tuple(
                Touched(
                    path=file.path,
                    action="rename",
                    to=os.path.join(where, os.path.relpath(file.path, self.directory)),
                )
                for file in self.files()
            ),
            notes=(f"needed, and staying: {self.kept}",),
            total=sum(file.bytes for file in self.files()),
        )

    def make(self) -> Collected:
        """Quarantines them, all or none."""
        files = self.files()
        if not files:
            return Collected(id=None, files=(), kept=self.kept)
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        name = f"{stamp}-{os.urandom(2).hex()}"
        box = os.path.join(self.directory, KEPT, name)
        manifest = Quarantined(id=name, directory=self.directory, made=time.time(), files=files)
        allow_open_files(len(files))
        made: list[str] = []
        places = {file.path: os.path.join(box, os.path.relpath(file.path, self.directory)) for file in files}
        try:
            with Transaction(os.path.join(self.directory, KEPT)) as change:
                for image in self.garbage:
                    change.hold(image.path)
                note = change.stage(os.path.join(self.directory, MANIFEST))
                with open(note, "wb") as file:
                    file.write(manifest_of(manifest))
                change.place(os.path.join(box, MANIFEST), note)
                rename_all(change, places, _tops_first(self.garbage))
                change.commit(lambda: self._make_folders(box, places, made))
        except BaseException:
            remove_empty(reversed(made))
            raise
        return Collected(id=name, files=files, kept=self.kept)

    def _make_folders(self, box: str, places: dict[str, str], made: list[str]) -> None:
        self._confirm()
        make_folders([box, *map(os.path.dirname, places.values())], made)


def collect(
    directory: PathLike,
    *,
    keep: Paths,
    needed: Paths = (),
    store: Paths = (),
) -> Collected:
    """Moves the images in `directory` and below that nobody needs into quarantine. Needed are the images of `keep`,
    the files of `needed` (they need not exist), images that a program has open, those that an image outside the
    directory stands on (looked for in `store`, and where imgtool itself made such images), and whatever all these
    stand on.

    UsageError without `keep`; ImageNotFoundError when an image of `keep` is not there; RefusedError when a symlink
    leads to an image that would go.
    """
    return CollectRequest(directory, keep=keep, needed=needed, store=store).make()


def _refuse_unseen(graph: Graph) -> None:
    """RefusedError when some images may have unknown backing files, which would then be taken for unneeded."""
    for problem in (*graph.findings, *(found for image in graph.images for found in image.findings)):
        if problem.code in ("unreadable-directory", "unreadable-files", "unreadable"):
            raise RefusedError(
                f"{problem.message}; what stands on what is not known",
                hint="run the command as a user who can read it, or move it away",
            )


def _tops_first(images: Iterable[Image]) -> list[str]:
    return [image.path for image in sorted(images, key=lambda image: -(image.depth or 0))]


def _folders(directory: str) -> Iterator[str]:
    for folder, names, _ in os.walk(directory):
        names[:] = [name for name in names if not name.startswith(HIDDEN)]
        yield from (os.path.join(folder, name) for name in names)
