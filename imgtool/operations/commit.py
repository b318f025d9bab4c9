"""Commit: an overlay's data goes into its backing file, or one further down, without hurting the other images that
stand on it.

qemu-img writes the base in place: killed half-way, the base reads neither as before nor as after, and every sibling
of the overlay silently reads something else. Here a copy of the base takes the data and then the base's place; where
the file system shares blocks the copy costs nothing. Seen with QEMU 5.2, 7.2 and 10.0: `commit` follows the backing
file that the image options name instead of the one in the header.
"""

from __future__ import annotations

import os

import msgspec

from imgtool.chain.encryption import refuse_encrypted
from imgtool.chain.graph import Image
from imgtool.chain.scan import absolute
from imgtool.errors import RefusedError
from imgtool.image.names import PathLike, Paths, pasted, printable
from imgtool.operations.anchoring import follow, followers, following, take_place
from imgtool.operations.around import (
    Around,
    header_of,
    names,
    refuse_ambiguous,
    refuse_in_use,
    refuse_known_by_number,
    refuse_not_replaceable,
    refuse_sealed,
)
from imgtool.operations.plan import Plan, Touched
from imgtool.operations.proof import Progress, prove_sound
from imgtool.operations.refit import refit, refuse_not_movable
from imgtool.operations.transaction import Transaction
from imgtool.qemu import img_argv
from imgtool.qemu.img_argv import Cache, ImageOpts
from imgtool.qemu.qemu_img import QemuImg
from imgtool.sizes import format_size


