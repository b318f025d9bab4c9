"""Move: images or whole directories get new names, and every reference to them follows.

At every moment every image reads right. Where it can be, a moved file has both names for a while: the new one is made
first, then the headers of its overlays are written, then the old one goes. An image whose own reference has to change
names its backing file absolutely in between, which is right from both places.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable

import msgspec

from imgtool.chain.graph import Graph, Image
from imgtool.chain.scan import absolute
from imgtool.errors import ImageError, RefusedError
from imgtool.image.names import PathLike, Paths, paths_of, printable
from imgtool.image.policy import current
from imgtool.image.remembered import remember
from imgtool.operations.around import refuse_in_use, refuse_sealed
from imgtool.operations.copying import copy_file
from imgtool.operations.journal import can_be_linked, recover
from imgtool.operations.meanwhile import changed
from imgtool.operations.moving import (
    Followed,
    Moved,
    MovedFile,
    Names,
    Reference,
    allow_open_files,
    around_of,
    existing,
    files_of,
    place_of,
    renamed,
)
from imgtool.operations.plan import Plan, Touched
from imgtool.operations.relink import (
    can_be_patched,
    head_of,
    name_in_copy,
    refuse_not_renamable,
    rename_backing,
)
from imgtool.operations.replaceable import check_removable
from imgtool.operations.syncing import make_folder
from imgtool.operations.transaction import Transaction
from imgtool.qemu import img_argv
from imgtool.qemu.img_argv import Verbatim
from imgtool.qemu.qemu_img import QemuImg

Progress = Callable[[float], None]


class MoveRequest:
    """A move that may be made: every check has passed, and nothing has been changed yet."""

    def __init__(
        self,
        sources: Paths,
        target: PathLike,
        *,
        store: Paths = (),
        settle: bool = True,
    ) -> None:
        """See `move`."""
        sources = paths_of(sources)
        if settle:
            for source in sources:
                recover(os.path.dirname(absolute(source)))
        self.renamed = renamed(sources, target)
        finished = [path for directory in self.renamed.directories if settle for path in recover(directory)]
        if finished:
            self.renamed = renamed(sources, target)
        self._store = store
        graph = self._look()
        self._add_data_files(graph.by_path())
        self.by_path = graph.by_path()
        self.names = Names(self.files)
        self.images = [image for image in graph.images if self.names.moves(image.path)]
        self.references = self._references(graph)
        self._refuse()
        self._trusted = self._find_trusted()
        self.copied = {old for old, new in self.renamed.files.items() if self._must_copy(old, new)}

    def _look(self) -> Graph:
        named = [path for path in self.files if os.path.dirname(path) not in self.renamed.directories]
        return around_of(named, self.renamed.tops, self._store)

    @property
    def files(self) -> dict[str, str]:
        return self.renamed.files

    def _add_data_files(self, by_path: dict[str, Image]) -> None:
        """The external data file of an image that goes to another directory goes with it, if it lies beside it and
        is nobody else's."""
        files = self.files
        for old, new in list(files.items()):
            image = by_path.get(old)
            if image is None or image.data_file is msgspec.UNSET or image.data_file.path is None:
                continue
            path = image.data_file.path
            data = by_path.get(path)
            beside = os.path.realpath(os.path.dirname(path)) == os.path.realpath(os.path.dirname(old))
            leaves = os.path.realpath(os.path.dirname(new)) != os.path.realpath(os.path.dirname(old))
            if path in files or data is None or not beside or not leaves or len(data.data_file_of or ()) != 1:
                continue
            if os.path.isfile(path) and not os.path.islink(path):
                files.update(renamed([path], os.path.join(os.path.dirname(new), os.path.basename(path))).files)

    def _references(self, graph: Graph) -> list[Reference]:
        found = []
        by_path = graph.by_path()
        for image in graph.images:
            if image.format is None:
                continue
            parent = by_path.get(image.parent) if image.parent is not None else None
            reference = self.names.reference(image, parent)
            if reference is not None:
                found.append(reference)
        return found

    def _find_trusted(self) -> list[tuple[str, str]]:
        """(image, file it refers to), as they will be called, of those whose references the policy allows as they
        are. Moving an image does not make a forbidden reference allowed."""
        policy = current()
        changed = [one.image for one in self.references]
        wanted = {image.path: image for image in (*self.images, *changed)}
        return [
            (self.names.after(image.path), self.names.after(file))
            for image in wanted.values()
            for file in files_of(image)
            if policy.allows_file(file, directory=os.path.dirname(image.path))
        ]

    def _refuse(self) -> None:
        for image in self.images:
            self._refuse_unmovable(image)
            check_removable(image.path)
        refuse_in_use(self.images, why="it cannot be moved", even_reading=True)
        for reference in self.references:
            image = reference.image
            refuse_in_use([image], why="its reference cannot follow", even_reading=True)
            if not self.names.moves(image.path) or not self._must_copy(image.path, self.names.after(image.path)):
                refuse_sealed(image)
            if reference.backing is not None:
                refuse_not_renamable(image)
            if reference.data_file is not None and not can_be_patched(image.path):
                raise RefusedError(
                    f"{printable(image.path)} has no room in its header for the new name of its data file",
                    path=image.path,
                )
            if image.has("backing-ambiguous"):
                found = next(found for found in image.findings if found.code == "backing-ambiguous")
                raise RefusedError(f"{printable(image.path)} cannot follow: {found.message}", path=image.path)
            if image.backing is not None and image.backing.path is not None:
                self._refuse_named_by_link(image, image.backing.path)

    def _refuse_unmovable(self, image: Image) -> None:
        for name in image.all_names:
            if os.path.islink(name) and not self.names.moves(name):
                raise RefusedError(
                    f"{printable(name)} is a symlink to {printable(image.path)}, and would lead nowhere",
                    hint="remove it first, and create it again afterwards",
                    path=image.path,
                )
        for owner in image.data_file_of or ():
            if self.by_path[owner].extents and not self.names.moves(owner):
                raise RefusedError(
                    f"{printable(image.path)} is a part of {printable(owner)}, which names it",
                    hint="move both, or their directory",
                    path=image.path,
                )
        if image.format is None:
            return
        if image.has("data-file-missing") and image.has("depends-on-cwd"):
            raise RefusedError(
                f"{printable(image.path)} names a data file that is not in its directory: QEMU finds it only when "
                f"started where that file lies",
                hint="move the data file into the image's directory first",
                path=image.path,
            )
        for extent in image.extents or ():
            if not self.names.moves(extent):
                raise RefusedError(
                    f"{printable(image.path)} consists of several files, of which not all are moved",
                    hint="move all of them, or their directory",
                    path=image.path,
                )

    def _refuse_named_by_link(self, image: Image, name: str) -> None:
        node = self.by_path.get(name)
        if node is not None and os.path.islink(name) and self.names.moves(node.path) and not self.names.moves(name):
            raise RefusedError(
                f"{printable(image.path)} names {printable(node.path)} by the symlink {printable(name)}",
                hint="remove the symlink, and `imgtool rebase -u` the image, first",
                path=image.path,
            )

    def _must_copy(self, old: str, new: str) -> bool:
        """Whether the file cannot just get another name: it goes to another file system, or its header has to change
        and cannot be written in one go."""
        if os.lstat(old).st_dev != os.stat(existing(new)).st_dev or not can_be_linked(old):
            return True
        changes = any(place_of(one.image.path) == place_of(old) for one in self.references)
        return changes and not can_be_patched(old)

    def plan(self, program: str) -> Plan:
        images = [
            Touched(path=old, action="rename", to=new, bytes=os.lstat(old).st_size if old in self.copied else None)
            for old, new in self.files.items()
        ]
        commands, notes = [], []
        for reference in self.references:
            image, backing = reference.image, reference.backing
            moved, patched = self.names.moves(image.path), can_be_patched(image.path)
            if not moved:
                images.append(Touched(path=image.path, action="write" if patched else "replace"))
            if backing is None:
                notes.append(f"{printable(self.names.after(image.path))} names its data file {reference.data_file}")
                continue
            notes.append(
                f"{printable(self.names.after(image.path))} names its backing file {printable(backing.reference)}"
            )
            if not patched:
                commands.append(
                    tuple(
                        img_argv.rebase(
                            program,
                            self.names.after(image.path),
                            backing=Verbatim(backing.reference),
                            backing_format=backing.format,
                            format=image.format,
                            unsafe=True,
                        )
                    )
                )
        return Plan(commands=tuple(commands), images=tuple(images), notes=tuple(notes))

    def make(self, qemu_img: QemuImg, *, progress: Progress | None = None) -> Moved:
        """Moves. Whatever happens, every image afterwards reads as before."""
        made: list[str] = []
        allow_open_files(len(self.files) + len(self.references))
        try:
            with Transaction(self.renamed.tops[0] if self.renamed.tops else next(iter(self.files))) as change:
                self._put_steps(change, qemu_img, progress)
                change.commit(lambda: self._confirm(made))
        except BaseException:
            for directory in reversed(made):
                with contextlib.suppress(OSError):  # not empty: the change was decided
                    os.rmdir(directory)
            raise
        for directory in reversed(self.renamed.directories):
            with contextlib.suppress(OSError):  # something was put there in the meantime
                os.rmdir(directory)
        return self._answer()

    def _answer(self) -> Moved:
        return Moved(
            files=tuple(MovedFile(path=old, to=new, copied=old in self.copied) for old, new in self.files.items()),
            followed=tuple(
                Followed(
                    path=self.names.after(one.image.path),
                    backing=one.backing.reference
                    if one.backing is not None
                    else one.image.backing.reference
                    if one.image.backing is not None
                    else None,
                )
                for one in self.references
            ),
        )

    def _confirm(self, made: list[str]) -> None:
        before = {one.image.path: one[1:] for one in self.references}
        now = {one.image.path: one[1:] for one in self._references(self._look())}
        for path in before.keys() | now.keys():
            if before.get(path) != now.get(path):
                raise changed(path)
        for image, file in self._trusted:
            remember(image, file)
        self._make_directories(made)

    def _make_directories(self, made: list[str]) -> None:
        """As late as possible: until here a run that dies leaves nothing visible."""
        for old, new in self.renamed.directories.items():
            try:
                make_folder(new, made.append)
                shutil.copystat(old, new)
            except OSError as error:
                raise ImageError(f"{printable(new)} cannot be made: {error.strerror}", path=new) from error

    def _put_steps(self, change: Transaction, qemu_img: QemuImg, progress: Progress | None) -> None:
        moved = {place_of(one.image.path): one for one in self.references if self.names.moves(one.image.path)}
        ordered = self._ordered()
        images = {place_of(image.path) for image in self.images}
        for path in self.files:
            if not os.path.islink(path) and place_of(path) in images:
                change.hold(path)
        finals: dict[str, bytes] = {}
        for path in ordered:
            reference = moved.get(place_of(path))
            if reference is not None and path not in self.copied:
                finals[path] = self._put_on_the_way(change, path, reference)
        for number, path in enumerate(ordered, 1):
            if path in self.copied:
                staged = self._copy(change, qemu_img, path, moved.get(place_of(path)))
                change.place(self.files[path], staged)
            else:
                change.link(path, self.files[path])
            if progress is not None:
                progress(100 * number / len(ordered))
        for one in self.references:
            if not self.names.moves(one.image.path):
                self._follow(change, qemu_img, one)
        for path in reversed(ordered):
            change.remove(path)
            if path in finals:
                change.patch(path, finals[path], by_then=self.files[path])

    def _ordered(self) -> list[str]:
        """The files, each after the ones it stands on."""
        depth = {place_of(image.path): image.depth or 0 for image in self.images}
        return sorted(self.files, key=lambda path: depth.get(place_of(path), -1))

    def _put_on_the_way(self, change: Transaction, path: str, reference: Reference) -> bytes:
        """Makes the image name its parent absolutely for now, and returns the header it gets at the end."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            between = head_of(fd, reference.on_the_way, data_file=reference.data_file_on_the_way)
            final = head_of(fd, reference.backing, data_file=reference.data_file)
        finally:
            os.close(fd)
        change.patch(path, between)
        return final.ljust(len(between), b"\0")

    def _copy(self, change: Transaction, qemu_img: QemuImg, path: str, reference: Reference | None) -> str:
        staged = change.stage(os.path.join(existing(self.files[path]), os.path.basename(path)))
        if os.path.islink(path):
            os.unlink(staged)
            os.symlink(os.readlink(path), staged)
            return staged
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        target = os.open(staged, os.O_RDWR | os.O_CLOEXEC)
        try:
            copy_file(source, target)
            if reference is not None and can_be_patched(path):
                os.pwrite(target, head_of(target, reference.backing, data_file=reference.data_file), 0)
        except OSError as error:
            raise ImageError(f"{printable(path)} could not be copied: {error.strerror}", path=path) from error
        finally:
            os.close(source)
            os.close(target)
        if reference is not None and not can_be_patched(path):
            assert reference.backing is not None
            name_in_copy(qemu_img, staged, reference.image, reference.backing)
        status = os.stat(path)
        with contextlib.suppress(PermissionError):
            os.chown(staged, status.st_uid, status.st_gid)
        shutil.copystat(path, staged)
        return staged

    def _follow(self, change: Transaction, qemu_img: QemuImg, one: Reference) -> None:
        if one.backing is not None and one.data_file is None:
            rename_backing(change, qemu_img, one.image, one.backing)
            return
        change.hold(one.image.path)
        fd = os.open(one.image.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            change.patch(one.image.path, head_of(fd, one.backing, data_file=one.data_file))
        finally:
            os.close(fd)


def move(
    sources: Paths,
    target: PathLike,
    *,
    store: Paths = (),
    qemu_img: QemuImg | None = None,
    progress: Progress | None = None,
) -> Moved:
    """Moves images, or directories with all that is in them, to `target`, or into it when that is a directory.

    The references of images that stand on a moved one are updated. They are looked for in the directories of the
    chains, beside a directory that is moved, where imgtool made some, and in `store`. RefusedError when one of them
    cannot be updated: its format does not allow it, or it is read-only, or named by symlinks; ImageInUseError when a
    program has one of them open; ImageExistsError when a new name is taken.
    """
    return MoveRequest(sources, target, store=store).make(qemu_img or QemuImg(), progress=progress)
