"""Reset: an overlay is made empty again, and reads what its backing file holds."""

from __future__ import annotations

import msgspec

from imgtool.chain.encryption import refuse_encrypted
from imgtool.errors import RefusedError
from imgtool.image.header import Header, Qcow2Details
from imgtool.image.names import PathLike, Paths, pasted, printable
from imgtool.operations.anchoring import add_anchor_if_room, take_place
from imgtool.operations.around import (
    Around,
    header_of,
    names,
    refuse_in_use,
    refuse_not_replaceable,
    refuse_sealed,
)
from imgtool.operations.plan import Plan, Touched
from imgtool.operations.proof import prove_sound
from imgtool.operations.transaction import Transaction
from imgtool.qemu import img_argv
from imgtool.qemu.img_argv import OptionValue, Verbatim
from imgtool.qemu.qemu_img import QemuImg


class Reset(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """An overlay that is empty again."""

    path: str
    """The overlay."""
    base: str
    """What it reads now."""
    lost: int
    """Bytes on the host that held what was written."""
    notes: tuple[str, ...] = ()
    """What else is good to know, in words."""


class ResetRequest:
    """A reset that may be made: every check has passed, and nothing has been changed yet."""

    def __init__(
        self,
        overlay: PathLike,
        *,
        force: bool = False,
        format: str | None = None,
        store: Paths = (),
        settle: bool = True,
    ) -> None:
        """See `reset`."""
        self.around = around = Around(overlay, format=format, store=store, settle=settle)
        self.image = around.image
        shown = printable(self.image.path)
        parent = around.parent
        if parent is None:
            raise RefusedError(f"{shown} has no backing file: nothing of it would be left", path=self.image.path)
        self.parent = parent
        if self.image.format != "qcow2":
            raise RefusedError(
                f"{shown} is a {self.image.format} image; only qcow2 overlays can be reset",
                hint="`imgtool overlay delete` and `imgtool overlay new` make a new one",
                path=self.image.path,
            )
        refuse_sealed(self.image)
        refuse_not_replaceable(self.image)
        refuse_encrypted([self.image, *around.chain_below()])
        refuse_in_use([self.image], why="its disk would change under a running machine", even_reading=True)
        children = around.children(self.image, but=[self.image.path])
        if children and not force:
            raise RefusedError(
                f"{names(children)} {'stands' if len(children) == 1 else 'stand'} on {shown}, and would lose what "
                "was written to it",
                hint=f"`imgtool chain flatten {pasted(children[0].path)}` makes it independent; --force resets "
                "all the same",
                path=self.image.path,
            )
        kept = len(self.image.snapshots)
        if kept and not force:
            raise RefusedError(
                f"{shown} has {kept} internal {'snapshot' if kept == 1 else 'snapshots'}, which would be lost",
                hint="`imgtool snapshot -d` deletes them; --force resets it anyway",
                path=self.image.path,
            )
        refuse_in_use(children, why=f"it stands on {shown}", even_reading=True)
        self.notes = around.refuse_changed(force=force)

    def plan(self, program: str) -> Plan:
        image = self.image
        argv = img_argv.create(
            program,
            image.path,
            image.virtual_size,
            format="qcow2",
            backing=Verbatim(self._reference),
            backing_format=self._format,
            unsafe_backing=True,
            options=creation_options(header_of(image)),
        )
        notes = ["the command makes a file beside the image, which then takes its place", *self.notes]
        notes.append("what was written to it is lost")
        return Plan(
            commands=(tuple(argv),),
            images=(Touched(path=image.path, action="replace"), Touched(path=self.parent.path, action="read")),
            notes=tuple(notes),
            total=image.actual_size,
        )

    @property
    def _reference(self) -> str:
        assert self.image.backing is not None
        return self.image.backing.reference

    @property
    def _format(self) -> str:
        assert self.image.backing is not None
        return self.image.backing.format or self.parent.format or "raw"

    def make(self, qemu_img: QemuImg) -> Reset:
        """Resets. Whatever happens, the overlay afterwards reads as before, or as its backing file."""
        image = self.image
        with Transaction(image.path) as change:
            change.hold(image.path)
            change.hold(self.parent.path)
            empty = change.stage(image.path)
            qemu_img.create_over(
                empty,
                image.virtual_size or 0,
                format="qcow2",
                backing=Verbatim(self._reference),
                backing_format=self._format,
                options=creation_options(header_of(image)),
            )
            prove_sound(qemu_img, empty, format="qcow2", image=image.path)
            add_anchor_if_room(empty, self.parent.path)
            # what stood on it by --force is left to notice that its parent changed
            take_place(change, image, empty, ())
            change.commit(self.around.confirm)
        return Reset(path=image.path, base=self.parent.path, lost=image.actual_size or 0, notes=tuple(self.notes))


def creation_options(header: Header) -> dict[str, OptionValue]:
    """The `-o` with which an empty qcow2 is made like the one that has `header`."""
    details = header.details
    assert isinstance(details, Qcow2Details)
    options: dict[str, OptionValue] = {
        "compat": "0.10" if details.version == 2 else "1.1",
        "cluster_size": details.cluster_size,
    }
    if details.version == 2:
        return options
    options |= {"refcount_bits": details.refcount_bits, "lazy_refcounts": details.lazy_refcounts}
    if details.compression != "zlib":
        options["compression_type"] = details.compression
    if details.extended_l2:
        options["extended_l2"] = True
    return options


def reset(
    overlay: PathLike,
    *,
    force: bool = False,
    store: Paths = (),
    qemu_img: QemuImg | None = None,
) -> Reset:
    """Makes `overlay` empty again: what was written to it is lost, and it reads what its backing file holds. Its
    name, size, format options and permissions stay; bitmaps do not.

    RefusedError when something stands on it or it has internal snapshots (not with `force`), for a base, and for a
    sealed image; ImageInUseError when a program has it open.
    """
    return ResetRequest(overlay, force=force, store=store).make(qemu_img or QemuImg())
