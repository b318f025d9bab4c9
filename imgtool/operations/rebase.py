"""Rebase: an image is put on another backing file, or on none, and a guest reads the same data.

qemu-img's own rebase names the new backing file in the header before the tables of the copied clusters are on disk:
killed at the end, or with a full disk, it leaves an image that reads something else, at times with exit status 0.
Here a copy is rebased, compared with the image as it is, and only then takes its place.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from imgtool.chain.anchors import is_parent, refuse_changed
from imgtool.chain.encryption import refuse_encrypted
from imgtool.chain.graph import Image
from imgtool.chain.link import MAX_DEPTH
from imgtool.chain.look import LOCAL_PROTOCOLS, files_of
from imgtool.chain.scan import absolute, check_format
from imgtool.chain.walk import guard, walk
from imgtool.errors import (
    ImageNotFoundError,
    ImgtoolError,
    RefusedError,
    UsageError,
)
from imgtool.image.anchor import read_anchor
from imgtool.image.formats import FORMATS
from imgtool.image.header import read_header
from imgtool.image.names import PathLike, Paths, printable
from imgtool.image.reference import parse
from imgtool.image.remembered import remember
from imgtool.operations.anchoring import add_anchor_if_room, drop_anchor, followers, following, take_place
from imgtool.operations.around import (
    Around,
    refuse_in_use,
    refuse_not_replaceable,
    refuse_sealed,
)
from imgtool.operations.overlay import reference_to
from imgtool.operations.plan import Plan, Touched
from imgtool.operations.proof import Progress, same
from imgtool.operations.refit import Caches, refit, refuse_not_movable
from imgtool.operations.transaction import Transaction
from imgtool.qemu import img_argv
from imgtool.qemu.img_argv import Cache, Verbatim, backing_reference
from imgtool.qemu.qemu_img import QemuImg


class Rebase(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What a rebase did."""

    path: str
    """The image."""
    backing: str | None
    """The reference as it stands in the image now; None when it stands on nothing."""
    backing_format: str | None
    """The backing format that it names now; None when it stands on nothing."""
    before: str | None
    """The reference as it was."""
    proven: bool
    """Whether it was seen that a guest reads the same; not with `unsafe` and `force`."""
    notes: tuple[str, ...] = ()
    """What else is good to know, in words."""


class _Onto(NamedTuple):
    """The new backing file."""

    reference: str
    """As it will stand in the header."""
    format: str
    chain: list[Image]
    """The images from it down; empty where it is no file on this host, or must not be looked at."""
    files: tuple[str, ...]
    """The files on this host that the reference leads to."""

    @property
    def path(self) -> str | None:
        return self.chain[0].path if self.chain else None

    @property
    def opened(self) -> str | Verbatim:
        return self.path if self.path is not None else Verbatim(self.reference)


