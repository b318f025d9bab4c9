"""Looking after the layer store: what is needed by whom, and whether it is what it was sealed as."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable
from typing import Literal

import msgspec

from imgtool.build.records import records
from imgtool.build.store import Layer, Store
from imgtool.build.watcher import UNSEEN, Progress, Task
from imgtool.chain.content import digest_of
from imgtool.chain.scan import scan
from imgtool.errors import ImgtoolError
from imgtool.image.names import PathLike, Paths, absolute, paths_of, printable
from imgtool.image.policy import current, in_force
from imgtool.machine.runtime import vms
from imgtool.qemu.qemu_img import QemuImg
from imgtool.sizes import Size, bytes_of


class Kept(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """A layer, and who needs it."""

    folder: str
    """The name of its folder in the store."""
    name: str
    """`web@packages`"""
    path: str
    """The overlay's file."""
    size: int
    """Bytes of the overlay's file."""
    created: float
    """Seconds since the epoch."""
    used: float
    """When a build took it last, or one that stands on it, or made it: seconds since the epoch."""
    needed_by: tuple[str, ...]
    """Recipes, images, VMs, layers; empty when it may go."""


class Pruned(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The answer of `layers prune`."""

    removed: tuple[Kept, ...]
    """The layers that are gone."""
    kept: tuple[Kept, ...]
    """Those that are still there."""
    failed: tuple[str, ...]
    """Kept failures that went too."""
    freed: int
    """Bytes."""


def name_of(layer: Layer) -> str:
    return f"{layer.manifest.recipe}@{layer.manifest.layer}"


def needs(store: Store, *, look_in: Iterable[str] = (), recipes: bool = True) -> list[Kept]:
    """Every layer with who needs it: a recipe whose last build used it, an image that stands on it (in the store, in
    the folders `look_in` and below, where recipes put their outputs, and where imgtool made such images), a VM that
    has it open."""
    layers = store.layers()
    if not layers:
        return []
    by_folder = {layer.folder: layer for layer in layers}
    reasons: dict[str, list[str]] = {layer.folder: [] for layer in layers}
    known = records(store)
    if recipes:
        for record in known:
            for built in record.layers:
                if built.folder in reasons:
                    reasons[built.folder].append(f"the recipe {printable(record.recipe)}")
    places = {os.path.dirname(output.path) for record in known for output in record.outputs}
    for folder, image in _images(store, layers, {*look_in, *places}):
        reasons[folder].append(f"the image {printable(image)}")
    for folder, vm in _held(layers):
        reasons[folder].append(f"the VM {vm}")
    _inherit(by_folder, reasons)
    used = _last_uses(by_folder)
    return [
        Kept(
            folder=layer.folder,
            name=name_of(layer),
            path=layer.path,
            size=layer.manifest.size,
            created=layer.manifest.created,
            used=used[layer.folder],
            needed_by=tuple(dict.fromkeys(reasons[layer.folder])),
        )
        for layer in layers
    ]


def _images(store: Store, layers: list[Layer], places: set[str]) -> Iterable[tuple[str, str]]:
    """(layer's folder, image outside the store or of a kept failure that stands on it)."""
    looked_in = [store.root, *(place for place in sorted(places) if os.path.isdir(place))]
    graph = scan([layer.image for layer in layers], store=looked_in)
    by_path = graph.by_path()
    own = {layer.image for layer in layers}
    for layer in layers:
        node = by_path.get(layer.image)
        for child in node.children if node is not None else ():
            if child not in own and not child.startswith(store.path("failed-")):
                yield layer.folder, child


def _held(layers: list[Layer]) -> Iterable[tuple[str, str]]:
    identities = {}
    for layer in layers:
        try:
            status = os.stat(layer.image)
        except OSError:
            continue
        identities[status.st_dev, status.st_ino] = layer.folder
    for vm, state in vms():
        for image in state.images:
            folder = identities.get((image.device, image.inode))
            if folder is not None:
                yield folder, vm.name


def _inherit(by_folder: dict[str, Layer], reasons: dict[str, list[str]]) -> None:
    """What is needed needs what it stands on."""
    for folder in [folder for folder, why in reasons.items() if why]:
        above = by_folder[folder]
        below = above.manifest.parent
        while below is not None and below in by_folder:
            reasons[below].append(f"the layer {name_of(above)}")
            above = by_folder[below]
            below = above.manifest.parent


def _last_uses(by_folder: dict[str, Layer]) -> dict[str, float]:
    """When each layer was used last: no earlier than what stands on it."""
    used = {folder: layer.used for folder, layer in by_folder.items()}
    for layer in by_folder.values():
        last, below = used[layer.folder], layer.manifest.parent
        while below is not None and below in by_folder:
            used[below] = last = max(last, used[below])
            below = by_folder[below].manifest.parent
    return used


def prune(
    store: Store,
    *,
    look_in: Iterable[str] = (),
    older_than: float | None = None,
    keep_storage: int | None = None,
    all_recipes: bool = False,
    dry_run: bool = False,
) -> Pruned:
    """Removes the layers that nobody needs, children before parents, and kept failures. With `older_than` (seconds)
    only what is older; with `keep_storage` only until all that is left takes no more bytes, kept failures first and
    then layers, least recently used first; with `all_recipes` also what only recipes need, who can build it again.
    ImageInUseError while a build is going on."""
    if dry_run and not os.path.isdir(store.root):
        return Pruned(removed=(), kept=(), failed=(), freed=0)
    with store.alone():
        if not dry_run:
            store.clear_stale()
            _clear_parts(store)
        found = needs(store, look_in=look_in, recipes=not all_recipes)
        limit = None if older_than is None else time.time() - older_than
        going = [kept for kept in found if not kept.needed_by and (limit is None or kept.created < limit)]
        staying = [kept for kept in found if kept not in going]
        # One that stays because it is young needs what it stands on.
        by_folder = {layer.folder: layer for layer in store.layers()}
        below = {
            under.folder
            for kept in staying
            if kept.folder in by_folder
            for under in store.chain(by_folder[kept.folder])
        }
        going = [kept for kept in going if kept.folder not in below]
        failed = [path for path in store.failed() if limit is None or os.stat(path).st_mtime < limit]
        if keep_storage is not None:
            taken = sum(kept.size for kept in found) + sum(map(_size_below, store.failed()))
            failed, least_recent = _least_recent(failed, going, by_folder, taken - keep_storage)
            going = [kept for kept in going if kept in least_recent]
        freed = sum(kept.size for kept in going) + sum(_size_below(path) for path in failed)
        if not dry_run:
            for kept in sorted(going, key=lambda kept: kept.created, reverse=True):
                store.remove(by_folder[kept.folder])
            for path in failed:
                shutil.rmtree(path, ignore_errors=True)
    gone = {kept.folder for kept in going}
    return Pruned(
        removed=tuple(going),
        kept=tuple(kept for kept in found if kept.folder not in gone),
        failed=tuple(failed),
        freed=freed,
    )


def _clear_parts(store: Store) -> None:
    """Takes away what was fetched of layers in part. Called with the store alone: nobody fetches."""
    for name in os.listdir(store.root):
        if name.startswith(".imgtool-") and name.endswith(".part"):
            with contextlib.suppress(OSError):
                os.unlink(store.path(name))


def _least_recent(
    failed: list[str], layers: list[Kept], by_folder: dict[str, Layer], too_many: int
) -> tuple[list[str], list[Kept]]:
    """As much of it as has to go for `too_many` bytes less, what was used last at the end. Whatever stands on a layer
    goes before it."""
    heights: dict[str, int] = {}
    for layer in by_folder.values():  # oldest first: none is older than what it stands on
        heights[layer.folder] = heights.get(layer.manifest.parent or "", 0) + 1
    gone: tuple[list[str], list[Kept]] = ([], [])
    for path in sorted(failed, key=lambda path: os.stat(path).st_mtime):
        if too_many > 0:
            gone[0].append(path)
            too_many -= _size_below(path)
    for kept in sorted(layers, key=lambda kept: (kept.used, -heights[kept.folder])):
        if too_many > 0:
            gone[1].append(kept)
            too_many -= kept.size
    return gone


def _size_below(path: str) -> int:
    return sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names)


Verdict = Literal["whole", "changed", "damaged", "broken-chain"]


class Verified(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """One layer, looked at."""

    folder: str
    """The name of its folder in the store."""
    name: str
    """`web@packages`"""
    verdict: Verdict
    """whole: as it was sealed. changed: not what was sealed any more. damaged: qemu-img's check found errors.
    broken-chain: its base is gone, or it cannot be read."""
    message: str
    """What was seen, in words."""


def verify(
    store: Store, layers: Iterable[Layer], qemu_img: QemuImg, *, quick: bool = False, task: Task = UNSEEN
) -> list[Verified]:
    """Looks whether layers are what they were sealed as: their files, their metadata (`qemu-img check`), and unless
    `quick` what a guest reads of them. A layer whose base is gone or changed is a `broken-chain`."""
    found = []
    with in_force(current().naming(store.root, *{layer.manifest.base for layer in store.layers()})):
        for layer in layers:
            with task(f"verify {name_of(layer)}") as progress:
                verdict, message = _verdict(store, layer, qemu_img, quick=quick, progress=progress)
            found.append(Verified(folder=layer.folder, name=name_of(layer), verdict=verdict, message=message))
    return found


def _verdict(
    store: Store, layer: Layer, qemu_img: QemuImg, *, quick: bool, progress: Progress | None
) -> tuple[Verdict, str]:
    manifest = layer.manifest
    if not store.is_whole(layer):
        return "changed", "its file, or that of a layer beneath, was changed or is gone"
    if os.stat(layer.image).st_mode & 0o222:
        return "changed", "its file is no longer read-only"
    try:
        check = qemu_img.check(layer.image, format="qcow2")
        if check.status != "clean":
            return "damaged", f"qemu-img check says: {check.status}"
        if not os.path.exists(manifest.base):
            return "broken-chain", f"the base {printable(manifest.base)} is gone"
        if quick:
            return "whole", "as it was sealed"
        if digest_of(layer.image, format="qcow2", qemu_img=qemu_img, progress=progress) != manifest.content:
            return "changed", "a guest reads something else from it than when it was sealed, or its base changed"
    except ImgtoolError as error:
        return "broken-chain", error.message
    return "whole", "as it was sealed"


def verify_layers(
    layers: PathLike | None = None, *, quick: bool = False, qemu_img: QemuImg | None = None
) -> list[Verified]:
    """Whether the layers in the folder `layers` (None: IMGTOOL_LAYERS, or one among the user's data) are still what
    they were when they were sealed: their files, their metadata (`qemu-img check`), and unless `quick` what a guest
    reads of them. Raises nothing for what is found."""
    store = _store(layers)
    return verify(store, store.layers(), qemu_img or QemuImg(), quick=quick)


def prune_layers(
    layers: PathLike | None = None,
    *,
    store: Paths = (),
    older_than: float | None = None,
    keep_storage: Size | None = None,
    all_recipes: bool = False,
    dry_run: bool = False,
) -> Pruned:
    """Removes the layers in the folder `layers` (None: as `verify_layers`) that nobody needs, and what failed builds
    have left there; with `dry_run` it only says which. Images that stand on layers are looked for in the folders
    `store`, in that of the layers, where recipes put their outputs, and where imgtool made some. With `older_than`
    (seconds) only what is older goes. With `keep_storage` it stops when all that is left takes no more: what failed
    builds have left goes first, then layers, least recently used first. With `all_recipes` also what only recipes
    need goes, which a build makes again. ImageInUseError during a build."""
    return prune(
        _store(layers),
        look_in=[absolute(folder) for folder in paths_of(store)],
        older_than=older_than,
        keep_storage=None if keep_storage is None else bytes_of(keep_storage),
        all_recipes=all_recipes,
        dry_run=dry_run,
    )


def _store(layers: PathLike | None) -> Store:
    return Store(None if layers is None else absolute(layers))
