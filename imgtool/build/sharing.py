"""Layers that machines share through a cache, which has them under their keys. What a key is made of says nothing of
what lies under it: whoever may write to the cache says what a recipe's step comes to."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec

from imgtool.build.keys import KeyDocument, canonical
from imgtool.build.layers import Ground, image_name, reference_to, stand_on
from imgtool.build.memory import Memory
from imgtool.build.plan import Inputs, gather
from imgtool.build.prune import name_of
from imgtool.build.recipe import Loaded
from imgtool.build.store import FETCHED, KEY_FILE, LOG, MANIFEST, Layer, Manifest, Store, encode, write_file
from imgtool.build.watcher import UNSEEN, Progress, Task
from imgtool.chain.content import digest_of
from imgtool.errors import ImageFormatError
from imgtool.image import remembered
from imgtool.image.anchor import edited_head, write_anchor
from imgtool.image.header import read_header
from imgtool.operations.anchoring import anchor_to
from imgtool.qemu.qemu_img import QemuImg

_FILES = (KEY_FILE, LOG, FETCHED)
"""What goes with the overlay of a layer. Its manifest is made anew."""


class Item(Protocol):
    """What a cache has under a key."""

    @property
    def below(self) -> str:
        """What it stands on: the key of a layer, or the hexadecimal digits of the base's content digest."""

    @property
    def content(self) -> str:
        """The digest of what a guest reads of it."""

    @property
    def document(self) -> Mapping[str, Any]:
        """What was written down of it where it was made."""

    @property
    def size(self) -> int:
        """Bytes that are to be fetched."""


class Cache(Protocol):
    """Where layers are found that other machines made. Every method raises an ImgtoolError when the cache cannot be
    reached, or holds something other than it claims to."""

    @property
    def name(self) -> str:
        """What people call it."""

    def find(self, key: str) -> Item | None:
        """None when it has nothing under this key."""

    def fetch(
        self,
        item: Any,
        folder: str,
        image: str,
        *,
        scratch: str,
        files: Sequence[str],
        progress: Progress | None = None,
    ) -> None:
        """Fetches the overlay to the file `image` in `folder`, and those of its companions that `files` names into
        that folder. What was fetched in part stays in `scratch` for the next attempt."""

    def push(
        self,
        key: str,
        image: str,
        *,
        below: str,
        content: str,
        virtual_size: int,
        document: dict[str, Any],
        files: Sequence[str],
        progress: Progress | None = None,
    ) -> int:
        """Pushes the overlay `image`, and those of `files` that lie beside it, under `key`. Returns how many bytes
        were sent."""


