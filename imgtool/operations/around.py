"""What an operation must know about the images around the one it changes, and the refusals all operations share."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence

from imgtool.chain.anchors import refuse_changed
from imgtool.chain.graph import Image
from imgtool.chain.link import MAX_DEPTH
from imgtool.chain.look import Looker
from imgtool.chain.scan import absolute, check_format, survey
from imgtool.chain.truncation import refuse_truncated
from imgtool.chain.walk import guard, walk
from imgtool.errors import ImageInUseError, RefusedError
from imgtool.image.header import Header, Qcow2Details, read_header
from imgtool.image.names import PathLike, Paths, pasted, paths_of, printable
from imgtool.image.users import users_of
from imgtool.operations.journal import recover
from imgtool.operations.meanwhile import changed, gone, stood_on
from imgtool.operations.replaceable import check_replaceable
from imgtool.qemu.inputs import check_name

FORCED_DEPTH = 1000
"""Images in a chain that qemu-img still opens: at 1,200 version 7.2 crashes."""


class Around:
    """An image, the chain it stands on, and everything found that stands on any image of that chain."""

    def __init__(
        self,
        image: PathLike,
        *,
        store: Paths = (),
        format: str | None = None,
        settle: bool = True,
        whole: bool = True,
        max_depth: int = MAX_DEPTH,
    ) -> None:
        """Scans; with `settle`, first finishes changes that were interrupted here.

        Raises as `chain.guard` does; without `whole` only for the image itself: its chain may be broken. An image
        named by a symlink is looked at where it lies.
        """
        check_format(format)
        given = absolute(image)
        check_name(given)
        path = os.path.realpath(given) if os.path.islink(given) else given
        self._store = paths_of(store)
        self._format = format
        if settle:
            recover(os.path.dirname(os.path.realpath(path)))
        while True:
            self.chain = guard(path, format=format, max_depth=max_depth) if whole else self._walk(path, format=format)
            directories = {os.path.dirname(os.path.realpath(node.path)) for node in self.chain if _local(node)}
            finished = [path for directory in directories if settle for path in recover(directory)]
            if not finished:
                break
        self._by_path = self._survey()
        for node in self.chain:  # the survey goes by each file's magic number, QEMU by what the overlay says
            if node.path in self._by_path:
                found = self._by_path[node.path]
                found.format, found.virtual_size = node.format, node.virtual_size
        self.image = self[path]
        if path != given:
            Looker().tell_ambiguous(self.image, given)

    @staticmethod
    def _walk(path: str, *, format: str | None) -> list[Image]:
        chain = walk(path, format=format)
        if chain[0].format is None:
            guard(path, format=format, opens_parents=False, max_depth=None)  # says what is wrong with it
        return chain

    def _survey(self) -> dict[str, Image]:
        found = survey(
            [node.path for node in self.chain if _local(node)], store=self._store, format=self._format_of_asked()
        )
        return found.graph.by_path()

    def _format_of_asked(self) -> str | None:
        """`survey` takes one format for all that it is asked for."""
        return self._format if len(self.chain) == 1 else None

    def __getitem__(self, path: str) -> Image:
        return self._by_path[path]

    def find(self, path: str) -> Image | None:
        """The image at `path`, where it was found."""
        return self._by_path.get(path)

    @property
    def parent(self) -> Image | None:
        """The image's backing file, None at a base; RefusedError where it is no file on this host."""
        if self.image.parent is None:
            return None
        parent = self._by_path.get(self.image.parent)
        if parent is None or not _local(parent):
            raise RefusedError(
                f"the backing file of {printable(self.image.path)} is no plain file on this host",
                hint="imgtool changes images only that are local, and named without further options",
                path=self.image.path,
            )
        return parent

    def children(self, image: Image, *, but: Iterable[str] = ()) -> list[Image]:
        """The images that stand directly on `image`."""
        left_out = set(but)
        return [self._by_path[path] for path in image.children if path not in left_out]

    def chain_below(self) -> list[Image]:
        """The image's parent, that one's parent, and so on to the base."""
        return [self._by_path[node.path] for node in self.chain[1:] if node.path in self._by_path]

    def confirm(self) -> None:
        """ImageInUseError or ImageNotFoundError when the image is not what it was when it was looked at: something
        stands on it that did not, or it stands on something else, has other snapshots or is gone."""
        self._confirm(self.chain[:1])

    def confirm_chain(self) -> None:
        """The same for every image of the chain: for changes of what lies below the image."""
        self._confirm(self.chain)

    def _confirm(self, nodes: Iterable[Image]) -> None:
        before, now = self._by_path, self._survey()
        for path in [node.path for node in nodes if _local(node) and node.path in before]:
            was, here = before[path], now.get(path)
            if here is None or (here.has("missing") and not was.has("missing")):
                raise gone(path)
            if (here.backing, here.snapshots) != (was.backing, was.snapshots):
                raise changed(path)
            if not set(here.children) <= set(was.children):
                raise stood_on(path)

    def refuse_changed(self, *, force: bool) -> list[str]:
        """RefusedError when an image of the chain does not stand on what it was made on or lacks its end, unless
        `force`; what else its anchors say is returned."""
        if not force:
            refuse_truncated(self.chain)
        return refuse_changed(self.chain, force=force)


