"""What another program did between looking and changing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from imgtool.errors import ImageInUseError, ImageNotFoundError, RefusedError
from imgtool.operations.around import Around
from imgtool.operations.collect import collect
from imgtool.operations.commit import CommitRequest
from imgtool.operations.delete import DeleteRequest
from imgtool.operations.flatten import FlattenRequest
from imgtool.operations.move import MoveRequest, move
from imgtool.operations.overlay import list_overlays, new_overlay
from imgtool.operations.rebase import RebaseRequest

if TYPE_CHECKING:
    from imgtool.qemu.qemu_img import QemuImg
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