class Shared(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """One layer of a push or pull."""

    name: str
    """`web@packages`"""
    key: str
    """The SHA-256, in hex, of everything that went into it."""
    state: Literal["present", "pushed", "pulled", "missing"]
    """missing: neither the store nor the repository has it."""
    bytes: int = 0
    """What was sent or fetched."""


def push_layers(store: Store, layers: Iterable[Layer], cache: Cache, task: Task = UNSEEN) -> list[Shared]:
    """Pushes `layers` and those that they stand on, these first. Layers made by hand are no one else's."""
    wanted = {one.folder: one for layer in layers for one in reversed(store.chain(layer))}
    found = []
    for number, layer in enumerate(wanted.values(), 1):
        manifest = layer.manifest
        if manifest.by_hand or not store.is_whole(layer):
            continue
        if cache.find(manifest.key) is not None:
            found.append(Shared(name=name_of(layer), key=manifest.key, state="present"))
            continue
        below = store.chain(layer)[1:2]
        with task(f"push {name_of(layer)} ({number} of {len(wanted)})") as progress:
            sent = cache.push(
                manifest.key,
                layer.image,
                below=below[0].manifest.key if below else _digits(manifest.base_content),
                content=manifest.content,
                virtual_size=manifest.virtual_size,
                document=msgspec.to_builtins(msgspec.structs.replace(manifest, base="", parent=None)),
                files=_FILES,
                progress=progress,
            )
        found.append(Shared(name=name_of(layer), key=manifest.key, state="pushed", bytes=sent))
    return found


def pull_layers(store: Store, loaded: Loaded, cache: Cache, qemu_img: QemuImg, task: Task = UNSEEN) -> list[Shared]:
    """Brings the recipe's layers into the store, one after the other, until one is missing: only then is known what
    the next one is called."""
    memory = Memory()
    store.prepare()
    inputs = gather(loaded, store, memory, qemu_img)
    below: Layer | None = None
    shared = []
    for number, wanted in enumerate(loaded.recipe.layers):
        content = inputs.base.content if below is None else below.manifest.content
        document = inputs.document(number, content, memory)
        key, name = document.key(), f"{loaded.recipe.image.name}@{wanted.name}"
        with store.claim(key):
            layer = store.find(key)
            item = None if layer is not None else cache.find(key)
            if layer is None and item is None:
                shared.append(Shared(name=name, key=key, state="missing"))
                break
            if layer is not None:
                store.note_use(layer)
            if item is not None:
                layer = bring(cache, item, store, inputs, number, document, below, qemu_img, task)
        size = 0 if item is None else item.size
        shared.append(Shared(name=name, key=key, state="present" if item is None else "pulled", bytes=size))
        below = layer
    return shared


def bring(
    cache: Cache,
    item: Item,
    store: Store,
    inputs: Inputs,
    number: int,
    document: KeyDocument,
    below: Layer | None,
    qemu_img: QemuImg,
    task: Task = UNSEEN,
) -> Layer:
    """Fetches the layer `number`, which has the key of `document`, into the store and puts it on `below` (None: on
    the base). Called with the key held. ImageFormatError when it is not what its record says."""
    recipe = inputs.loaded.recipe
    name, key = recipe.layers[number].name, document.key()
    of = f"{recipe.image.name}@{name} ({number + 1} of {len(recipe.layers)})"
    ground = Ground.of_base(inputs.base) if below is None else Ground.of_layer(below)
    expected = _digits(inputs.base.content) if below is None else below.manifest.key
    if item.below != expected:
        raise ImageFormatError(f"the layer {name} of {cache.name} stands on another than its key says")
    if below is not None:
        stand_on(store, below, inputs.base)
    work = store.work()
    try:
        with task(f"pull {of}") as progress:
            cache.fetch(item, work.path, image_name(name), scratch=store.root, files=_FILES, progress=progress)
        overlay = os.path.join(work.path, image_name(name))
        _put_on(overlay, ground)
        with task(f"verify {of}") as progress:
            content = digest_of(overlay, format="qcow2", qemu_img=qemu_img, progress=progress)
        if content != item.content:
            raise ImageFormatError(f"a guest would read another disk of the layer {name} than {cache.name} says")
        manifest = _manifest(item, inputs, name, document, below, overlay)
        write_file(os.path.join(work.path, KEY_FILE), canonical(document))
        write_file(os.path.join(work.path, MANIFEST), encode(manifest))
        layer = store.publish(work, store.free_name(key))
    except BaseException:
        store.drop(work)
        raise
    remembered.remember(layer.image, ground.image)
    return layer


def _manifest(
    item: Item, inputs: Inputs, name: str, document: KeyDocument, below: Layer | None, overlay: str
) -> Manifest:
    """What is written down of the layer here: what its maker said of how it was made, and what is so."""
    try:
        said = msgspec.convert(item.document, Manifest)
    except msgspec.ValidationError as error:
        raise ImageFormatError(f"the layer {name} cannot be understood: {error}") from error
    status = os.stat(overlay)
    return msgspec.structs.replace(
        said,
        recipe=inputs.loaded.recipe.image.name,
        layer=name,
        key=document.key(),
        parent=None if below is None else below.folder,
        base=inputs.base.path,
        base_format=inputs.base.format,
        base_content=inputs.base.content,
        content=item.content,
        image=image_name(name),
        virtual_size=document.disk.size,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        by_hand=False,
    )


def _put_on(overlay: str, ground: Ground) -> None:
    """Has an overlay in a folder of the store name what it stands on there, and remember it, and be read-only."""
    fd = os.open(overlay, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.pwrite(fd, edited_head(fd, anchor=None, backing=(os.fsencode(reference_to(ground)), ground.format)), 0)
        write_anchor(fd, anchor_to(ground.image, read_header(fd, format="qcow2"), content=ground.content))
        os.fchmod(fd, 0o444)
        os.fsync(fd)
    finally:
        os.close(fd)


def _digits(content: str) -> str:
    return content.partition(":")[2]
