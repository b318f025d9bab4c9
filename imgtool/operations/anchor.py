"""Re-anchoring overlays to their parents as they are now: on request, or after proof that nothing changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from imgtool.chain.anchors import AnchorState, standing
from imgtool.chain.content import layers_of
from imgtool.chain.graph import Image
from imgtool.errors import ImageFormatError, RefusedError
from imgtool.image.anchor import Anchor, edited_head, takes_anchor
from imgtool.image.header import read_header
from imgtool.image.names import PathLike, Paths, pasted, paths_of, printable
from imgtool.operations.anchoring import anchor_to
from imgtool.operations.around import Around, header_of, refuse_in_use, refuse_sealed
from imgtool.operations.meanwhile import changed
from imgtool.operations.plan import Plan, Touched
from imgtool.operations.transaction import Transaction
from imgtool.qemu.digest import content_digest
from imgtool.qemu.qemu_img import QemuImg

Progress = Callable[[float], None]


class Anchored(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What an overlay remembers now."""

    path: str
    """The overlay."""
    parent: str
    """The image it stands on."""
    before: AnchorState
    """How the overlay stood on its parent until now."""
    content: str | None
    """The digest of what a guest reads of the parent, where it is known."""
    proven: bool
    """Whether the parent was seen to hold what the overlay remembered of it."""


Answers = list[Anchored]
"""The document of `chain anchor --output json`."""


class _Pair(NamedTuple):
    around: Around
    image: Image
    parent: Image
    chain: list[Image]
    """From the parent down."""
    state: AnchorState
    known: Anchor | None


class AnchorRequest:
    """Overlays that may be anchored: every check has passed, and nothing has been changed yet."""

    def __init__(self, overlays: Paths, *, deep: bool = False, force: bool = False, settle: bool = True) -> None:
        """See `anchor`."""
        self.deep, self.force = deep, force
        self.pairs = [self._look(overlay, settle) for overlay in paths_of(overlays)]

    def _look(self, overlay: PathLike, settle: bool) -> _Pair:
        around = Around(overlay, settle=settle)
        image, parent = around.image, around.parent
        shown = printable(image.path)
        if parent is None:
            raise RefusedError(f"{shown} is a base: it has no parent to remember", path=image.path)
        if not takes_anchor(header_of(image)):
            raise RefusedError(
                f"{shown} has no room for an anchor: only a qcow2 of version 3 has",
                hint=f"`imgtool amend -o compat=1.1 {pasted(image.path)}` makes it one"
                if image.format == "qcow2"
                else "`imgtool convert -O qcow2` makes one of it",
                path=image.path,
            )
        refuse_sealed(image)
        refuse_in_use([image], why="its header cannot be written")
        refuse_in_use([parent], why="what it holds changes")
        named = image.backing.format if image.backing is not None else None
        found = standing(image.path, parent.path, parent_format=named)
        if self.deep and not self.force and found.state in ("written", "changed", "copied"):
            self._refuse_unproven(image, parent, found.anchor)
        return _Pair(around, image, parent, around.chain[1:], found.state, found.anchor)

    @staticmethod
    def _refuse_unproven(image: Image, parent: Image, anchor: Anchor | None) -> None:
        if anchor is None or anchor.content is None:
            shown = printable(image.path)
            raise RefusedError(
                f"{printable(parent.path)} was written or copied, and {shown} does not remember what it held: "
                "nothing can be proven",
                hint=f"`imgtool chain anchor {pasted(image.path)}` takes it as it is; --force records its content "
                "besides",
                path=image.path,
            )

    def plan(self) -> Plan:
        images: list[Touched] = []
        for pair in self.pairs:
            size = sum(image.actual_size or 0 for image in pair.chain) if self.deep else 0
            note = Touched(path=pair.parent.path, action="read", bytes=size if self.deep else None)
            if note not in images:
                images.append(note)
            images.append(Touched(path=pair.image.path, action="write"))
        return Plan(commands=(), images=tuple(images), notes=("only the headers of the overlays are written",))

    def make(self, qemu_img: QemuImg, *, progress: Progress | None = None) -> list[Anchored]:
        """Anchors all of them or none."""
        if not self.pairs:
            return []
        done = []
        with Transaction(self.pairs[0].image.path) as change:
            for pair in self.pairs:
                self._hold(change, pair)
            contents = self._contents(qemu_img, progress)
            for pair in self.pairs:
                content = contents.get(pair.parent.path)
                proven = self._prove(pair, content)
                if content is None and pair.known is not None and pair.state in ("same", "copied"):
                    content = pair.known.content
                change.patch(pair.image.path, _head(pair, content))
                done.append(
                    Anchored(
                        path=pair.image.path,
                        parent=pair.parent.path,
                        before=pair.state,
                        content=content,
                        proven=proven,
                    )
                )
            change.commit()
        return done

    def _hold(self, change: Transaction, pair: _Pair) -> None:
        """From here on the image and its parent are what they were when they were looked at."""
        change.hold(pair.image.path)
        for image in pair.chain if self.deep else [pair.parent]:
            if image.format is not None:
                change.hold(image.path)
        pair.around.confirm()
        named = pair.image.backing.format if pair.image.backing is not None else None
        found = standing(pair.image.path, pair.parent.path, parent_format=named)
        if (found.state, found.anchor) != (pair.state, pair.known):
            raise changed(pair.parent.path)

    def _contents(self, qemu_img: QemuImg, progress: Progress | None) -> dict[str, str]:
        if not self.deep:
            return {}
        chains = {pair.parent.path: pair.chain for pair in self.pairs}
        found: dict[str, str] = {}
        for number, (path, chain) in enumerate(chains.items()):

            def show(percent: float, number: int = number) -> None:
                if progress is not None:
                    progress((100 * number + percent) / len(chains))

            found[path] = content_digest(qemu_img, layers_of(chain), chain[0].virtual_size or 0, progress=show)
        return found

    def _prove(self, pair: _Pair, content: str | None) -> bool:
        if content is None or pair.known is None or pair.known.content is None or pair.state in ("stale", "none"):
            return False
        if content != pair.known.content and not self.force:
            raise RefusedError(
                f"{printable(pair.parent.path)} holds another disk than the one {printable(pair.image.path)} was "
                "made on",
                hint="--force takes it as it is now",
                path=pair.image.path,
            )
        return content == pair.known.content


def _head(pair: _Pair, content: str | None) -> bytes:
    fd = os.open(pair.image.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return edited_head(fd, anchor=replace(anchor_to(pair.parent.path, read_header(fd)), content=content))
    except ImageFormatError as error:
        error.path = pair.image.path
        raise
    finally:
        os.close(fd)


def anchor(
    overlays: Paths,
    *,
    deep: bool = False,
    force: bool = False,
    qemu_img: QemuImg | None = None,
    progress: Progress | None = None,
) -> list[Anchored]:
    """Has each of `overlays` remember its backing file as it is now; all of them or none.

    With `deep` the contents of the backing files are read and recorded, too: RefusedError when they are not what was
    recorded before, or when the file was written to since and nothing was recorded (not with `force`). RefusedError
    also for a base, a read-only image and one too old for an anchor; ImageInUseError when a program uses it.
    """
    return AnchorRequest(overlays, deep=deep, force=force).make(qemu_img or QemuImg(), progress=progress)
