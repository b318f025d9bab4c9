"""Flatten: an image that stands on others becomes one that stands on nothing, and a guest reads the same data."""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec

from imgtool.chain.encryption import refuse_encrypted
from imgtool.chain.graph import Image
from imgtool.chain.scan import absolute
from imgtool.errors import ImageNotFoundError, RefusedError
from imgtool.image.header import Qcow2Details
from imgtool.image.names import PathLike, Paths, printable
from imgtool.operations.anchoring import drop_anchor, followers, following, take_place
from imgtool.operations.around import (
    FORCED_DEPTH,
    Around,
    header_of,
    refuse_ambiguous,
    refuse_in_use,
    refuse_known_by_number,
    refuse_not_replaceable,
    refuse_part,
    refuse_sealed,
)
from imgtool.operations.journal import recover
from imgtool.operations.plan import Plan, Touched
from imgtool.operations.proof import Progress, ProofError, prove_same, prove_sound, same
from imgtool.operations.refit import MOVABLE, refit, refuse_not_movable
from imgtool.operations.replaceable import check_replaceable
from imgtool.operations.transaction import Transaction
from imgtool.qemu import img_argv
from imgtool.qemu.img_argv import OptionValue
from imgtool.qemu.qemu_img import QemuImg
from imgtool.qemu.replace import exists_already


