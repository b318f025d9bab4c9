"""From a chain of images to layers: which bytes each one is in a registry, whatever host it lies on.

See `imgtool.publish.oci` for what a layer is.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from imgtool.chain.anchors import standing
from imgtool.chain.deep import alone
from imgtool.chain.encryption import is_encrypted
from imgtool.chain.graph import Image
from imgtool.errors import ImageFormatError, ImageInUseError, ImageUnreadableError, RefusedError
from imgtool.image.anchor import edited_head
from imgtool.image.header import FORMATS, Header, Qcow2Details, read_header
from imgtool.image.locks import forbid_writers
from imgtool.image.names import pasted, printable
from imgtool.image.source import size_of
from imgtool.image.users import users_of
from imgtool.publish.oci.blob import Blob, Part
from imgtool.publish.oci.known import Known
from imgtool.publish.oci.values import (
    CONTENT_DIGEST,
    FORMAT,
    LAYER,
    PARENT_DIGEST,
    TITLE,
    VIRTUAL_SIZE,
    ConfigLayer,
    Descriptor,
)
from imgtool.qemu.qemu_img import QemuImg

_FLATTEN = "--flatten pushes the disk as one image that stands on nothing"


class Layer(NamedTuple):
    """An image of a chain, as a registry has it."""

    path: str
    format: str
    virtual_size: int
    blob: Blob
    digest: str
    parent: str | None
    """The digest of the layer beneath."""
    content: str | None = None
    """The digest of what a guest reads of it, where that is known."""

    def descriptor(self) -> Descriptor:
        annotations = {
            FORMAT: self.format,
            VIRTUAL_SIZE: str(self.virtual_size),
            TITLE: printable(os.path.basename(self.path)),
        }
        if self.parent is not None:
            annotations[PARENT_DIGEST] = self.parent
        if self.content is not None:
            annotations[CONTENT_DIGEST] = self.content
        return Descriptor(
            media_type=f"{LAYER}{self.format}", digest=self.digest, size=self.blob.size, annotations=annotations
        )

    def config(self) -> ConfigLayer:
        return ConfigLayer(
            digest=self.digest,
            format=self.format,
            virtual_size=self.virtual_size,
            parent=self.parent,
            content_digest=self.content,
        )


def layer_blob(fd: int, header: Header, parent: str | None) -> Blob:
    """The layer that the image open at `fd`, of this header, is on the layer whose digest is `parent`.
    ImageFormatError when its first cluster has no room for the parent's name."""
    size = size_of(fd)
    if parent is None:
        return Blob(Part(fd, 0, size))
    details = header.details
    assert isinstance(details, Qcow2Details)
    assert header.backing_format is not None
    head = edited_head(fd, anchor=None, backing=(layer_name(parent), header.backing_format))
    head += bytes(max(0, min(details.cluster_size, size) - len(head)))
    return Blob(head, Part(fd, len(head), max(0, size - len(head))))


def layer_name(digest: str) -> bytes:
    """How a layer names the one beneath."""
    return digest.removeprefix("sha256:").encode()


def refuse_no_layer(chain: Sequence[Image]) -> None:
    """RefusedError when an image of the chain cannot be a layer by itself."""
    for image in chain:
        shown = printable(image.path)
        if image.format is None or not image.path.startswith("/"):
            raise RefusedError(
                f"{printable(chain[0].path)} stands on {shown}, which is no file on this host",
                hint=_FLATTEN,
                path=chain[0].path,
            )
        if image.backing is not None and (image.format != "qcow2" or image.backing.kind == "json"):
            raise RefusedError(
                f"{shown} is an overlay that cannot be given another name for its backing file",
                hint=_FLATTEN,
                path=image.path,
            )
        if image.backing is not None and image.backing.format is None:
            raise RefusedError(
                f"{shown} does not say in which format its backing file is",
                hint=f"`imgtool rebase -u -b … -F FORMAT {shown}` names it",
                path=image.path,
            )
        if image.data_file is not msgspec.UNSET or image.format == "vmdk":
            _refuse_several_files(image)


