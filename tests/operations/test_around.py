"""What another program did between looking and changing."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from imgtool.chain.scan import survey
from imgtool.errors import ImageInUseError, ImageNotFoundError, RefusedError
from imgtool.operations.anchor import AnchorRequest
from imgtool.operations.around import Around
from imgtool.operations.collect import CollectRequest, collect
from imgtool.operations.commit import CommitRequest, commit
from imgtool.operations.delete import DeleteRequest
from imgtool.operations.flatten import FlattenRequest, flatten
from imgtool.operations.move import MoveRequest, move
from imgtool.operations.overlay import list_overlays, new_overlay
from imgtool.operations.rebase import RebaseRequest, rebase
from imgtool.operations.shorten import shorten
from imgtool.operations.transaction import Transaction
from imgtool.qemu.qemu_img import QemuImg
from tests.files import state_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.operations.conftest import Store

pytestmark = pytest.mark.matrix


def test_an_overlay_made_meanwhile_stops_what_would_hurt_it_and_nothing_else(store: Store, img: QemuImg) -> None:
    """What changes the base stops; what changes an image beside the new overlay does not."""
    store.base("base.qcow2", 1, 2)
    for name in ("one.qcow2", "two.qcow2", "three.qcow2"):
        store.overlay(name, "base.qcow2", {0: 9})
    before = store.content()
    flattening = FlattenRequest(store / "one.qcow2")
    rebasing = RebaseRequest(store / "two.qcow2", None)
    deleting = DeleteRequest(store / "three.qcow2")
    committing = CommitRequest(store / "one.qcow2", force=True)
    new_overlay(store / "base.qcow2", store / "new.qcow2")
    new = store.content("new.qcow2")["new.qcow2"]
    with pytest.raises(ImageInUseError, match=r"made an overlay of .*base\.qcow2 meanwhile"):
        committing.make(img)
    flattening.make(img)
    rebasing.make(img)
    deleting.make()
    del before["three.qcow2"]
    assert store.content() == {**before, "new.qcow2": new}


BETWEEN: dict[str, tuple[Callable[[Store], Any], Callable[[Store], object]]] = {
    "commit, flattened": (lambda s: CommitRequest(s / "c"), lambda s: flatten(s / "c")),
    "commit, rebased": (lambda s: CommitRequest(s / "c"), lambda s: rebase(s / "c", s / "other")),
    "commit, gone": (lambda s: CommitRequest(s / "b"), lambda s: move([s / "c"], s / "gone")),
    "commit further, one between rebased": (
        lambda s: CommitRequest(s / "c", base=s / "base"),
        lambda s: rebase(s / "a", s / "other"),
    ),
    "move, a new overlay of it": (lambda s: MoveRequest([s / "base"], s / "moved"), lambda s: shorten(s / "c")),
    "move, an overlay less": (lambda s: MoveRequest([s / "b"], s / "moved"), lambda s: rebase(s / "c", s / "other")),
    "anchor, rebased": (lambda s: AnchorRequest([s / "c"]), lambda s: rebase(s / "c", s / "other")),
    "anchor, flattened": (lambda s: AnchorRequest([s / "c"]), lambda s: flatten(s / "c")),
    "anchor, parent written": (lambda s: AnchorRequest([s / "c"], deep=True), lambda s: commit(s / "b")),
    "flatten, a snapshot": (
        lambda s: FlattenRequest(s / "c"),
        lambda s: QemuImg().snapshot_create(s / "c", "new", format="qcow2"),
    ),
    "collect, a new overlay": (
        lambda s: CollectRequest(s.directory, keep=[s / "other"]),
        lambda s: new_overlay(s / "b", s / "new"),
    ),
}


@pytest.mark.parametrize(("ask", "meanwhile"), BETWEEN.values(), ids=BETWEEN)
def test_what_is_no_more_what_was_looked_at_is_not_changed(
    store: Store, img: QemuImg, ask: Callable[[Store], Any], meanwhile: Callable[[Store], object]
) -> None:
    for name, below in (("base", ""), ("a", "base"), ("b", "a"), ("c", "b"), ("other", "")):
        if below:
            store.overlay(name, below, {len(name + below): 7})
        else:
            store.base(name, 1, 2, 3, 4)
    request = ask(store)
    meanwhile(store)
    before = {path: state_of(path) for path in store.directory.iterdir()}
    with pytest.raises((ImageInUseError, ImageNotFoundError)) as refused:
        request.make(*([] if isinstance(request, CollectRequest) else [img]))
    assert refused.value.hint == "nothing was changed here; run the command again"
    assert {path: state_of(path) for path in store.directory.iterdir()} == before


def test_a_header_that_was_patched_while_an_image_is_held_is_not_lost(store: Store, img: QemuImg) -> None:
    """A patch leaves the file's time as it was, for those who remember it."""
    store.base("base", 1, 2)
    store.overlay("top", "base", {0: 9})
    before = store.content("top")
    moving = MoveRequest([store / "base"], store / "moved")
    with Transaction(str(store / "top")) as change:
        change.hold(str(store / "top"))
        copy = change.stage(str(store / "top"), copy_of=str(store / "top"))
        moving.make(img)
        change.replace(str(store / "top"), copy)
        with pytest.raises(ImageInUseError, match="changed by another program"):
            change.commit()
    assert store.content("top") == before


