"""Making overlays, and listing the overlays of a base."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping

from imgtool.chain.graph import Image
from imgtool.chain.link import MAX_DEPTH
from imgtool.chain.look import FORMAT_NAMES, RAW_NAMES, Looker
from imgtool.chain.scan import absolute as absolute_path
from imgtool.chain.scan import check_asked, survey
from imgtool.chain.truncation import refuse_truncated
from imgtool.chain.walk import guard
from imgtool.errors import (
    ImageError,
    ImageExistsError,
    ImageFormatError,
    ImageInUseError,
    ImageNotFoundError,
    ImgtoolError,
    RefusedError,
    UsageError,
)
from imgtool.image.header import FORMATS
from imgtool.image.names import PathLike, Paths, printable
from imgtool.image.users import users_of
from imgtool.operations.anchoring import add_anchor
from imgtool.operations.journal import recover
from imgtool.operations.meanwhile import Seen
from imgtool.operations.plan import Plan, Touched
from imgtool.qemu import img_argv
from imgtool.qemu.img_argv import OptionValue, backing_reference
from imgtool.qemu.inputs import check_input
from imgtool.qemu.qemu_img import QemuImg
from imgtool.sizes import Size, bytes_of

FORMAT = "qcow2"
"""Of every overlay: the one format that names its backing file's, and that QEMU keeps developing."""

MAX_REFERENCE = 1023
"""Bytes of a backing name in a qcow2 (QEMU's docs/interop/qcow2.txt)."""

FORCED_DEPTH = 1000
"""Images in a chain at which even `force` ends: qemu-img 7.2 crashes at 1,200."""

_MAX_NAME = 255
_OWN_OPTIONS = {"backing_file": "BASE", "backing_fmt": "--backing-format", "size": "--size"}


class OverlayRequest:
    """An overlay that may be made: every check has passed, and nothing has been changed yet."""

    def __init__(
        self,
        base: PathLike,
        overlay: PathLike | None = None,
        *,
        absolute: bool = False,
        size: Size | None = None,
        options: Mapping[str, OptionValue] | None = None,
        base_format: str | None = None,
        allow_smaller: bool = False,
        anchor: bool = True,
        force: bool = False,
        settle: bool = True,
    ) -> None:
        """See `new_overlay`. With `settle`, changes that were broken off here are finished first."""
        self.base = absolute_path(base)
        self.anchor = anchor
        self.options = dict(options or {})
        for name, instead in _OWN_OPTIONS.items():
            if name in self.options:
                raise UsageError(f"-o {name} cannot be given for an overlay", hint=f"{instead} says it")
        self.data_file = self.options.pop("data_file", None)
        self.size = None if size is None else bytes_of(size)
        if settle:
            check_input(self.base, what="base")
        known = base_format if base_format in FORMATS else None  # imgtool does not read all of QEMU's formats
        chain = guard(self.base, format=known, max_depth=FORCED_DEPTH if force else MAX_DEPTH - 1)
        if not force:
            _refuse_written(chain)
            refuse_truncated(chain)
        self._refuse_smaller(chain[0], allow_smaller)
        self.depth = len(chain)
        self.seen = Seen(self.base)
        self.base_format = base_format or chain[0].format or "raw"
        self._place(overlay, settle=settle)
        absolute = absolute or stat.S_ISBLK(os.stat(self.base).st_mode)  # /dev is nowhere near
        self.reference = reference_to(self.base, self.directory, absolute=absolute)

    def _place(self, overlay: PathLike | None, *, settle: bool) -> None:
        """Where the overlay goes: `path`, or None where a name is yet to be chosen in `directory`."""
        self.path = None if overlay is None else absolute_path(overlay)
        if overlay is None or self.path is None:
            self.directory = os.path.dirname(self.base)
        elif os.path.isdir(self.path):
            self.directory, self.path = self.path, None
        else:
            if os.fsdecode(overlay).endswith("/"):
                raise ImageNotFoundError(
                    f"there is no directory {printable(self.path)}", hint="make it first", path=self.path
                )
            self.directory = os.path.dirname(self.path)
        if settle:
            recover(os.path.realpath(self.directory))
        if self.path is not None and os.path.lexists(self.path):
            raise ImageExistsError(
                f"{printable(self.path)} already exists",
                hint="choose another name, or none to have one made up",
                path=self.path,
            )
        if not os.path.isdir(self.directory):
            raise ImageError(
                f"{printable(self.path or self.directory)} cannot be made",
                hint=f"there is no directory {printable(self.directory)}",
                path=self.path,
            )

    def _refuse_smaller(self, base: Image, allow_smaller: bool) -> None:
        if self.size is not None and not allow_smaller and base.virtual_size and self.size < base.virtual_size:
            raise RefusedError(
                f"an overlay of {self.size} bytes would hide the end of {printable(base.path)}, "
                f"which has {base.virtual_size} bytes",
                hint="--allow-smaller makes it all the same",
                path=base.path,
            )

    def names(self) -> Iterator[str]:
        """The path to try first, then those to try when another process took it in the meantime."""
        if self.path is not None:
            yield self.path
            return
        taken = set(os.listdir(self.directory))
        stem = stem_of(os.path.basename(self.base))
        number = 0
        while True:
            number += 1
            name = fresh_name(stem, number)
            if name not in taken:
                yield os.path.join(self.directory, name)

    def _data_file(self) -> str | None:
        """The external data file's path: a relative one is beside the overlay, where QEMU will look for it."""
        return None if self.data_file is None else os.path.join(self.directory, str(self.data_file))

    def plan(self, program: str) -> Plan:
        path = next(self.names())
        data_file = self._data_file()
        options = self.options if data_file is None else {"data_file": data_file, **self.options}
        argv = img_argv.create(
            program,
            path,
            self.size,
            format=FORMAT,
            backing=self.reference,
            backing_format=self.base_format,
            options=options,
        )
        return Plan(
            commands=(tuple(argv),),
            images=(Touched(path=self.base, action="read"), Touched(path=path, action="create")),
        )

    def make(self, qemu_img: QemuImg) -> Image:
        """Makes the overlay, whole or not at all, and never over an existing file."""
        for path in self.names():
            try:
                self._create(qemu_img, path)
            except (ImageExistsError, ImageInUseError) as error:
                if self.path is not None or error.path != path:
                    raise
                continue  # another process was faster; the next number
            image, _ = Looker().at(path)
            image.parent = self.base
            image.depth = self.depth
            return image
        raise ImgtoolError("no name is left for an overlay", path=self.directory)

    def _create(self, qemu_img: QemuImg, path: str) -> None:
        with contextlib.ExitStack() as stack:

            def finish(hidden: str) -> None:
                stack.enter_context(self.seen.still())
                if self.anchor:
                    self._anchor(hidden)

            qemu_img.create(
                path,
                self.size,
                format=FORMAT,
                backing=self.reference,
                backing_format=self.base_format,
                data_file=self._data_file(),
                options=self.options,
                finish=finish,
            )

    def _anchor(self, hidden: str) -> None:
        with contextlib.suppress(ImageFormatError):  # clusters of 512 bytes have no room for one
            add_anchor(hidden, self.base)


