"""One layer at the edge of the store: the overlay it is written into, and how it is sealed."""

from __future__ import annotations

import os
import time

import msgspec

from imgtool._version import __version__
from imgtool.build.base import Base
from imgtool.build.keys import KeyDocument, canonical
from imgtool.build.memory import Memory
from imgtool.build.store import KEY_FILE, MANIFEST, Layer, Manifest, Store, Work, encode, write_file
from imgtool.chain.anchors import standing
from imgtool.chain.content import digest_of, layers_of
from imgtool.chain.walk import guard
from imgtool.errors import ImageFormatError
from imgtool.image import remembered
from imgtool.image.anchor import edited_head, write_anchor
from imgtool.image.header import read_header
from imgtool.operations.anchoring import anchor_to
from imgtool.operations.copying import copy_file
from imgtool.qemu.digest import content_map, map_over
from imgtool.qemu.qemu_img import QemuImg


class Ground(msgspec.Struct, frozen=True, kw_only=True):
    """What the next layer stands on: a sealed layer, or the base."""

    content: str
    image: str
    format: str
    layer: Layer | None = None

    @classmethod
    def of_base(cls, base: Base) -> Ground:
        return cls(content=base.content, image=base.path, format=base.format)

    @classmethod
    def of_layer(cls, layer: Layer) -> Ground:
        return cls(content=layer.manifest.content, image=layer.image, format="qcow2", layer=layer)


def image_name(layer: str) -> str:
    """The overlay's file name: `chain show` then draws layers by their names."""
    return f"{layer}.qcow2"


def new_overlay(qemu_img: QemuImg, work: Work, name: str, reference: str, reference_format: str, size: int) -> str:
    """An overlay in the work folder whose backing name is `reference`, which may not be there yet; its path. The
    folder it moves to is the work folder's sibling: a relative reference leads to the same place from there."""
    path = os.path.join(work.path, image_name(name))
    qemu_img.create(
        path, size, format="qcow2", backing=reference, backing_format=reference_format, unsafe_backing=True
    )
    return path


def untouched(qemu_img: QemuImg, folder: str, base: Base, size: int) -> Ground:
    """The base as an overlay in `folder` that nothing was written to, its disk of `size` bytes: for a recipe without
    layers whose output is larger than its base, or an overlay of it."""
    path = os.path.join(folder, "untouched.qcow2")
    qemu_img.create(path, size, format="qcow2", backing=base.path, backing_format=base.format)
    same = size == base.virtual_size
    content = base.content if same else digest_of(path, format="qcow2", qemu_img=qemu_img)
    return Ground(content=content, image=path, format="qcow2")


def reference_to(ground: Ground) -> str:
    """How an overlay in a folder of the store names what it stands on."""
    if ground.layer is None:
        return ground.image
    return reference_to_folder(ground.layer.folder, ground.layer.manifest.image)


def reference_to_folder(folder: str, image: str) -> str:
    return f"../{folder}/{image}"


class Sealing(msgspec.Struct, frozen=True, kw_only=True):
    """What is written down of a layer beside what its image says of itself."""

    recipe: str
    layer: str
    document: KeyDocument
    ground: Ground
    base: Base
    seconds: float
    by_hand: bool
    qemu: str


def seal(store: Store, work: Work, folder: str, sealing: Sealing, memory: Memory, qemu_img: QemuImg) -> Layer:
    """Checks and digests the overlay in the work folder, which nobody writes any more, makes it read-only and moves
    it into the store as `folder`. ImageFormatError when it is damaged."""
    image = os.path.join(work.path, image_name(sealing.layer))
    _anchor(image, sealing.ground)
    check = qemu_img.check(image, format="qcow2")
    if check.status != "clean":
        raise ImageFormatError(
            f"the overlay of the layer {sealing.layer} came out damaged ({check.status})",
            hint="nothing was kept of it; build again",
            path=image,
        )
    content = _content(image, sealing.ground, memory, qemu_img)
    os.chmod(image, 0o444)
    status = os.stat(image)
    parent = sealing.ground.layer
    manifest = Manifest(
        recipe=sealing.recipe,
        layer=sealing.layer,
        key=sealing.document.key(),
        parent=None if parent is None else parent.folder,
        base=sealing.base.path,
        base_format=sealing.base.format,
        base_content=sealing.base.content,
        content=content,
        image=image_name(sealing.layer),
        virtual_size=sealing.document.disk.size,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        created=time.time(),
        seconds=sealing.seconds,
        by_hand=sealing.by_hand,
        qemu=sealing.qemu,
        imgtool=__version__,
    )
    write_file(os.path.join(work.path, KEY_FILE), canonical(sealing.document))
    write_file(os.path.join(work.path, MANIFEST), encode(manifest))
    layer = store.publish(work, folder)
    remembered.remember(layer.image, sealing.ground.image)
    return layer


def _content(image: str, ground: Ground, memory: Memory, qemu_img: QemuImg) -> str:
    """The layer's content digest, for which only what the layer changed is read once the map of its ground is there.
    The output's is made by reading all of it, and held against this."""
    chain = guard(image, format="qcow2")
    size, size_below = chain[0].virtual_size, chain[1].virtual_size
    assert size is not None
    assert size_below is not None
    layers = layers_of(chain)
    below = memory.map_of(ground.content)
    if below is None:  # its digest is remembered for longer than its map
        below = content_map(qemu_img, layers[1:], size_below)
        memory.keep_map(below)
    found = map_over(qemu_img, layers, size, below)
    memory.keep_map(found)
    return found.digest


def _anchor(image: str, ground: Ground) -> None:
    fd = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    try:
        write_anchor(fd, anchor_to(ground.image, read_header(fd, format="qcow2"), content=ground.content))
    finally:
        os.close(fd)


def stand_on(store: Store, layer: Layer, base: Base) -> None:
    """Sees to it that the chain of `layer` ends at `base` as it is now: where the base was moved, or touched without
    being changed, the lowest layer gets a new header, in a copy that takes its place."""
    lowest = store.chain(layer)[-1]
    found = standing(lowest.image, base.path, parent_format=base.format)
    with open(lowest.image, "rb") as file:
        named = read_header(file.fileno(), format="qcow2").backing
    if named == os.fsencode(base.path) and found.state in ("same", "none"):
        return
    draft = f"{lowest.image}.{os.getpid()}.new"
    try:
        _rewritten(lowest.image, draft, base)
        os.replace(draft, lowest.image)
        remembered.remember(lowest.image, base.path)
    finally:
        if os.path.exists(draft):
            os.unlink(draft)


def _rewritten(image: str, draft: str, base: Base) -> None:
    status = os.stat(image)
    with open(image, "rb") as source, open(draft, "x+b") as target:
        copy_file(source.fileno(), target.fileno())
        fd = target.fileno()
        backing = (os.fsencode(base.path), base.format)
        os.pwrite(fd, edited_head(fd, backing=backing), 0)
        write_anchor(fd, anchor_to(base.path, read_header(fd, format="qcow2"), content=base.content))
        os.fchmod(fd, 0o444)
        os.fsync(fd)
        # The manifest knows the file by its size and time, and it is the same layer.
        os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
