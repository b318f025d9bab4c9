"""Putting an image on another backing file, or none, so that a guest reads the same: from its disk and from each of
its internal snapshots. Done on a copy, and proven before the copy takes the image's place."""

from __future__ import annotations

import os
from typing import NamedTuple

from imgtool.chain.graph import Backing, Image
from imgtool.errors import RefusedError
from imgtool.image.formats.qcow2 import MAX_SNAPSHOTS
from imgtool.image.header import Qcow2Details, read_header
from imgtool.image.names import printable
from imgtool.image.snapshot_table import Snapshot, exchange_disks, read_snapshots
from imgtool.operations.around import header_of
from imgtool.operations.proof import Progress, prove_same, prove_sound
from imgtool.operations.transaction import Transaction
from imgtool.qemu.img_argv import Cache, ImageOpts, Source, Verbatim
from imgtool.qemu.qemu_img import QemuImg


class Caches(NamedTuple):
    """The cache modes that qemu-img works with. What it writes is brought to the disk by the transaction, and a
    failure that no flush has swallowed is seen there: so `unsafe` is the safest."""

    target: Cache = "unsafe"
    source: Cache | None = None


MOVABLE = ("qcow2", "qed")
"""Formats in which QEMU can change the name of the backing file."""


def refuse_not_movable(image: Image) -> None:
    """RefusedError when `image` cannot be put on another backing file so that all it holds reads the same."""
    shown = printable(image.path)
    if image.format not in MOVABLE:
        raise RefusedError(
            f"{shown} is a {image.format} image, which QEMU cannot put on another backing file",
            hint="`imgtool convert -O qcow2` makes an image of it that can be",
            path=image.path,
        )
    details = header_of(image).details
    if image.snapshots and isinstance(details, Qcow2Details) and details.bitmaps:
        raise RefusedError(
            f"{shown} has both internal snapshots and dirty bitmaps: QEMU cannot go through such snapshots",
            hint="`imgtool bitmap --remove` or `imgtool snapshot -d` takes away one of them",
            path=image.path,
        )


def refit(
    change: Transaction,
    qemu_img: QemuImg,
    image: Image,
    *,
    onto: str | Verbatim | None,
    onto_format: str = "raw",
    named: str | None = None,
    caches: Caches | None = None,
    progress: Progress | None = None,
) -> str:
    """A staged copy of `image` that reads on the file `onto` (None: on nothing) what `image` reads on its own backing
    file. Its header names `named`, or what it did when `onto` is a new version of that. CommandError or ProofError
    when that fails."""
    copy = change.stage(image.path, copy_of=image.path)
    work = _Work(change, qemu_img, image, copy, onto, onto_format, caches or Caches())
    if image.snapshots:
        work.fill_snapshots()
    work.fill(progress)
    if onto is not None and named is None:
        work.name_old()
    elif onto is not None and named is not None:
        work.name(named)
    prove_sound(qemu_img, copy, format=image.format, image=image.path)
    # by its own name where that leads to `onto` already: then the reference is proven, too
    source = copy if onto is None or named is not None else work.opened(copy)
    prove_same(qemu_img, source, image.path, formats=(image.format, image.format), image=image.path)
    if image.snapshots:
        work.prove_snapshots()
    return copy


def every_snapshot(path: str, format: str) -> list[Snapshot]:
    """The internal snapshots of the image at `path`: a graph lists the first thousand only."""
    with open(path, "rb") as file:
        header = read_header(file.fileno(), format=format)
        return read_snapshots(file.fileno(), header, most=MAX_SNAPSHOTS)


class _Work:
    def __init__(
        self,
        change: Transaction,
        qemu_img: QemuImg,
        image: Image,
        copy: str,
        onto: str | Verbatim | None,
        onto_format: str,
        caches: Caches,
    ) -> None:
        self.change, self.qemu_img, self.image, self.copy = change, qemu_img, image, copy
        self.onto, self.onto_format = onto, onto_format
        self.caches = caches
        self.format = image.format or "qcow2"
        self.snapshots = every_snapshot(image.path, self.format) if image.snapshots else []

    def fill(self, progress: Progress | None = None) -> None:
        """Copies whatever would read differently on the new backing file."""
        self.qemu_img.rebase(
            self.copy,
            backing=self.onto,
            backing_format=None if self.onto is None else self.onto_format,
            format=self.format,
            cache=self.caches.target,
            source_cache=self.caches.source,
            progress=progress,
        )

    def name(self, reference: str, format: str | None = None) -> None:
        """Writes the name of the backing file into the header."""
        self.qemu_img.rebase(
            self.copy,
            backing=Verbatim(reference),
            backing_format=format or self.onto_format,
            format=self.format,
            unsafe=True,
            cache="unsafe",
        )

    def name_old(self) -> None:
        """Writes the name that the original has."""
        backing = self.image.backing
        if backing is not None:
            self.name(backing.reference, backing.format or self._probed(backing))
        elif self.onto is not None:
            self.qemu_img.rebase(self.copy, backing=None, format=self.format, unsafe=True, cache="unsafe")

    @staticmethod
    def _probed(backing: Backing) -> str:
        """The format of a backing file whose overlay names none: QEMU goes by its magic number then."""
        if backing.path is None:
            return "raw"
        with open(backing.path, "rb") as file:
            return read_header(file.fileno()).format

    def opened(self, copy: str) -> Source:
        """`copy` on the new backing file, whatever its header names if that is a path."""
        if isinstance(self.onto, Verbatim):
            return copy
        assert self.onto is not None
        return ImageOpts.of_chain([(copy, self.format), (self.onto, self.onto_format)])

    def fill_snapshots(self) -> None:
        """What `fill` does for the disk, for each internal snapshot. qemu-img has no verb for that: each is applied,
        filled and kept as a twin; then the twins' disks become the snapshots'."""
        verbs, format = self.qemu_img, self.format
        token = f"imgtool-{os.urandom(8).hex()}"
        verbs.snapshot_create(self.copy, token, format=format)
        before = self._ids()
        twins: dict[bytes, bytes] = {}
        for snapshot in self.snapshots:
            verbs.snapshot_apply(self.copy, snapshot.id, format=format)
            self.fill()
            self.name_old()
            verbs.snapshot_create(self.copy, f"{token}-{snapshot.id}", format=format)
            made = self._ids() - before - set(twins.values())
            twins[os.fsencode(snapshot.id)] = made.pop()
        verbs.snapshot_apply(self.copy, token, format=format)
        fd = os.open(self.copy, os.O_RDWR | os.O_CLOEXEC)
        try:
            exchange_disks(fd, twins)
        finally:
            os.close(fd)
        for name in (token, *(f"{token}-{snapshot.id}" for snapshot in self.snapshots)):
            verbs.snapshot_delete(self.copy, name, format=format)

    def _ids(self) -> set[bytes]:
        return {os.fsencode(one.id) for one in self.qemu_img.snapshot_list(self.copy, format=self.format)}

    def prove_snapshots(self) -> None:
        """As for the disk: each snapshot is applied to copies of both versions, which are then compared."""
        old = self.change.stage(self.image.path, copy_of=self.image.path)
        new = self.change.stage(self.image.path, copy_of=self.copy)
        source = new if self.onto is None else self.opened(new)
        for snapshot in self.snapshots:
            for copy in (old, new):
                self.qemu_img.snapshot_apply(copy, snapshot.id, format=self.format)
            prove_same(self.qemu_img, source, old, formats=(self.format, self.format), image=self.image.path)
        for copy in (old, new):
            os.unlink(copy)