class Flattened(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """An image that stands on nothing now."""

    path: str
    """Where it is: the image itself, or the new file."""
    source: str
    """The image that was flattened."""
    format: str
    """As QEMU calls it."""
    virtual_size: int
    """Bytes of the disk."""
    actual_size: int
    """Bytes allocated on the host."""
    stood_on: tuple[str, ...]
    """The images it needed before, from its backing file down."""
    notes: tuple[str, ...] = ()
    """What else is good to know, in words."""


class FlattenRequest:
    """A flattening that may be made: every check has passed, and nothing has been changed yet."""

    def __init__(
        self,
        image: PathLike,
        *,
        to: PathLike | None = None,
        format: str | None = None,
        output_format: str | None = None,
        options: Mapping[str, OptionValue] | None = None,
        compressed: bool = False,
        overwrite: bool = False,
        force: bool = False,
        store: Paths = (),
        settle: bool = True,
    ) -> None:
        """See `flatten`."""
        self.around = around = Around(image, format=format, store=store, settle=settle, max_depth=FORCED_DEPTH)
        self.image = around.image
        self.to = None if to is None else absolute(to)
        self.output_format = output_format or self.image.format or "qcow2"
        self.options = dict(options or {})
        self.compressed = compressed
        self.overwrite = overwrite
        self.stood_on = tuple(image.path for image in around.chain_below())
        refuse_ambiguous(self.image)
        refuse_encrypted([self.image, *around.chain_below()])
        refuse_in_use([self.image, *around.chain_below()], why="what is read through it may change")
        self.notes = around.refuse_changed(force=force)
        self.children = around.children(self.image, but=[self.image.path])
        self.followers: list[Image] = []
        self.replaced: Around | None = None
        """What is there where the new file is to be."""
        if self.to is None:
            self._look_in_place(force)
        else:
            if settle:
                recover(os.path.dirname(os.path.realpath(self.to)))
            self._look_at_target(self.to, store)

    def _look_in_place(self, force: bool) -> None:
        if not self.around.chain[0].backing:
            raise RefusedError(
                f"{printable(self.image.path)} stands on nothing already",
                hint="--to NEW copies it anyway",
                path=self.image.path,
            )
        if self.output_format != self.image.format or self.options or self.compressed:
            raise RefusedError(
                "in place an image keeps its format and options",
                hint="--to NEW makes one in another format",
                path=self.image.path,
            )
        refuse_sealed(self.image)
        refuse_not_replaceable(self.image)
        refuse_in_use([self.image], why="it would be changed under a running machine", even_reading=True)
        if self.image.format in MOVABLE:
            refuse_not_movable(self.image)
        elif not force:
            refuse_known_by_number(self.image, self.children)
        refuse_in_use(self.children, why=f"it stands on {printable(self.image.path)}")
        self.followers = followers(self.image, self.children)

    def _look_at_target(self, to: str, store: Paths) -> None:
        folder = os.path.dirname(to)
        if not os.path.isdir(folder):
            raise ImageNotFoundError(
                f"{printable(to)} cannot be made", hint=f"there is no directory {printable(folder)}", path=to
            )
        if os.path.lexists(to):
            for image in self.around.chain:
                if os.path.exists(image.path) and os.path.exists(to) and os.path.samefile(image.path, to):
                    raise RefusedError(
                        f"{printable(to)} is an image of the chain that is read",
                        hint="choose another name; without --to the image is flattened in place",
                        path=to,
                    )
            if not self.overwrite:
                raise exists_already(to, os.lstat(to))
            self.replaced = self._look_at_replaced(to, store)
        if self.image.snapshots:
            count = len(self.image.snapshots)
            self.notes.append(
                f"{printable(to)} gets the disk as it is now, not the {count} internal "
                f"{'snapshot' if count == 1 else 'snapshots'}; flattening in place keeps them"
            )

    @staticmethod
    def _look_at_replaced(to: str, store: Paths) -> Around:
        there = Around(to, store=store, settle=False, whole=False)
        refuse_in_use([there.image], why="it cannot be replaced", even_reading=True)
        refuse_sealed(there.image)
        check_replaceable(there.image.path)
        refuse_part(there.image)
        if there.image.children:
            raise RefusedError(
                f"{printable(to)} is the backing file of {printable(there.image.children[0])}",
                hint="choose another name",
                path=to,
            )
        return there

    @property
    def _bitmaps(self) -> bool:
        details = header_of(self.image).details
        return self.output_format == "qcow2" and isinstance(details, Qcow2Details) and bool(details.bitmaps)

    def plan(self, program: str) -> Plan:
        image = self.image
        below = [Touched(path=path, action="read") for path in self.stood_on]
        size = sum(one.actual_size or 0 for one in (image, *self.around.chain_below()))
        if self.to is None and image.format in MOVABLE:
            argv = img_argv.rebase(program, image.path, backing=None, format=image.format, cache="unsafe")
            notes = ["the command works on a copy beside the image, which then takes its place"]
            touched = Touched(path=image.path, action="replace", bytes=size)
        else:
            target = self.to or image.path
            argv = img_argv.convert(
                program,
                [image.path],
                target,
                format=image.format,
                output_format=self.output_format,
                options=self.options,
                compressed=self.compressed,
                bitmaps=self._bitmaps,
                cache="unsafe",
            )
            notes = ["written under a hidden name first, brought to disk, then renamed"]
            exists = os.path.lexists(target)
            touched = Touched(path=target, action="replace" if exists else "create", bytes=size)
            below.insert(0, Touched(path=image.path, action="read"))
        notes += ["a guest must read the same from it as from the image, or nothing is changed", *self.notes]
        also = following(self.followers)
        return Plan(commands=(tuple(argv),), images=(touched, *also.images, *below), notes=(*notes, *also.notes))

    def make(self, qemu_img: QemuImg, *, progress: Progress | None = None) -> Flattened:
        """Flattens. Whatever happens, the image afterwards reads as before, and `to` is there whole or not at all."""
        if self.to is None:
            self._in_place(qemu_img, progress)
            written: tuple[str, ...] = (self.image.path,)
        else:
            written = self._to_new(qemu_img, self.to, progress)
        path = self.to or self.image.path
        return Flattened(
            path=path,
            source=self.image.path,
            format=self.output_format,
            virtual_size=self.image.virtual_size or 0,
            actual_size=sum(os.stat(file).st_blocks * 512 for file in written),
            stood_on=self.stood_on,
            notes=tuple(self.notes),
        )

    def _hold(self, change: Transaction) -> None:
        for image in (self.image, *self.around.chain_below()):
            if image.format is not None:
                change.hold(image.path)

    def _in_place(self, qemu_img: QemuImg, progress: Progress | None) -> None:
        image = self.image
        with Transaction(image.path) as change:
            self._hold(change)
            if image.format in MOVABLE:
                copy = refit(change, qemu_img, image, onto=None, progress=progress)
                if image.format == "qcow2":
                    drop_anchor(copy)
            else:
                format = image.format or "raw"
                copy = change.stage(image.path)
                qemu_img.convert_over(image.path, copy, format=format, output_format=format, progress=progress)
                prove_sound(qemu_img, copy, format=format, image=image.path)
                prove_same(qemu_img, copy, image.path, formats=(format, format), image=image.path)
            take_place(change, image, copy, self.children)
            change.commit(self.around.confirm)

    def _to_new(self, qemu_img: QemuImg, to: str, progress: Progress | None) -> tuple[str, ...]:
        """Returns the files it made."""
        if self.output_format == "vmdk":
            return self._by_convert(qemu_img, to, progress)
        image = self.image
        with Transaction(to) as change:
            self._hold(change)
            staged = change.stage(to)
            qemu_img.convert_over(
                image.path,
                staged,
                format=image.format,
                output_format=self.output_format,
                options=self.options,
                compressed=self.compressed,
                bitmaps=self._bitmaps,
                progress=progress,
            )
            self._prove(qemu_img, staged, to)
            if self.replaced is not None:
                change.hold(self.replaced.image.path)
                change.replace(to, staged)
                change.commit(self.replaced.confirm)
            else:
                change.place(to, staged)
                change.commit()
        return (to,)

    def _by_convert(self, qemu_img: QemuImg, to: str, progress: Progress | None) -> tuple[str, ...]:
        """A VMDK may be several files, whose names derive from its own."""
        image = self.image
        with Transaction(image.path) as change:
            self._hold(change)
            made = qemu_img.convert(
                image.path,
                to,
                format=image.format,
                output_format=self.output_format,
                options=self.options,
                compressed=self.compressed,
                cache="unsafe",  # it stays in the page cache, to be proved
                overwrite=self.replaced is not None,
                progress=progress,
                finish=lambda hidden: self._prove(qemu_img, hidden, to),
            )
        return made.written

    def _prove(self, qemu_img: QemuImg, made: str, to: str) -> None:
        """The new file holds the disk, and what it replaces is what it was."""
        if self.replaced is not None:
            self.replaced.confirm()
        if not same(qemu_img, made, self.image.path, formats=(self.output_format, self.image.format)):
            raise ProofError(f"{printable(to)} would not hold the same disk; it was not made", path=to)


def flatten(
    image: PathLike,
    *,
    to: PathLike | None = None,
    output_format: str | None = None,
    options: Mapping[str, OptionValue] | None = None,
    compressed: bool = False,
    overwrite: bool = False,
    force: bool = False,
    store: Paths = (),
    qemu_img: QemuImg | None = None,
) -> Flattened:
    """Copies into `image` all that it reads from the images below it, so that it needs none of them; or writes the
    whole disk into the new file `to`, in `output_format` with `options`.

    In place, its format, options, internal snapshots and bitmaps are kept, and what stands on it reads the same.
    RefusedError for a base, a sealed image, or one whose parent has changed since (not with `force`); ImageInUseError
    when a program writes one of the images; ImageExistsError when `to` exists (not with `overwrite`).
    """
    request = FlattenRequest(
        image,
        to=to,
        output_format=output_format,
        options=options,
        compressed=compressed,
        overwrite=overwrite,
        force=force,
        store=store,
    )
    return request.make(qemu_img or QemuImg())