class Commit(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What a commit did."""

    path: str
    """The overlay."""
    base: str
    """The image that holds its data now."""
    base_size_before: int
    """Bytes of the base's disk; a larger overlay makes it grow."""
    base_size_after: int
    """Bytes of the base's disk now."""
    emptied: bool
    """Whether the overlay holds nothing now."""
    preserved: tuple[str, ...] = ()
    """The other overlays of the base, which were given what they would have lost."""
    between: tuple[str, ...] = ()
    """The images between the two, which read the committed data as well now."""
    notes: tuple[str, ...] = ()
    """What else is good to know, in words."""


class CommitRequest:
    """A commit that may be made: every check has passed, and nothing has been changed yet."""

    def __init__(
        self,
        overlay: PathLike,
        *,
        base: PathLike | None = None,
        format: str | None = None,
        keep: bool = False,
        preserve_siblings: bool = False,
        force: bool = False,
        cache: Cache | None = None,
        rate_limit: int | None = None,
        store: Paths = (),
        settle: bool = True,
    ) -> None:
        """See `commit`. Whatever `cache` is, what qemu-img writes is flushed to disk."""
        self.around = around = Around(overlay, format=format, store=store, settle=settle)
        self.overlay = around.image
        self.below = self._path_to(around, base)
        self.base = self.below[-1]
        self.keep = keep or base is not None  # as in qemu-img, where -b implies -d
        self.cache: Cache = cache or "unsafe"
        self.rate_limit = rate_limit
        self.force = force
        self.siblings: list[Image] = []
        self._look_at_files()
        self._look_at_snapshots()
        hurt = self._others()
        if hurt and preserve_siblings and all(image.parent == self.base.path for image in hurt):
            refuse_in_use(hurt, why="it cannot be given what it would lose", even_reading=True)
            for image in hurt:
                refuse_not_replaceable(image)
                refuse_not_movable(image)
                refuse_in_use(around.children(image), why=f"it stands on {printable(image.path)}")
            self.siblings = hurt
        elif hurt and not force:
            self._refuse(hurt)
        refuse_in_use(hurt, why="what it reads would change", even_reading=not preserve_siblings)
        self.above = around.children(self.overlay, but=[self.overlay.path])
        refuse_in_use(self.above, why=f"it stands on {printable(self.overlay.path)}")
        self.followers = self._followers()
        self.notes = around.refuse_changed(force=force)

    def _look_at_files(self) -> None:
        refuse_sealed(self.base)
        if not self.keep:
            refuse_sealed(self.overlay)
            refuse_not_replaceable(self.overlay)
        refuse_not_replaceable(self.base)
        refuse_ambiguous(self.overlay)
        if not self.force:
            refuse_known_by_number(self.base, [self._nearest])
        refuse_encrypted([self.overlay, *self.around.chain_below()])
        why = "committing would change a disk under a running machine"
        refuse_in_use([self.overlay, *self.below], why=why, even_reading=True)

    @property
    def _nearest(self) -> Image:
        """Of the overlay and the images between, the one that stands on the base itself."""
        return self.below[-2] if len(self.below) > 1 else self.overlay

    def _look_at_snapshots(self) -> None:
        """RefusedError when an internal snapshot of the overlay, or of an image between, reads from the base."""
        held = [image for image in (self.overlay, *self.below[:-1]) if image.snapshots]
        if held and not self.force:
            image = held[0]
            kept = ", ".join(printable(snapshot.name or snapshot.id) for snapshot in image.snapshots[:3])
            raise RefusedError(
                f"{printable(image.path)} has internal snapshots ({kept}), which would read what is committed",
                hint="`imgtool snapshot -d` deletes them; `imgtool chain flatten` keeps them; --force changes them",
                path=image.path,
            )

    def _path_to(self, around: Around, base: PathLike | None) -> list[Image]:
        """The images from the overlay's parent down to the one that will be written."""
        parent = around.parent
        if parent is None:
            raise RefusedError(
                f"{printable(self.overlay.path)} has no backing file to commit into", path=self.overlay.path
            )
        if base is None:
            return [parent]
        path = absolute(base)
        below = around.chain_below()
        for index, image in enumerate(below):
            if path in image.all_names or (os.path.exists(path) and os.path.samefile(path, image.path)):
                return below[: index + 1]
        raise RefusedError(
            f"{printable(self.overlay.path)} does not stand on {printable(path)}",
            hint=f"it stands on {names(below)}",
            path=self.overlay.path,
        )

    def _others(self) -> list[Image]:
        """The images beside the way down that read what will change: overlays of the base, and, since they stand on
        it, the images between and their other overlays."""
        hurt: list[Image] = []
        above = self.overlay.path
        for image in reversed(self.below):
            hurt += self.around.children(image, but=[above])
        way = {image.path for image in self.below} | {above}
        return [image for image in hurt if image.path not in way]

    def _followers(self) -> list[Image]:
        found = [one for image in self.siblings for one in followers(image, self.around.children(image))]
        if self.keep:
            return found + followers(self.base, [self._nearest], accept=self.force)
        return found + followers(self.overlay, self.above)

    def _refuse(self, hurt: list[Image]) -> None:
        raise RefusedError(
            f"{names(hurt)} also {'stands' if len(hurt) == 1 else 'stand'} on {printable(self.base.path)} "
            "and would read what is committed",
            hint=f"--preserve-siblings keeps what they read; `imgtool convert -O qcow2 "
            f"{pasted(self.overlay.path)} NEW.qcow2` leaves the base alone; --force changes them",
            path=self.overlay.path,
        )

    def plan(self, program: str) -> Plan:
        base, overlay = self.base, self.overlay
        argv = img_argv.commit(
            program,
            self._open_on(overlay.path, base.path),
            base=base.path if self.keep else None,
            keep=self.keep,
            cache=self.cache,
            rate_limit=self.rate_limit,
        )
        commands = [argv, *(self._rebase_argv(program, image.path, base.path) for image in self.siblings)]
        images = [Touched(path=image.path, action="replace", bytes=image.actual_size) for image in self.siblings]
        written = (base.actual_size or 0) + (overlay.actual_size or 0)
        images.append(Touched(path=base.path, action="replace", bytes=written))
        if not self.keep:
            images.append(Touched(path=overlay.path, action="replace"))
        also = following(self.followers)
        images += also.images
        known = {image.path for image in images}
        images += [
            Touched(path=image.path, action="read") for image in (overlay, *self.below) if image.path not in known
        ]
        notes = ["the commands work on copies beside the images, which then take the images' places", *self.notes]
        if (overlay.virtual_size or 0) > (base.virtual_size or 0):
            before, after = (format_size(image.virtual_size or 0) for image in (base, overlay))
            notes.append(f"{printable(base.path)} grows from {before} to {after}")
        if len(self.below) > 1:
            notes.append(f"{names(self.below[:-1])} will read the committed data as well")
        return Plan(commands=tuple(map(tuple, commands)), images=tuple(images), notes=(*notes, *also.notes))

    def _open_on(self, overlay: str, base: str, *, above: str | None = None) -> ImageOpts:
        """The overlay open with the chain it has, but with `base` where the base was, and the qcow2 `above` on it."""
        top = [] if above is None else [(above, "qcow2")]
        below = [(base if image is self.base else image.path, image.format or "raw") for image in self.below]
        return ImageOpts.of_chain([*top, (overlay, self.overlay.format or "qcow2"), *below])

    def _rebase_argv(self, program: str, sibling: str, base: str) -> list[str]:
        return img_argv.rebase(
            program, sibling, backing=base, backing_format=self.base.format, format="qcow2", cache="unsafe"
        )

    def make(self, qemu_img: QemuImg, *, progress: Progress | None = None) -> Commit:
        """Commits. Whatever happens, every image afterwards reads as before it or as after."""
        with Transaction(self.base.path) as change:
            for image in (self.overlay, *self.below, *self.siblings):
                change.hold(image.path)
            base = change.stage(self.base.path, copy_of=self.base.path)
            emptied = None if self.keep else change.stage(self.overlay.path, copy_of=self.overlay.path)
            above = None if emptied is not None else self._above(change, qemu_img)
            qemu_img.commit_chain(
                self._open_on(emptied or self.overlay.path, base, above=above),
                base=None if above is None else base,
                keep=self.keep,
                cache=self.cache,
                rate_limit=self.rate_limit,
                progress=progress,
            )
            prove_sound(qemu_img, base, format=self.base.format, image=self.base.path)
            # First the images that would lose something, so that none reads wrong data at any moment.
            for sibling in self.siblings:
                copy = self._preserved(change, qemu_img, sibling, base)
                take_place(change, sibling, copy, self.around.children(sibling))
            change.replace(self.base.path, base)
            self._settle_overlay(change, emptied, base)
            change.commit(self.around.confirm_chain)
        return Commit(
            path=self.overlay.path,
            base=self.base.path,
            base_size_before=self.base.virtual_size or 0,
            base_size_after=header_of(self.base).virtual_size,
            emptied=not self.keep,
            preserved=tuple(image.path for image in self.siblings),
            between=tuple(image.path for image in self.below[:-1]),
            notes=tuple(self.notes),
        )

    def _above(self, change: Transaction, qemu_img: QemuImg) -> str:
        """An empty image to commit from through the overlay: qemu-img opens the topmost for writing, and a kept
        overlay is not to be written."""
        above = change.stage(self.overlay.path)
        qemu_img.create_over(above, self.overlay.virtual_size or 0, format="qcow2")
        return above

    def _settle_overlay(self, change: Transaction, emptied: str | None, base: str) -> None:
        """The emptied overlay takes its place, and the images above it are anchored to what they stand on now."""
        follow(
            change,
            self._nearest.path,
            parent=self.base.path,
            becomes=base,
            staged=emptied,
            same_content=False,
            accept=self.force,
        )
        if emptied is None:
            return
        take_place(change, self.overlay, emptied, self.above)

    def _preserved(self, change: Transaction, qemu_img: QemuImg, sibling: Image, base: str) -> str:
        """A copy of `sibling` that reads the same on the new base as it does on the old one."""
        copy = refit(change, qemu_img, sibling, onto=base, onto_format=self.base.format or "raw", named=None)
        follow(
            change,
            sibling.path,
            parent=self.base.path,
            becomes=base,
            staged=copy,
            same_content=False,
            accept=self.force,
        )
        return copy


def commit(
    overlay: PathLike,
    *,
    base: PathLike | None = None,
    keep: bool = False,
    preserve_siblings: bool = False,
    force: bool = False,
    store: Paths = (),
    qemu_img: QemuImg | None = None,
) -> Commit:
    """Writes the data of `overlay` into its backing file, or into `base` further down its chain, and empties the
    overlay unless `keep`.

    RefusedError when other images stand on what is written: with `preserve_siblings` these first get copies of what
    they would lose, with `force` their contents change. They are looked for in the directories of the chain, where
    imgtool made some, and in `store`. RefusedError too for a read-only base; ImageInUseError when a program writes
    one of the images.
    """
    request = CommitRequest(
        overlay, base=base, keep=keep, preserve_siblings=preserve_siblings, force=force, store=store
    )
    return request.make(qemu_img or QemuImg())
