"""Shorten: layers in the middle of a chain that nothing else needs are merged into the image above them."""

from __future__ import annotations

import os
from itertools import pairwise

import msgspec

from imgtool.chain.encryption import refuse_encrypted
from imgtool.chain.graph import Image
from imgtool.chain.scan import absolute
from imgtool.errors import RefusedError
from imgtool.image.names import PathLike, Paths, paths_of, printable
from imgtool.operations.anchoring import add_anchor_if_room, followers, following, take_place
from imgtool.operations.around import (
    FORCED_DEPTH,
    Around,
    names,
    refuse_in_use,
    refuse_not_replaceable,
    refuse_sealed,
)
from imgtool.operations.overlay import reference_to
from imgtool.operations.plan import Plan, Touched
from imgtool.operations.proof import Progress
from imgtool.operations.refit import refit, refuse_not_movable
from imgtool.operations.replaceable import check_removable
from imgtool.operations.transaction import Transaction
from imgtool.qemu import img_argv
from imgtool.qemu.img_argv import Verbatim
from imgtool.qemu.qemu_img import QemuImg


class Shortened(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """A chain that has fewer images now."""

    path: str
    """The topmost image."""
    chain: tuple[str, ...]
    """The images it stands on now, from its backing file down."""
    merged: tuple[str, ...]
    """The images it stood on and needs no more."""
    deleted: tuple[str, ...]
    """Those of them that were deleted."""
    notes: tuple[str, ...] = ()
    """What else is good to know, in words."""


class ShortenRequest:
    """A shortening that may be made: every check has passed, and nothing has been changed yet."""

    def __init__(
        self,
        top: PathLike,
        *,
        onto: PathLike | None = None,
        keep: Paths = (),
        delete: bool = False,
        force: bool = False,
        format: str | None = None,
        store: Paths = (),
        settle: bool = True,
    ) -> None:
        """See `shorten`."""
        self.around = around = Around(top, format=format, store=store, settle=settle, max_depth=FORCED_DEPTH)
        self.image = around.image
        if around.parent is None:
            raise RefusedError(f"{printable(self.image.path)} stands on nothing", path=self.image.path)
        line = [self.image, *around.chain_below()]
        end = len(line) - 1 if onto is None else self._position(line, onto)
        kept = {0, end, *(self._position(line, path) for path in paths_of(keep))}
        kept |= {index for index in range(1, end) if len(line[index].children) > 1}
        self.line = line
        refuse_encrypted(line)
        self.steps = [(line[above], line[below]) for above, below in pairwise(sorted(kept)) if below > above + 1]
        """(image, the one it is put on) for each image that loses layers."""
        self.merged = [line[index] for index in range(1, end) if index not in kept]
        if not self.merged:
            others = [line[index] for index in range(1, end)]
            raise RefusedError(
                f"there is no layer to merge below {printable(self.image.path)}",
                hint=f"other images stand on {names(others)}" if others else "it stands on the base itself",
                path=self.image.path,
            )
        for image, _ in self.steps:
            self._look_at(image)
        self.deleted = self.merged if delete else []
        self.followers = self._followers()
        for image in self.deleted:
            refuse_not_replaceable(image)
            refuse_sealed(image)
            if image.snapshots and not force:
                raise RefusedError(
                    f"{printable(image.path)} is to be deleted, and has internal snapshots, which are not merged",
                    hint="without --delete it stays; --force deletes it with them",
                    path=image.path,
                )
            check_removable(image.path)
            refuse_in_use([image], why="it is to be deleted", even_reading=True)
        refuse_in_use(line, why=f"what is read through {printable(self.image.path)} may change")
        self.notes = around.refuse_changed(force=force)

    def _position(self, line: list[Image], path: PathLike) -> int:
        wanted = absolute(path)
        for index, image in enumerate(line):
            if index and (
                wanted in image.all_names or (os.path.exists(wanted) and os.path.samefile(wanted, image.path))
            ):
                return index
        raise RefusedError(
            f"{printable(self.image.path)} does not stand on {printable(wanted)}",
            hint=f"it stands on {names(line[1:])}",
            path=self.image.path,
        )

    def _look_at(self, image: Image) -> None:
        refuse_sealed(image)
        refuse_not_replaceable(image)
        refuse_not_movable(image)
        refuse_in_use([image], why="it would be changed under a running machine", even_reading=True)
        refuse_in_use(self._children(image), why=f"it stands on {printable(image.path)}")

    def _followers(self) -> list[Image]:
        moved = {image.path for image, _ in self.steps} | {image.path for image in self.deleted}
        return [
            child
            for image, _ in self.steps
            for child in followers(image, [one for one in self._children(image) if one.path not in moved])
        ]

    def _reference(self, image: Image, below: Image) -> str:
        """How `image` names `below`: as it named its backing file until now, relatively or not."""
        assert image.backing is not None
        whole = os.path.isabs(image.backing.reference)
        return reference_to(below.path, os.path.dirname(image.path), absolute=whole)

    def plan(self, program: str) -> Plan:
        commands = []
        images = []
        for image, below in self.steps:
            argv = img_argv.rebase(
                program,
                image.path,
                backing=Verbatim(self._reference(image, below)),
                backing_format=below.format,
                format=image.format,
                cache="unsafe",
            )
            commands.append(tuple(argv))
            size = sum(one.actual_size or 0 for one in (image, *self._between(image, below)))
            images.append(Touched(path=image.path, action="replace", bytes=size))
        also = following(self.followers)
        images += also.images
        images += [Touched(path=below.path, action="read") for _, below in self.steps]
        if self.deleted:
            images += [Touched(path=name, action="delete") for name in self._deleted_names()]
        else:
            images += [Touched(path=image.path, action="read") for image in self.merged]
        notes = ["the commands work on copies beside the images, which then take the images' places", *self.notes]
        if not self.deleted:
            notes.append(f"needed no more afterwards: {names(self.merged)}; --delete deletes them")
        return Plan(commands=tuple(commands), images=tuple(images), notes=(*notes, *also.notes))

    def _children(self, image: Image) -> list[Image]:
        return self.around.children(image, but=[image.path])

    def _between(self, image: Image, below: Image) -> list[Image]:
        return self.line[self.line.index(image) + 1 : self.line.index(below)]

    def _deleted_names(self) -> list[str]:
        """The files, and the symlinks to them that were found, which would lead nowhere."""
        links = [name for image in self.deleted for name in image.all_names if os.path.islink(name)]
        return [*(os.path.realpath(image.path) for image in self.deleted), *links]

    def make(self, qemu_img: QemuImg, *, progress: Progress | None = None) -> Shortened:
        """Shortens. Whatever happens, every image afterwards reads as before."""
        with Transaction(self.image.path) as change:
            for image in self.line:
                if image.format is not None:
                    change.hold(image.path)
            new: dict[str, str] = {}
            for image, below in reversed(self.steps):  # from the base up: an anchor is of what will be there
                copy = refit(
                    change,
                    qemu_img,
                    image,
                    onto=below.path,
                    onto_format=below.format or "raw",
                    named=self._reference(image, below),
                    progress=progress,
                )
                if image.format == "qcow2":
                    add_anchor_if_room(copy, new.get(below.path, below.path))
                new[image.path] = copy
                take_place(change, image, copy, [one for one in self._children(image) if one not in self.deleted])
            deleted = tuple(self._deleted_names())
            for name in deleted:
                change.remove(name)
            change.commit(self.around.confirm_chain)
        gone = {image.path for image in self.merged}
        return Shortened(
            path=self.image.path,
            chain=tuple(image.path for image in self.line[1:] if image.path not in gone),
            merged=tuple(image.path for image in self.merged),
            deleted=deleted,
            notes=tuple(self.notes),
        )


def shorten(
    top: PathLike,
    *,
    onto: PathLike | None = None,
    keep: Paths = (),
    delete: bool = False,
    force: bool = False,
    store: Paths = (),
    qemu_img: QemuImg | None = None,
) -> Shortened:
    """Merges the layers between `top` and `onto` (None: its base) into the images above them, except those in `keep`
    and those that other images stand on. Every image still reads the same.

    The merged files stay, unless `delete`. RefusedError when there is nothing to merge, an image cannot be replaced,
    or one with internal snapshots would be deleted (not with `force`); ImageInUseError when a program writes one of
    the images.
    """
    request = ShortenRequest(top, onto=onto, keep=keep, delete=delete, force=force, store=store)
    return request.make(qemu_img or QemuImg())