def _local(node: Image) -> bool:
    return node.path.startswith("/")


def refuse_in_use(images: Iterable[Image], *, why: str, even_reading: bool = False) -> None:
    """ImageInUseError when a program writes one of `images`, or with `even_reading` has it open; `why` ends the
    sentence.

    A reader would not notice that another file takes the image's place. But a machine that stands on the image, maybe
    by an overlay which was not found, may write it later (`block-commit`): QEMU then opens it by its name, and with
    what it remembers of the old file's tables it damages the new one. So who replaces an image refuses readers, as
    QEMU's own locks do."""
    for image in images:
        if image.in_use == "write" or (even_reading and image.in_use is not None):
            users = users_of(image.path)
            how = "in use for writing" if image.in_use == "write" else "in use"
            raise ImageInUseError(
                f"{printable(image.path)} is {how}{users.by}: {why}",
                hint=users.ending,
                path=image.path,
            )


def refuse_sealed(image: Image) -> None:
    """RefusedError when nobody may write `image`: it is finished, and that root could write it changes nothing."""
    if not os.stat(image.path).st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH):
        raise RefusedError(
            f"{printable(image.path)} is read-only: a sealed image is never changed",
            hint=f"make an overlay of it, or `chmod u+w {pasted(image.path)}` if it was not meant to be sealed",
            path=image.path,
        )


def refuse_not_replaceable(image: Image, *, ambiguous: bool = False) -> None:
    """RefusedError when a changed copy of the file at `image` could not take its place, or would not be a copy of all
    that the image is. It may be `ambiguous` what it stands on where that is to be changed."""
    shown = printable(image.path)
    check_replaceable(image.path)
    details = header_of(image).details
    if isinstance(details, Qcow2Details) and details.external_data:
        raise RefusedError(
            f"{shown} keeps its data in another file: it cannot be changed whole or not at all",
            hint="`imgtool convert` or `imgtool chain flatten --to` makes one image of it",
            path=image.path,
        )
    if image.extents:
        raise RefusedError(
            f"{shown} consists of several files: it cannot be changed whole or not at all",
            hint="`imgtool convert -O qcow2` makes one of them",
            path=image.path,
        )
    refuse_part(image)
    if os.path.islink(image.path):  # its new version lies where the file does
        Looker().tell_ambiguous(image, os.path.realpath(image.path))
    if not ambiguous:
        refuse_ambiguous(image)


def refuse_ambiguous(image: Image) -> None:
    """RefusedError when `image` stands on one file or another, according to the name by which it is opened."""
    for found in image.findings:
        if found.code == "backing-ambiguous":
            raise RefusedError(
                f"which file {printable(image.path)} stands on depends on the name it is opened by: {found.message}",
                hint=f"`imgtool rebase -u --absolute -b FILE {pasted(image.path)}` makes it one",
                path=image.path,
            )


def refuse_part(image: Image) -> None:
    """RefusedError when the file at `image` holds the data of another image, which would read something else."""
    if image.data_file_of:
        raise RefusedError(
            f"{printable(image.path)} holds the data of {listed(image.data_file_of)}, which would change",
            hint=f"`imgtool chain show {pasted(image.path)}` shows it",
            path=image.path,
        )


def refuse_known_by_number(image: Image, above: Iterable[Image]) -> None:
    """RefusedError when one of the images `above`, which stand on `image`, could not be read any more once that is
    written: a VMDK knows its backing file by a number, which QEMU changes then (block/vmdk.c, vmdk_is_cid_valid)."""
    numbered = [one for one in above if one.format == image.format == "vmdk"]
    if numbered:
        raise RefusedError(
            f"{names(numbered)} could not be read any more: a VMDK knows its backing file by a number, which changes "
            f"when {printable(image.path)} is written",
            hint=f"`imgtool convert -O qcow2 {pasted(numbered[0].path)} NEW.qcow2` makes an image of it that does "
            "not; --force goes on all the same",
            path=image.path,
        )


def header_of(image: Image) -> Header:
    fd = os.open(image.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return read_header(fd, format=image.format)
    finally:
        os.close(fd)


def names(images: Sequence[Image]) -> str:
    """`a.qcow2, b.qcow2 and 3 more`, for messages."""
    return listed([image.path for image in images])


def listed(paths: Sequence[str]) -> str:
    shown = ", ".join(printable(path) for path in paths[:3])
    return shown + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