class RebaseRequest:
    """A rebase that may be made: every check has passed, and nothing has been changed yet."""

    def __init__(
        self,
        image: PathLike,
        backing: PathLike | Verbatim | None,
        *,
        backing_format: str | None = None,
        format: str | None = None,
        unsafe: bool = False,
        absolute: bool = False,
        relative: bool = False,
        force: bool = False,
        cache: Cache | None = None,
        source_cache: Cache | None = None,
        store: Paths = (),
        settle: bool = True,
    ) -> None:
        """See `rebase`. Whatever `cache` is, what qemu-img writes is flushed to disk."""
        self.around = around = Around(image, format=format, store=store, settle=settle, whole=not unsafe)
        self.image = around.image
        check_format(backing_format)
        self.unsafe = unsafe
        self.force = force
        self.caches = Caches(cache or "unsafe", source_cache)
        refuse_sealed(self.image)
        refuse_not_replaceable(self.image, ambiguous=unsafe)
        refuse_not_movable(self.image)
        if not unsafe:
            refuse_encrypted([self.image, *around.chain_below()])
        self.onto = None if backing is None else self._look(backing, backing_format, absolute, relative)
        self.children = around.children(self.image, but=[self.image.path])
        in_the_way = "it would be changed under a running machine"
        refuse_in_use([self.image], why=in_the_way, even_reading=True)
        refuse_in_use(self.children, why=f"it stands on {printable(self.image.path)}")
        # by force the name may be changed without proof, and then they are left to notice that
        self.followers = followers(self.image, self.children, refuse=not (unsafe and force))
        if not unsafe:
            refuse_in_use(around.chain_below(), why=f"what is read through {printable(self.image.path)} may change")
        if self.onto is not None and not (unsafe and force):
            refuse_in_use(self.onto.chain, why="what is read from it may change")
        self.notes = [] if unsafe else around.refuse_changed(force=force)
        if self.onto is not None and self.onto.chain:
            self.notes += refuse_changed(self.onto.chain, force=force)
        if unsafe and not force and not self._remembered():
            self._refuse_unprovable()

    def _look(
        self, backing: PathLike | Verbatim, format: str | None, make_absolute: bool, make_relative: bool
    ) -> _Onto:
        directory = os.path.dirname(self.image.path)
        if isinstance(backing, Verbatim):
            return self._look_at_reference(backing.text, format, directory)
        given = os.fsdecode(backing)
        if not given:
            raise UsageError("the name of the backing file is empty")
        place = absolute(os.path.join(directory, given))
        chain = self._chain_of(place, given, format)
        self._refuse_circle(place, chain)
        reference = backing_reference(given)
        if make_absolute or make_relative:
            reference = reference_to(place, directory, absolute=make_absolute)
        elif len(os.fsencode(reference)) > 1023:
            reference = reference_to(place, directory, absolute=os.path.isabs(given))  # says what is wrong
        if not chain:
            return _Onto(reference, _named(format), [], (place,))
        return _Onto(reference, format or chain[0].format or "raw", chain, (place,))

    def _chain_of(self, place: str, given: str, format: str | None) -> list[Image]:
        """The chain of the new backing file; empty where that is broken and may be."""
        try:
            return guard(place, format=format if format in FORMATS else None, max_depth=MAX_DEPTH - 1)
        except ImgtoolError as error:
            if self.unsafe and self.force:
                self._refuse_circle(place, walk(place))
                return []
            if isinstance(error, ImageNotFoundError) and error.path == place:
                error.message = f"the backing file {printable(given)} does not exist: there is no {printable(place)}"
                near = absolute(given)
                error.hint = "with -u, --force writes the name all the same"
                if near != place and os.path.exists(near):
                    there = os.path.relpath(near, os.path.dirname(self.image.path))
                    error.hint = f"the name starts in the image's own directory: -b {printable(there)}"
            elif self.unsafe:
                error.hint = f"{error.hint}; --force writes the name all the same" if error.hint else None
            raise

    def _look_at_reference(self, text: str, format: str | None, directory: str) -> _Onto:
        """A reference in QEMU's own syntax. None of the files it leads to may stand on the image."""
        found = parse(os.fsencode(text), directory=directory)
        format = format or found.format
        files = tuple(files_of(found))
        for file in files:
            self._refuse_circle(file, walk(file))
        plain = found.path is not None and found.protocol in LOCAL_PROTOCOLS and not found.altered
        if found.path is not None and plain and not (self.unsafe and self.force):
            chain = guard(found.path, format=format if format in FORMATS else None, max_depth=MAX_DEPTH - 1)
            return _Onto(text, format or chain[0].format or "raw", chain, files)
        return _Onto(text, _named(format), [], files)

    def _refuse_circle(self, place: str, chain: list[Image]) -> None:
        """RefusedError when `chain`, that of `place`, leads to the image."""
        for image in chain:
            if os.path.exists(image.path) and os.path.samefile(image.path, self.image.path):
                how = "is the image itself" if image is chain[0] else "stands on it"
                raise RefusedError(
                    f"{printable(self.image.path)} cannot have the backing file {printable(place)}, which {how}",
                    hint="`imgtool chain show` shows who stands on whom",
                    path=self.image.path,
                )

    def plan(self, program: str) -> Plan:
        image, onto = self.image, self.onto
        argv = img_argv.rebase(
            program,
            image.path,
            backing=None if onto is None else Verbatim(onto.reference),
            backing_format=None if onto is None else onto.format,
            format=image.format,
            unsafe=self.unsafe,
            cache=self.caches.target,
            source_cache=self.caches.source,
        )
        below = [*self.around.chain_below(), *(onto.chain if onto is not None else [])]
        notes = ["the command works on a copy beside the image, which then takes its place", *self.notes]
        if not (self.unsafe and self.force):
            notes.append("a guest must read the same from the copy as from the image, or nothing is changed")
        also = following(self.followers)
        return Plan(
            commands=(tuple(argv),),
            images=(
                Touched(path=image.path, action="replace", bytes=image.actual_size),
                *also.images,
                *(Touched(path=path, action="read") for path in dict.fromkeys(one.path for one in below)),
            ),
            notes=(*notes, *also.notes),
        )

    def make(self, qemu_img: QemuImg, *, progress: Progress | None = None) -> Rebase:
        """Rebases. Whatever happens, the image afterwards reads as before."""
        image, onto = self.image, self.onto
        for file in onto.files if onto is not None else ():
            remember(image.path, file)
        with Transaction(image.path) as change:
            for held in self._held():
                change.hold(held)
            if self.unsafe:
                copy, proven = self._renamed(change, qemu_img)
            else:
                copy, proven = self._refitted(change, qemu_img, progress), True
            self._anchor(copy)
            if proven:
                take_place(change, image, copy, self.children)
            else:
                change.replace(image.path, copy)
            change.commit(self.around.confirm)
        return Rebase(
            path=image.path,
            backing=None if onto is None else onto.reference,
            backing_format=None if onto is None else onto.format,
            before=None if image.backing is None else image.backing.reference,
            proven=proven,
            notes=tuple(self.notes),
        )

    def _held(self) -> Iterator[str]:
        yield self.image.path
        if self.unsafe and self.force:
            return
        for one in (*self.around.chain_below(), *(self.onto.chain if self.onto is not None else [])):
            if one.format is not None:
                yield one.path

    def _refitted(self, change: Transaction, qemu_img: QemuImg, progress: Progress | None) -> str:
        onto = self.onto
        if onto is None:
            return refit(change, qemu_img, self.image, onto=None, caches=self.caches, progress=progress)
        return refit(
            change,
            qemu_img,
            self.image,
            onto=onto.opened,
            onto_format=onto.format,
            named=onto.reference,
            caches=self.caches,
            progress=progress,
        )

    def _renamed(self, change: Transaction, qemu_img: QemuImg) -> tuple[str, bool]:
        """A copy with the new name alone, and whether it was seen to read the same."""
        image, onto = self.image, self.onto
        copy = change.stage(image.path, copy_of=image.path)
        qemu_img.rebase(
            copy,
            backing=None if onto is None else Verbatim(onto.reference),
            backing_format=None if onto is None else onto.format,
            format=image.format,
            unsafe=True,
            cache="unsafe",
        )
        if self._remembered():
            return copy, True
        if self._why_unprovable() is None and self._reads_the_same(qemu_img, copy):
            return copy, True
        if not self.force:
            raise RefusedError(
                "with -u only the name is changed, but the new backing file holds something else than the old one",
                hint="without -u what differs is copied; --force changes the name all the same",
                path=image.path,
            )
        return copy, False

    def _remembered(self) -> bool:
        """Whether the new backing file is the one that the image remembers: it was moved."""
        if self.onto is None or self.onto.path is None:
            return False
        with open(self.image.path, "rb") as file:
            anchor = read_anchor(file.fileno(), read_header(file.fileno(), format=self.image.format))
        return anchor is not None and is_parent(anchor, self.onto.path, parent_format=self.onto.format)

    def _refuse_unprovable(self) -> None:
        why = self._why_unprovable()
        if why is not None:
            raise RefusedError(
                f"with -u only the name is changed, but {why}",
                hint="--force changes the name all the same",
                path=self.image.path,
            )

    def _why_unprovable(self) -> str | None:
        """Why the image as it is cannot be read for comparison, None when it can."""
        if getattr(self.around.chain[0], "backing", None) is None:
            return None
        try:
            guard(self.image.path, format=self.image.format)
            refuse_encrypted([self.image, *self.around.chain_below()])
        except ImgtoolError as error:
            return f"that a guest reads the same cannot be proven: {error.message}"
        if self.onto is not None and not self.onto.chain:
            return f"what {printable(self.onto.reference)} holds was not looked at"
        return None

    def _reads_the_same(self, qemu_img: QemuImg, copy: str) -> bool:
        image = self.image
        if image.snapshots:  # these read from the backing file, too: it must be the same whole
            parent, onto = self.around.parent, self.onto
            if parent is None or onto is None or onto.path is None:
                return parent is None and onto is None
            return same(qemu_img, onto.path, parent.path, formats=(onto.format, parent.format))
        return same(qemu_img, copy, image.path, formats=(image.format, image.format))

    def _anchor(self, copy: str) -> None:
        if self.image.format != "qcow2":
            return
        if self.onto is not None and self.onto.path is not None:
            add_anchor_if_room(copy, self.onto.path)
        else:
            drop_anchor(copy)


def _named(format: str | None) -> str:
    if format is None:
        raise UsageError("a backing file that is not looked at needs its format named", hint="name it with -F")
    return format


def rebase(
    image: PathLike,
    backing: PathLike | Verbatim | None,
    *,
    backing_format: str | None = None,
    unsafe: bool = False,
    absolute: bool = False,
    relative: bool = False,
    force: bool = False,
    store: Paths = (),
    qemu_img: QemuImg | None = None,
) -> Rebase:
    """Puts `image` on `backing`, or on nothing with None, so that a guest reads the same as before.

    A path starts from the image's own directory and is written as given, or made `absolute` or `relative`; a
    `Verbatim` reference is QEMU's own. With `unsafe` no data is copied, only the name is changed: RefusedError unless
    that is seen to make no difference (not with `force`). RefusedError too for a circle; ImageInUseError when a
    program writes one of the images; ImageNotFoundError or ChainError when the new backing file cannot be read.
    """
    request = RebaseRequest(
        image,
        backing,
        backing_format=backing_format,
        unsafe=unsafe,
        absolute=absolute,
        relative=relative,
        force=force,
        store=store,
    )
    return request.make(qemu_img or QemuImg())
