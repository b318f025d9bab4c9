"""What an operation has to know of the images around the one it changes, and the refusals all operations share."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence

from imgtool.chain.graph import Image
from imgtool.chain.link import MAX_DEPTH
from imgtool.chain.scan import absolute, survey
from imgtool.chain.walk import guard
from imgtool.errors import ImageInUseError, RefusedError
from imgtool.image.locks import holders
from imgtool.image.names import PathLike, printable
from imgtool.operations.journal import recover


class Around:
    """An image, the chain it stands on, and everything found that stands on any image of that chain."""

    def __init__(
        self, image: PathLike, *, store: Iterable[PathLike] = (), format: str | None = None, settle: bool = True
    ) -> None:
        """Looks; with `settle`, first finishes changes that were broken off here. Raises as `chain.guard` does."""
        path = absolute(image)
        if settle:
            recover(os.path.dirname(os.path.realpath(path)))
        self.chain = guard(path, format=format, max_depth=MAX_DEPTH)
        if settle:
            for directory in {
                os.path.dirname(os.path.realpath(node.path)) for node in self.chain[1:] if _local(node)
            }:
                recover(directory)
        found = survey([node.path for node in self.chain if _local(node)], store=store, format=format)
        self._by_path = found.graph.by_path()
        self.image = self[path]

    def __getitem__(self, path: str) -> Image:
        return self._by_path[path]

    @property
    def parent(self) -> Image | None:
        """The image's backing file, None at a base; RefusedError where it is no file on this host."""
        if self.image.parent is None:
            return None
        parent = self._by_path.get(self.image.parent)
        if parent is None or not _local(parent):
            raise RefusedError(
                f"the backing file of {printable(self.image.path)} is no file on this host",
                hint="imgtool changes local images only",
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


def _local(node: Image) -> bool:
    return node.path.startswith("/")


def refuse_in_use(images: Iterable[Image], *, why: str) -> None:
    """ImageInUseError when a program writes one of `images`; `why` ends the sentence."""
    for image in images:
        if image.in_use == "write":
            users = ", ".join(f"{printable(user.program)} (pid {user.pid})" for user in holders(image.path))
            by = f" by {users}" if users else ""
            raise ImageInUseError(
                f"{printable(image.path)} is in use for writing{by}: {why}",
                hint="end that process first",
                path=image.path,
            )


def refuse_sealed(image: Image) -> None:
    """RefusedError when nobody may write `image`: it is finished, and that root could write it changes nothing."""
    if not os.stat(image.path).st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH):
        raise RefusedError(
            f"{printable(image.path)} is read-only: a sealed image is never changed",
            hint=f"make an overlay of it, or `chmod u+w {printable(image.path)}` if it was not meant to be sealed",
            path=image.path,
        )


def refuse_not_a_file(image: Image) -> None:
    """RefusedError when `image` is a block device, which cannot be replaced in one step."""
    if not stat.S_ISREG(os.stat(image.path).st_mode):
        raise RefusedError(
            f"{printable(image.path)} is no regular file: it cannot be changed whole or not at all",
            hint="`imgtool convert` copies it into a file",
            path=image.path,
        )


def names(images: Sequence[Image]) -> str:
    """`a.qcow2, b.qcow2 and 3 more`, for messages."""
    shown = ", ".join(printable(image.path) for image in images[:3])
    return shown + (f" and {len(images) - 3} more" if len(images) > 3 else "")
