"""Repair: mends those defects found by `chain verify` that can be mended without loss, and reports the rest."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator

import msgspec

from imgtool.chain.anchors import standing
from imgtool.chain.findings import KINDS
from imgtool.chain.graph import Image
from imgtool.chain.hidden import hidden_findings, is_foreign
from imgtool.chain.remedies import Remedies
from imgtool.chain.verify import Defect, Verification, Verified
from imgtool.errors import ImgtoolError, RefusedError, UsageError
from imgtool.image.anchor import Anchor
from imgtool.image.names import HIDDEN, Paths, paths_of, printable
from imgtool.image.remembered import remember
from imgtool.operations.anchor import AnchorRequest
from imgtool.operations.anchoring import anchor_to, followers, following, take_place
from imgtool.operations.around import Around, header_of, refuse_in_use, refuse_not_replaceable, refuse_sealed
from imgtool.operations.journal import recover
from imgtool.operations.overlay import reference_to
from imgtool.operations.plan import Action, Plan, Touched
from imgtool.operations.proof import prove_same, prove_sound
from imgtool.operations.relink import Link, rename_backing
from imgtool.operations.transaction import Transaction
from imgtool.qemu import img_argv
from imgtool.qemu.qemu_img import QemuImg

Progress = Callable[[float], None]

DEEP = ("leaks", "damaged", "check-failed")
"""Codes that only a look with `deep` finds."""


class Mended(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The outcome for one defect."""

    code: str
    """The defect's, as `chain verify` has it."""
    path: str
    """The image, file or directory that carries it."""
    done: bool
    """Whether it is mended."""
    message: str
    """What was done, or why it was not."""