def _refuse_several_files(image: Image) -> None:
    fd = os.open(image.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        extents = getattr(read_header(fd, format=image.format).details, "extents", ())
    finally:
        os.close(fd)
    if image.data_file is not msgspec.UNSET or extents:
        raise RefusedError(f"{printable(image.path)} keeps its data in other files", hint=_FLATTEN, path=image.path)


def open_layers(
    stack: contextlib.ExitStack,
    chain: Sequence[Image],
    known: Known,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Layer]:
    """The layers of `chain` (topmost first, as `guard` gives it), the base first. Their files stay open, and closed
    to writers, until `stack` ends. `progress` gets the bytes that were read for their digests.

    RefusedError as `refuse_no_layer`; ImageInUseError when a program writes one of the files."""
    refuse_no_layer(chain)
    layers: list[Layer] = []
    for image in reversed(chain):
        assert image.format is not None
        assert image.virtual_size is not None
        fd = opened(stack, image)
        parent = layers[-1].digest if layers else None
        try:
            header = read_header(fd, format=image.format if image.format in FORMATS else None)
            blob = layer_blob(fd, header, parent)
        except ImageFormatError as error:
            error.path, error.hint = image.path, error.hint or _FLATTEN
            raise
        status = os.fstat(fd)
        digest = known.digest(status, parent)
        if digest is None:
            digest = blob.digest(progress)
            known.note(image.path, status, digest, parent)
        else:
            progress(blob.size)
        layers.append(Layer(image.path, image.format, image.virtual_size, blob, digest, parent))
    return layers


def with_contents(
    layers: Sequence[Layer], chain: Sequence[Image], known: Known, read: Callable[[Sequence[Image]], str]
) -> list[Layer]:
    """`layers` with the digest of what a guest reads of each. A layer's digest stands for all beneath it too, so this
    one is worked out once on a host: by `read`, which is given the chain from that image down."""
    remembered = _remembered_contents(chain)
    found = []
    for depth, layer in enumerate(layers):
        below = chain[len(chain) - 1 - depth :]
        content = known.content(layer.digest) or remembered.get(layer.path) or read(below)
        known.note_content(layer.digest, content)
        found.append(layer._replace(content=content))
    return found


def refuse_damaged(chain: Sequence[Image], qemu_img: QemuImg) -> None:
    """RefusedError when the tables of a qcow2 in `chain` contradict themselves, as those of a half copied one do:
    QEMU reads zeros where its data should be. What is encrypted is not looked at, since qemu-img would not open it.
    Raises as `opened` for an image that a program writes."""
    for image in chain:
        if image.format != "qcow2" or is_encrypted(image):
            continue
        with contextlib.ExitStack() as stack:
            opened(stack, image)
            report = qemu_img.check(alone(image)).report
        if report is not None and (report.corruptions or report.check_errors):
            raise RefusedError(
                f"{printable(image.path)} is damaged: what is read of it may be nonsense",
                hint=f"`imgtool check {pasted(image.path)}` says how; --force goes on anyway",
                path=image.path,
            )


def opened(stack: contextlib.ExitStack, image: Image) -> int:
    """The file of `image`, closed to writers until `stack` ends. ImageUnreadableError; ImageInUseError when a program
    writes it."""
    try:
        fd = os.open(image.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ImageUnreadableError(
            f"{printable(image.path)} cannot be read: {error.strerror}", path=image.path
        ) from error
    stack.callback(os.close, fd)
    if not forbid_writers(fd):
        raise ImageInUseError(
            f"{printable(image.path)} is in use for writing: its content changes while it is read",
            hint=users_of(image.path).ending,
            path=image.path,
        )
    return fd


def _remembered_contents(chain: Sequence[Image]) -> dict[str, str]:
    """What anchors say of the content of the images beneath, as far as they are still true."""
    found = {}
    for image in chain[:-1]:
        if image.parent is None or image.format != "qcow2":
            continue
        named = image.backing.format if image.backing is not None else None
        stands = standing(image.path, image.parent, parent_format=named)
        if stands.state == "same" and stands.anchor is not None and stands.anchor.content is not None:
            found[image.parent] = stands.anchor.content
    return found


def is_layer(path: str, layer: ConfigLayer, size: int, known: Known) -> bool:
    """Whether the file at `path` is this layer, of `size` bytes in a registry, under whatever name it has its parent.
    Raises nothing."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        status = os.fstat(fd)
        if status.st_size != size:
            return False
        digest = known.digest(status, layer.parent)
        if digest is None:
            header = read_header(fd, format=layer.format)
            if (header.backing is None) != (layer.parent is None) or not forbid_writers(fd):
                return False
            digest = layer_blob(fd, header, layer.parent).digest()
            known.note(path, status, digest, layer.parent)
        return digest == layer.digest
    except (ImageFormatError, OSError, AssertionError):
        return False
    finally:
        os.close(fd)
