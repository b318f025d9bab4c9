"""Whether the parents in a chain are what they were when the overlays were made: the check behind `chain verify`, and
the guard of what boots, commits and rebases.

Judged from metadata alone, so that it costs a few system calls. A parent that was written in place is refused,
whether or not its bytes changed: to know that, they must be read (`imgtool chain anchor --deep`). One that looks the
same but is another file is a copy (`cp -r`, `scp` and archives lose the modification time). A copied store must be as
good as the original, so this is reported but never refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

from msgspec import Struct

from imgtool.chain.graph import Image
from imgtool.chain.look import OPEN_FLAGS
from imgtool.errors import ImageFormatError, RefusedError
from imgtool.image.anchor import Anchor, compare, read_anchor
from imgtool.image.header import FORMATS, read_header
from imgtool.image.names import pasted, printable

AnchorState = Literal["same", "copied", "written", "changed", "stale", "none"]
"""same: nobody wrote the parent. copied: another file that looks the same, with times of its own. written: the same
file, written since; what it holds may be another disk. changed: certainly another disk, or the same laid out anew.
stale: the overlay was put on another parent by a program that knows no anchors. none: no anchor, or no parent to
compare it with."""


class Standing(Struct, frozen=True):
    """An overlay and its parent."""

    overlay: str
    parent: str
    state: AnchorState
    anchor: Anchor | None = None

    @property
    def message(self) -> str:
        """What happened, for people; the parent is its subject."""
        overlay, parent = printable(self.overlay), printable(self.parent)
        return {
            "same": f"{parent} is as {overlay} remembers it",
            "copied": f"{parent} is not the file that {overlay} was made on, but looks the same: a copy of it",
            "written": f"{parent} was written after {overlay} was made on it",
            "changed": f"{parent} is not the disk that {overlay} was made on",
            "stale": f"{overlay} remembers another backing file than {parent}: it was put on this one by hand",
            "none": f"{overlay} remembers nothing of {parent}",
        }[self.state]


def standing(overlay: str, parent: str, *, parent_format: str | None = None) -> Standing:
    """What became of the file `parent` since `overlay`, which names it as its backing file, was anchored to it.
    Raises nothing: what cannot be looked at is `none`."""
    try:
        fd = os.open(overlay, OPEN_FLAGS)
    except OSError:
        return Standing(overlay, parent, "none")
    try:
        header = read_header(fd, format="qcow2")
        anchor = read_anchor(fd, header)
    except ImageFormatError:
        return Standing(overlay, parent, "none")
    finally:
        os.close(fd)
    if anchor is None or header.backing is None:
        return Standing(overlay, parent, "none")
    return Standing(overlay, parent, state_of(anchor, header.backing, parent, parent_format=parent_format), anchor)


def is_parent(anchor: Anchor, path: str, *, parent_format: str | None) -> bool:
    """Whether `anchor` proves that the file at `path`, read in `parent_format`, is the parent that it was taken of:
    moved, or copied with its times. Times in whole seconds prove nothing of a copy: archives and builds that are to
    be repeatable give the same to many files."""
    state = state_of(anchor, anchor.reference, path, parent_format=parent_format, closely=True)
    if anchor.inode is None or state != "same":
        return False
    return anchor.mtime_ns % 1_000_000_000 != 0 or os.stat(path).st_ino == anchor.inode


def state_of(
    anchor: Anchor, reference: bytes, parent: str, *, parent_format: str | None = None, closely: bool = False
) -> AnchorState:
    """What `anchor`, of an overlay whose backing name is `reference`, says of the file `parent`; `closely` is as for
    `imgtool.image.anchor.compare`."""
    if anchor.reference != reference:
        return "stale"
    try:
        fd = os.open(parent, OPEN_FLAGS)
    except OSError:
        return "none"
    try:
        header = read_header(fd, format=parent_format if parent_format in FORMATS else None)
        verdict = compare(anchor, reference, fd, header, directory=os.path.dirname(parent), closely=closely)
        if verdict != "touched":
            return verdict
        status = os.fstat(fd)
        # a copy has the size of the original, and an inode number of its own
        return "written" if status.st_size != anchor.size or status.st_ino == anchor.inode else "copied"
    except (ImageFormatError, OSError):
        return "changed"
    finally:
        os.close(fd)


def standings(chain: Sequence[Image]) -> Iterator[Standing]:
    """How each image of `chain` (that of `imgtool.chain.walk`) stands on the next; remote parents are left out."""
    for image, parent in pairwise(chain):
        if image.format == "qcow2" and parent.format is not None and parent.path.startswith("/"):
            named = image.backing.format if image.backing is not None else None
            yield standing(image.path, parent.path, parent_format=named)


def refuse_changed(chain: Sequence[Image], *, force: bool = False) -> list[str]:
    """RefusedError when an overlay of `chain` does not stand on the disk it was made on, unless `force`. Returns what
    else is worth saying of its anchors."""
    notes = []
    for found in standings(chain):
        name = pasted(found.overlay)
        if found.state in ("written", "changed") and not force:
            proof = (
                f"`imgtool chain anchor --deep {name}` proves that its content is still the same; "
                if found.state == "written" and found.anchor is not None and found.anchor.content is not None
                else ""
            )
            raise RefusedError(
                f"{found.message}: what is read through the overlay may be nonsense",
                hint=f"{proof}`imgtool chain anchor {name}` takes it as it is now; --force goes on just this once",
                path=found.overlay,
            )
        if found.state not in ("same", "none"):
            notes.append(found.message)
    return notes