def new_overlay(
    base: PathLike,
    overlay: PathLike | None = None,
    *,
    absolute: bool = False,
    size: Size | None = None,
    options: Mapping[str, OptionValue] | None = None,
    base_format: str | None = None,
    allow_smaller: bool = False,
    anchor: bool = True,
    force: bool = False,
    qemu_img: QemuImg | None = None,
) -> Image:
    """Makes a qcow2 overlay of `base` and returns it as it is then; its `path` says where it is.

    `overlay` is its path, or a directory in which a free name is chosen; None is the directory of `base`. The backing
    name is relative to the overlay's directory unless `absolute`; the backing format is always named: `base_format`,
    or what the base's header says. `size` is the base's when None. `options` are qemu-img's `-o`.

    ImageNotFoundError, ImageUnreadableError, ImageFormatError or ChainError when `base` or its chain cannot be used;
    ImageInUseError when something writes to it (not with `force`); ImageExistsError when there is a file at
    `overlay`; RefusedError when the overlay would be smaller than its base (not with `allow_smaller`).
    """
    request = OverlayRequest(
        base,
        overlay,
        absolute=absolute,
        size=size,
        options=options,
        base_format=base_format,
        allow_smaller=allow_smaller,
        anchor=anchor,
        force=force,
    )
    return request.make(qemu_img or QemuImg())


Overlays = list[Image]
"""The document of `overlay list --output json`."""


def list_overlays(base: PathLike, *, store: Paths = (), deep: bool = False) -> list[Image]:
    """The images that name `base` as their backing file, sorted by path; with `deep`, those that stand on these too.
    Looked for as `imgtool.scan` does. ImageNotFoundError when there is neither a base nor an overlay of it."""
    found = survey([base], store=store)
    check_asked(found)
    by_path = found.graph.by_path()
    root = by_path[found.asked[0]]
    waiting = list(root.children)
    paths = set(waiting)
    while deep and waiting:
        for child in by_path[waiting.pop()].children:
            if child not in paths and child != root.path:
                paths.add(child)
                waiting.append(child)
    return [image for image in found.graph.images if image.path in paths and image is not root]


def reference_to(base: str, directory: str, *, absolute: bool = False) -> str:
    """How an overlay in `directory` names `base` (both absolute): a relative path between where the two directories
    really are, since QEMU hands `directory/reference` to the kernel, for which `..` behind a symlink is the parent of
    what the symlink leads to. `base` may be a symlink itself and is then named as such.

    RefusedError when the name is too long for a qcow2.
    """
    if absolute:
        reference = base
    else:
        folder, name = os.path.split(base)
        real = os.path.join(os.path.realpath(folder), name)
        reference = backing_reference(os.path.relpath(real, os.path.realpath(directory)))
    if len(os.fsencode(reference)) > MAX_REFERENCE:
        raise RefusedError(
            f"the name of the backing file would have {len(os.fsencode(reference))} bytes; a qcow2 has room for "
            f"{MAX_REFERENCE}",
            hint="put the overlay nearer to its base" if not absolute else "leave out --absolute",
            path=base,
        )
    return reference


def stem_of(name: str) -> str:
    """`disk` of `disk.qcow2`."""
    for suffix in (*FORMAT_NAMES, *RAW_NAMES):
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def fresh_name(stem: str, number: int) -> str:
    """`disk-overlay-1.qcow2`, cut where a file name cannot be longer."""
    tail = f"-overlay-{number}.{FORMAT}"
    head = os.fsencode(stem)
    if len(head) + len(tail) > _MAX_NAME:
        stem = head[: _MAX_NAME - len(tail)].decode(errors="ignore")
    return stem + tail


def _refuse_written(chain: list[Image]) -> None:
    base = chain[0]
    for image in chain:
        if image.in_use == "write":
            users = users_of(image.path)
            which = "" if image is base else f", on which {printable(base.path)} stands,"
            raise ImageInUseError(
                f"{printable(image.path)}{which} is in use for writing{users.by}: "
                "what an overlay of it reads would change",
                hint=f"{users.ending}, or --force to make the overlay all the same",
                path=image.path,
            )
