"""A chain as it is to lie somewhere else: each image's bytes with the name of its parent there.

Nothing is written for it: a replica is the head that its place needs and the rest of the file, which stays closed to
writers meanwhile.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from imgtool.chain.anchors import refuse_changed
from imgtool.chain.graph import Image
from imgtool.chain.truncation import refuse_truncated
from imgtool.chain.walk import guard
from imgtool.errors import ImageFormatError, RefusedError
from imgtool.image.header import read_header
from imgtool.image.source import size_of
from imgtool.operations.copying import copy_file, data_of
from imgtool.operations.relink import Link, head_of
from imgtool.publish.oci.blob import Blob, Part
from imgtool.publish.oci.layers import opened, refuse_no_layer

NameOf = Callable[[str, str, str], str]
"""(path here, sha256:HEX of the bytes there, format) → the name there."""
Counter = Callable[[int], None]


def _uncounted(_: int) -> None:
    """For whom nobody waits."""


class Replica:
    """One image, for another place."""

    def __init__(self, image: Image, fd: int, head: bytes | None, progress: Counter = _uncounted) -> None:
        self.status = os.fstat(fd)
        """Of the file here, before it was read."""
        size = size_of(fd)
        self.path = image.path
        self.format = image.format or "raw"
        self.virtual_size = image.virtual_size
        self.fd = fd
        self.head = head
        """None: its bytes are those of the file here."""
        used = 0 if head is None else len(head)
        self.blob = Blob(head or b"", Part(fd, used, max(0, size - used)))
        self.size = self.blob.size
        self.name = ""
        """Its file there, without a folder or below the one that all go to."""
        self._sha256: str | None = None
        self._progress = progress

    @property
    def sha256(self) -> str:
        """Hex, of its bytes there."""
        if self._sha256 is None:
            self._sha256 = self.blob.digest(self._progress).partition(":")[2]
        return self._sha256

    def data(self) -> Iterator[tuple[int, int]]:
        """Where it is no hole: (start, end) of each part."""
        at = 0
        if self.head is not None:
            yield 0, len(self.head)
            at = len(self.head)
        yield from data_of(self.fd, self.size, at)

    @contextmanager
    def as_file(self, folder: str) -> Iterator[str]:
        """A file with its bytes, there until the end: the image itself where that is the same."""
        if self.head is None:
            yield self.path
            return
        path = os.path.join(folder, "copy")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            copy_file(self.fd, fd)
            os.pwrite(fd, self.head, 0)
            yield path
        finally:
            os.close(fd)
            os.unlink(path)


@contextmanager
def replicas(path: str, *, format: str | None = None, name: NameOf, force: bool = False) -> Iterator[list[Replica]]:
    """The chain of the image at `path`, the base first, each under the `name` that is found for it, naming its parent
    by the relative way between the two.

    Raises as `guard`; RefusedError when an image has no file or cannot be given another name for its parent, or
    (unless `force`) does not stand on the disk it was made on, or lacks its end; ImageInUseError when a program
    writes one."""
    chain = guard(path, format=format)
    refuse_changed(chain, force=force)
    if not force:
        refuse_truncated(chain)
    with contextlib.ExitStack() as stack:
        yield replicate(stack, chain, name)


def replicate(
    stack: contextlib.ExitStack,
    chain: Sequence[Image],
    name: NameOf,
    made: dict[str, Replica] | None = None,
    progress: Counter = _uncounted,
) -> list[Replica]:
    """As `replicas`, of a chain that was looked at; its files are closed when `stack` ends. Images that several
    chains have in common are taken from `made`, which remembers them by their paths. `progress` gets the bytes that
    were read for their digests."""
    refuse_portable(chain)
    made = {} if made is None else made
    found: list[Replica] = []
    for image in reversed(chain):
        if image.path in made:
            found.append(made[image.path])
            continue
        fd = opened(stack, image)
        parent = found[-1] if found else None
        one = Replica(image, fd, None if parent is None else _head(fd, image, parent, name), progress)
        one.name = name(image.path, f"sha256:{one.sha256}", one.format)
        found.append(one)
        made[image.path] = one
    return found


def refuse_portable(chain: Sequence[Image]) -> None:
    """RefusedError when an image of `chain` cannot be taken elsewhere as it is."""
    try:
        refuse_no_layer(chain)
    except RefusedError as error:
        error.hint = "`imgtool convert` makes one image of it, which stands on nothing"
        raise


def _head(fd: int, image: Image, parent: Replica, name: NameOf) -> bytes | None:
    """The head that names `parent` as it lies there. The image's own name is found by its bytes, so that it is in the
    folder in which a name made of nothing would be."""
    folder = os.path.dirname(name(image.path, "sha256:" + "0" * 64, image.format or "raw"))
    reference = os.path.relpath(parent.name, folder or ".")
    if ":" in reference.partition("/")[0]:
        reference = f"./{reference}"  # else QEMU reads a protocol
    header = read_header(fd, format=image.format)
    if header.backing == os.fsencode(reference) and header.backing_format == parent.format:
        return None
    try:
        return head_of(fd, Link(reference, parent.format))
    except ImageFormatError as error:
        error.path = image.path
        error.hint = error.hint or "`imgtool convert` makes one image of the chain, which stands on nothing"
        raise