class Repaired(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What a repair did."""

    mended: tuple[Mended, ...]
    """Each defect that there is a way to mend."""
    left: Verification
    """What a second look found."""


class RepairRequest:
    """A store that was verified, and what can be mended in it. Nothing has been changed yet."""

    def __init__(
        self,
        paths: Paths,
        *,
        only: Collection[str] = (),
        store: Paths = (),
        deep: QemuImg | None = None,
        progress: Progress | None = None,
    ) -> None:
        """See `repair`."""
        for code in only:
            if code not in KINDS:
                raise UsageError(f"{printable(code)!r} is not a defect code", hint=f"one of {', '.join(KINDS)}")
        self.paths, self.store, self.only = paths_of(paths), paths_of(store), tuple(only)
        self.deep = deep
        self.verified = Verified(self.paths, store=self.store, deep=deep, progress=progress)
        found = self.verified.answer()
        self.wanted = [one for one in found.defects if one.automatic and (not only or one.code in only)]

    def plan(self, program: str) -> Plan:
        images, commands, notes = [], [], []
        for defect in self.wanted:
            assert defect.path is not None
            images.append(Touched(path=defect.path, action=ACTIONS[defect.code]))
            notes.append(f"{defect.code}: {printable(defect.path)}: {defect.message}")
            if defect.code in ("leaks", "dirty"):
                how: img_argv.Repair = "leaks" if defect.code == "leaks" else "all"
                commands.append(tuple(img_argv.check(program, defect.path, format="qcow2", repair=how)))
                also = following(self._followers(self.verified.by_path[defect.path]))
                images += also.images
                notes += also.notes
        return Plan(commands=tuple(commands), images=tuple(images), notes=tuple(notes))

    def _followers(self, image: Image) -> list[Image]:
        named = {defect.path for defect in self.wanted}
        found = [self.verified.by_path[path] for path in image.children if path not in named]
        return followers(image, found, refuse=False)

    def make(self, qemu_img: QemuImg) -> Repaired:
        """Mends the defects one after the other; one that cannot be mended is reported, and the next is tried."""
        mended = []
        for defect in self.wanted:
            assert defect.path is not None
            try:
                done, message = True, self._mend(defect, defect.path, qemu_img)
            except ImgtoolError as error:
                done, message = False, error.message
            mended.append(Mended(code=defect.code, path=defect.path, done=done, message=message))
        left = Verified(self.paths, store=self.store, deep=self.deep).answer()
        return Repaired(mended=tuple(mended), left=left)

    def _mend(self, defect: Defect, path: str, qemu_img: QemuImg) -> str:
        if defect.code == "unfinished-change":
            recover(os.path.dirname(path))
            return "finished"
        if defect.code == "leftover":
            return _clear(path)
        image = self.verified.by_path[path]
        if defect.code in ("backing-format-missing", "backing-format-wrong"):
            return self._name_format(image, qemu_img)
        if defect.code == "missing-parent":
            return self._find_parent(image, qemu_img)
        if defect.code in ("leaks", "dirty"):
            return self._mend_tables(image, defect.code, qemu_img)
        AnchorRequest([path], deep=True).make(qemu_img)
        return "its backing file holds what it did: anchored again"

    def _name_format(self, image: Image, qemu_img: QemuImg) -> str:
        parent = self.verified.by_path[image.parent or ""]
        assert image.backing is not None
        assert parent.format is not None
        _refuse_written(image)
        with Transaction(image.path) as change:
            rename_backing(change, qemu_img, image, Link(image.backing.reference, parent.format))
            change.commit()
        return f"its backing file is named {parent.format}"

    def _find_parent(self, image: Image, qemu_img: QemuImg) -> str:
        found = Remedies(self.verified.by_path, self.verified.health).candidate(image)
        if found is None or not found.sure or image.backing is None:
            raise RefusedError("nothing was found that is certain to be its backing file", path=image.path)
        _refuse_written(image)
        was_absolute = os.path.isabs(image.backing.reference)
        reference = reference_to(found.path, os.path.dirname(image.path), absolute=was_absolute)
        remember(image.path, found.path)
        with Transaction(image.path) as change:
            anchor = _anchor_by(reference, found.path, image)
            rename_backing(change, qemu_img, image, Link(reference, found.format), anchor=anchor)
            change.commit()
        return f"found again: {printable(found.path)}"

    def _mend_tables(self, image: Image, code: str, qemu_img: QemuImg) -> str:
        around = Around(image.path, store=self.store)
        image = around.image
        children = around.children(image)
        refuse_sealed(image)
        refuse_in_use([image], why="it cannot be repaired", even_reading=True)
        refuse_not_replaceable(image)
        refuse_in_use(children, why=f"it stands on {printable(image.path)}")
        with Transaction(image.path) as change:
            change.hold(image.path)
            copy = change.stage(image.path, copy_of=image.path)
            result = qemu_img.check(copy, format=image.format, repair="leaks" if code == "leaks" else "all")
            prove_sound(qemu_img, copy, format=image.format, image=image.path)
            prove_same(qemu_img, copy, image.path, formats=(image.format, image.format), image=image.path)
            take_place(change, image, copy, children)
            change.commit(around.confirm)
        fixed = result.report.leaks_fixed if result.report is not None else None
        return f"{fixed or 0} leaked clusters given back" if code == "leaks" else "its reference counts are right"


ACTIONS: dict[str, Action] = {
    "unfinished-change": "write",
    "leftover": "delete",
    "backing-format-missing": "write",
    "backing-format-wrong": "write",
    "missing-parent": "write",
    "parent-written": "write",
    "parent-copied": "write",
    "leaks": "replace",
    "dirty": "replace",
}
"""Code of a defect that can be mended (`imgtool.chain.findings.MENDED`) → what that does to the image."""


def _refuse_written(image: Image) -> None:
    refuse_sealed(image)
    refuse_in_use([image], why="it cannot be repaired")


def _anchor_by(reference: str, parent: str, image: Image) -> Anchor | None:
    """The anchor of an overlay that found its parent again: what it knew of its content stays."""
    header = header_of(image)
    if header.backing is None:
        return None
    found = standing(image.path, parent, parent_format=header.backing_format)
    known = found.anchor
    if known is None or found.state == "stale":
        return None
    return anchor_to(parent, msgspec.structs.replace(header, backing=os.fsencode(reference)), content=known.content)


def _clear(path: str) -> str:
    """Removes a hidden file or directory, if still no process works on it."""
    folder = os.path.dirname(path)
    if path not in {found for found, _ in hidden_findings(_beside(folder))}:
        return "gone meanwhile"
    if path.endswith(".journal") and not is_foreign(path):
        recover(folder)
    elif os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    return "removed"


def _beside(folder: str) -> Iterator[str]:
    for name in os.listdir(folder):
        if name.startswith(HIDDEN):
            yield os.path.join(folder, name)


def repair(
    paths: Paths,
    *,
    only: Collection[str] = (),
    store: Paths = (),
    deep: bool = False,
    qemu_img: QemuImg | None = None,
    progress: Progress | None = None,
) -> Repaired:
    """Repairs what `verify` finds in `paths` and can be repaired automatically; with `only`, the findings of these
    codes.

    A backing format that is missing or wrong is corrected, a backing file that was moved is found again if an anchor
    proves its identity, interrupted changes are finished, leftovers are removed, and lost space and wrong reference
    counts are repaired on a copy, which is compared with the image before it takes its place. Damaged images are left
    alone.

    Raises nothing for what cannot be repaired, which the result lists; UsageError for an unknown code, and what
    `verify` raises.
    """
    img = qemu_img or QemuImg()
    request = RepairRequest(paths, only=only, store=store, deep=img if deep else None, progress=progress)
    return request.make(img)
