"""What another program did between looking and changing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from imgtool.errors import ImageInUseError, ImageNotFoundError
from imgtool.operations.commit import CommitRequest
from imgtool.operations.delete import DeleteRequest
from imgtool.operations.flatten import FlattenRequest
from imgtool.operations.move import MoveRequest
from imgtool.operations.overlay import new_overlay
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