@pytest.mark.parametrize(
    "ask",
    [
        CommitRequest,
        FlattenRequest,
        lambda image: RebaseRequest(image, None),
        lambda image: MoveRequest([image], "b"),
        lambda image: MoveRequest([__file__], image),
    ],
)
def test_a_name_that_no_file_can_have_is_not_found(ask: Callable[[str], object]) -> None:
    with pytest.raises(ImageNotFoundError):
        ask("a\0.qcow2")


def test_overlays_that_imgtool_made_in_other_directories_are_found_there(store: Store, img: QemuImg) -> None:
    """Nobody names --store for what imgtool made itself: above, beside and below the base, and what stands on it."""
    for folder in ("bases", "gone", "elsewhere"):
        (store / folder).mkdir()
    base = store.base("bases/base.qcow2", 1, 2)
    tops = [
        store.overlay(name, "bases/base.qcow2", {0: 9}) for name in ("a.qcow2", "bases/below/b.qcow2", "vms/c.qcow2")
    ]
    deep = store.overlay("deep/d.qcow2", "vms/c.qcow2", {1: 8})
    store.overlay("gone/e.qcow2", "bases/base.qcow2").unlink()
    (store / "gone").rmdir()
    (store / "bases/link.qcow2").symlink_to("base.qcow2")
    before = store.content(*(str(top.relative_to(store.directory)) for top in (*tops, deep)))
    for name in ("base.qcow2", "link.qcow2"):
        around = Around(store / "bases" / name)
        assert [child.path for child in around.children(around.image)] == sorted(map(str, tops))
    assert [image.path for image in list_overlays(base, deep=True)] == sorted(map(str, (*tops, deep)))
    with pytest.raises(RefusedError, match=r"a\.qcow2, .*b\.qcow2 also stand on"):
        CommitRequest(store / "vms/c.qcow2")
    (store / "bases/link.qcow2").unlink()
    move([base], store / "elsewhere", qemu_img=img)
    assert store.content(*before) == before
    assert len(list_overlays(store / "elsewhere/base.qcow2")) == 3
    assert collect(store / "elsewhere", keep=[deep]).files == ()
    assert collect(store / "elsewhere", keep=[tops[0]]).files == ()
    assert collect(store / "vms", keep=[tops[0]]).files == ()


def test_directories_of_others_on_the_same_base_are_not_looked_into(store: Store) -> None:
    """They may be slow, or on a server that does not answer."""
    base = store.base("bases/base.qcow2", 1)
    for name in ("one", "two"):
        store.overlay(f"{name}/disk.qcow2", "bases/base.qcow2")
    store.overlay("above/disk.qcow2", "one/disk.qcow2")

    def opened(image: Path) -> set[str]:
        seen: set[str] = set()
        survey([image], notice=lambda looked, *_: seen.add(looked.path))
        return {os.path.relpath(path, store.directory) for path in seen}

    assert opened(store / "one/disk.qcow2") == {"bases/base.qcow2", "one/disk.qcow2", "above/disk.qcow2"}
    assert opened(base) == {"bases/base.qcow2", "one/disk.qcow2", "above/disk.qcow2", "two/disk.qcow2"}
