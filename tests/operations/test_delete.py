"""Delete: an overlay goes with its data, and only when nobody needs it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from imgtool.errors import ImageError, ImageInUseError, ImageNotFoundError, ImgtoolError, RefusedError
from imgtool.operations.delete import DeleteRequest, delete
from imgtool.operations.flatten import flatten
from imgtool.qemu.qemu_img import QemuImg
from tests.files import no_file_larger_than

if TYPE_CHECKING:
    from tests.operations.conftest import Store

pytestmark = pytest.mark.matrix


def names(store: Store) -> set[str]:
    return {os.path.basename(path) for path in store.paths()}


def refused(store: Store, kind: type[ImgtoolError], image: str, **how: object) -> ImgtoolError:
    return store.refused(kind, delete, image, **how)


def test_an_overlay_nobody_needs_is_deleted(store: Store) -> None:
    store.base("base.qcow2", 1)
    store.overlay("top.qcow2", "base.qcow2", {0: 9})
    before = store.content("base.qcow2")
    done = delete(store / "top.qcow2")
    assert done.files == (str(store / "top.qcow2"),)
    assert done.freed > 64 << 10
    assert store.content() == before


def test_one_with_children_is_not(store: Store) -> None:
    store.base("base.qcow2", 1)
    store.overlay("mid.qcow2", "base.qcow2")
    store.overlay("vms/top.qcow2", "mid.qcow2")
    with pytest.raises(RefusedError, match=r"vms/top\.qcow2") as caught:
        delete(store / "mid.qcow2", store=[store / "vms"])
    assert "--force" in str(caught.value.hint)
    assert names(store) == {"base.qcow2", "mid.qcow2", "top.qcow2"}
    delete(store / "mid.qcow2", store=[store / "vms"], force=True)
    assert names(store) == {"base.qcow2", "top.qcow2"}


def test_a_base_is_no_overlay(store: Store) -> None:
    store.base("base.qcow2", 1)
    assert "not an overlay" in refused(store, RefusedError, "base.qcow2").message
    delete(store / "base.qcow2", force=True)
    assert names(store) == set()


def test_one_in_use_is_not_deleted_even_by_force(store: Store) -> None:
    store.base("base.qcow2", 1)
    store.overlay("top.qcow2", "base.qcow2")
    for options in ((), ("-r",)):
        with store.images.opened(store / "top.qcow2", *options) as pid:
            assert f"pid {pid}" in refused(store, ImageInUseError, "top.qcow2", force=True).message


def test_one_whose_chain_is_broken_or_a_circle_can_go(store: Store) -> None:
    store.images.overlay("orphan.qcow2", "gone.qcow2", size="1M")
    store.images.overlay("self.qcow2", "self.qcow2", size="1M")
    store.images.overlay("one.qcow2", "two.qcow2", size="1M")
    store.images.overlay("two.qcow2", "one.qcow2", size="1M")
    delete(store / "orphan.qcow2")
    delete(store / "self.qcow2")
    assert "two.qcow2" in refused(store, RefusedError, "one.qcow2").message
    delete(store / "one.qcow2", force=True)
    delete(store / "two.qcow2")
    assert names(store) == set()


def test_its_data_file_goes_with_it(store: Store, img: QemuImg) -> None:
    store.base("base.qcow2", 1)
    img.create(
        store / "top.qcow2", format="qcow2", backing="base.qcow2", backing_format="qcow2",
        data_file=store / "top.data",
    )  # fmt: skip
    assert "holds the data of" in refused(store, RefusedError, "top.data", force=True).message
    done = delete(store / "top.qcow2")
    assert [os.path.basename(file) for file in done.files] == ["top.qcow2", "top.data"]
    assert names(store) == {"base.qcow2"}


def test_a_file_that_a_header_merely_names_stays(store: Store, img: QemuImg) -> None:
    """A header may name anything as its data file: another image, or somebody's secrets."""
    store.base("base.qcow2", 1)
    store.base("other.qcow2", 5)
    (store / "far").mkdir()
    (store / "far/precious").write_bytes(bytes(1 << 20))
    for name, data in (("a.qcow2", "other.qcow2"), ("b.qcow2", "far/precious")):
        img.create(
            store / name, format="qcow2", backing="base.qcow2", backing_format="qcow2", data_file=store / "tmp"
        )
        img.amend(store / name, {"data_file": str(store / data)})
        (store / "tmp").unlink()
        done = delete(store / name)
        assert done.files == (str(store / name),)
        assert any(data in note for note in done.notes)
    assert (store / "far/precious").exists()
    assert (store / "other.qcow2").exists()


def test_a_data_file_that_two_share_stays(store: Store, img: QemuImg) -> None:
    store.base("base.qcow2", 1)
    img.create(
        store / "top.qcow2", format="qcow2", backing="base.qcow2", backing_format="qcow2",
        data_file=store / "top.data",
    )  # fmt: skip
    (store / "copy.qcow2").write_bytes((store / "top.qcow2").read_bytes())
    done = delete(store / "top.qcow2")
    assert any("other images need it" in note for note in done.notes)
    assert names(store) == {"base.qcow2", "copy.qcow2", "top.data"}


def test_other_names_would_be_left_behind(store: Store) -> None:
    store.base("base.qcow2", 1)
    store.overlay("top.qcow2", "base.qcow2")
    (store / "link.qcow2").symlink_to("top.qcow2")
    assert "link.qcow2" in refused(store, RefusedError, "top.qcow2").message
    delete(store / "top.qcow2", force=True)
    (store / "link.qcow2").unlink()


def test_a_sealed_overlay_and_one_that_is_not_there(store: Store) -> None:
    store.base("base.qcow2", 1)
    store.overlay("top.qcow2", "base.qcow2").chmod(0o444)
    assert "sealed" in refused(store, RefusedError, "top.qcow2").message
    refused(store, ImageNotFoundError, "gone.qcow2")


def test_the_plan_deletes_nothing(store: Store) -> None:
    store.base("base.qcow2", 1)
    store.overlay("top.qcow2", "base.qcow2")
    before = store.bytes()
    plan = DeleteRequest(store / "top.qcow2", settle=False).plan()
    assert [(os.path.basename(image.path), image.action) for image in plan.images] == [("top.qcow2", "delete")]
    assert plan.total == (store / "top.qcow2").stat().st_blocks * 512
    assert store.bytes() == before


def test_it_needs_no_room_on_the_disk(store: Store) -> None:
    store.base("base.qcow2", 1)
    store.overlay("top.qcow2", "base.qcow2", {0: 9})
    with no_file_larger_than(0):
        delete(store / "top.qcow2")
    assert names(store) == {"base.qcow2"}


def test_an_error_names_the_directory_and_no_hidden_file(store: Store) -> None:
    store.base("base.qcow2", 1)
    store.overlay("top.qcow2", "base.qcow2", {0: 9})
    before = store.bytes()
    with no_file_larger_than(4096), pytest.raises(ImageError) as caught:
        flatten(store / "top.qcow2")
    assert caught.value.message == f"{store / 'top.qcow2'} needs a new version beside it: File too large"
    assert store.bytes() == before
