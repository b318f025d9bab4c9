"""qemu-img's verbs that change one image in place, done on a copy that then takes its place.

`snapshot -c` and `amend`, killed half-way, leave an image that needs `check -r`, and both have been seen to miss a
full disk. A damaged copy is simply thrown away.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from imgtool.chain.encryption import is_encrypted
from imgtool.chain.graph import Image
from imgtool.errors import RefusedError
from imgtool.image.header import Qcow2Details
from imgtool.image.names import PathLike, printable
from imgtool.operations.anchoring import followers, following, take_place
from imgtool.operations.around import Around, header_of, refuse_in_use, refuse_part, refuse_sealed
from imgtool.operations.journal import recover
from imgtool.operations.plan import Plan, Touched
from imgtool.operations.proof import prove_sound
from imgtool.operations.transaction import Transaction
from imgtool.qemu.answers import named
from imgtool.qemu.qemu_img import QemuImg
from imgtool.qemu.results import Changed

Verb = Callable[[str], Changed]
"""A verb of qemu-img on the image at a path, and what it did."""


def settle(image: PathLike, *, again: str | None = None) -> None:
    """Finishes changes that were interrupted in the directory of `image`. With `again`, RefusedError when one of them
    was of the image itself: the words say what would be done to it a second time."""
    path = os.path.realpath(image)
    finished = {os.path.realpath(done) for done in recover(os.path.dirname(os.fsdecode(path)))}
    if again is not None and os.fsdecode(path) in finished:
        raise RefusedError(
            f"a change of {printable(os.fsdecode(path))} that was broken off has been finished just now",
            hint=f"look at it (`imgtool info`); if it is to be {again} once more, run the command again",
            path=os.fsdecode(path),
        )


class CopyRequest:
    """A verb that may be run on an image, on a copy that then takes its place: every check has passed, and nothing
    has been changed yet.

    Where no copy can take the image's place (a block device, one with an external data file or of several files, one
    with further names) or none is needed (a raw image, whose size changes at once), the verb works in place.
    """

    def __init__(self, image: PathLike, *, format: str | None = None, same_content: bool = True) -> None:
        """With `same_content` a guest reads the same from the disk after the verb, and overlays go on remembering the
        image. Changes that were interrupted are not finished: see `settle`.

        ImageInUseError when a program has the image open; RefusedError for a sealed one."""
        self.around = Around(image, format=format, whole=False, settle=False)
        self.image = top = self.around.image
        refuse_sealed(top)
        refuse_part(top)
        refuse_in_use([top], why="it cannot be changed", even_reading=True)
        self.in_place = in_place(top)
        follow = same_content and not self.in_place
        self.children = self.around.children(top, but=[top.path]) if follow else []
        self.followers = followers(top, self.children)
        refuse_in_use(self.followers, why=f"it remembers {printable(top.path)}, and its header cannot be written")

    def plan(self, argv: Sequence[str]) -> Plan:
        """`argv` is that of the verb on the image itself."""
        also = following(self.followers)
        touched = Touched(path=self.image.path, action="write" if self.in_place else "replace")
        note = "the command works on a copy beside the image, which then takes its place"
        notes = () if self.in_place else (note,)
        return Plan(commands=(tuple(argv),), images=(touched, *also.images), notes=(*notes, *also.notes))

    def make(self, qemu_img: QemuImg, verb: Verb) -> Changed:
        """What `verb` answers."""
        top = self.image
        if self.in_place:
            return verb(top.path)
        with Transaction(top.path) as change:
            change.hold(top.path)
            copy = change.stage(top.path, copy_of=top.path)
            done = verb(copy)
            if not is_encrypted(top):
                prove_sound(qemu_img, copy, format=top.format, image=top.path)
            take_place(change, top, copy, self.children)
            change.commit(self.around.confirm)
        return replace(
            done,
            path=top.path,
            before=named(done.before, top.path),
            after=named(done.after, top.path),
            written=(top.path,),
        )


def in_place(image: Image) -> bool:
    """Whether a verb has to work, or may work, on `image` itself."""
    status = os.stat(image.path)
    details = header_of(image).details
    return (
        image.format == "raw"
        or not stat.S_ISREG(status.st_mode)
        or status.st_nlink > 1
        or (isinstance(details, Qcow2Details) and details.external_data)
        or bool(image.extents)
    )
