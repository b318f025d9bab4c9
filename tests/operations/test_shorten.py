"""Shorten: middle layers are merged, and every image reads the same."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imgtool.chain.anchors import standings
from imgtool.chain.walk import walk
from imgtool.errors import ImageInUseError, ImgtoolError, RefusedError
from imgtool.operations.shorten import ShortenRequest, shorten
from imgtool.qemu.qemu_img import QemuImg

if TYPE_CHECKING:
    from tests.operations.conftest import Store

pytestmark = pytest.mark.matrix


def chain(store: Store, layers: int = 4) -> None:
    """base ← 1 ← 2 ← … ← layers; each layer has a piece of its own."""
    store.base("base.qcow2", *[100] * 8)
    below = "base.qcow2"
    for number in range(1, layers + 1):
        store.overlay(f"{number}.qcow2", below, {number: number})
        below = f"{number}.qcow2"


def line(store: Store, name: str) -> list[str]:
    return [os.path.basename(image.path) for image in walk(store / name)]


def states(store: Store, name: str) -> set[str]:
    return {found.state for found in standings(walk(store / name))}


def refused(store: Store, kind: type[ImgtoolError], top: str, **how: object) -> ImgtoolError:
    return store.refused(kind, shorten, top, **how)


def test_everything_between_is_merged_into_the_top(store: Store) -> None:
    chain(store)
    before = store.content()
    done = shorten(store / "4.qcow2")
    assert [os.path.basename(path) for path in done.merged] == ["3.qcow2", "2.qcow2", "1.qcow2"]
    assert done.deleted == ()
    assert done.chain == (str(store / "base.qcow2"),)
    assert line(store, "4.qcow2") == ["4.qcow2", "base.qcow2"]
    assert states(store, "4.qcow2") == {"same"}
    assert store.content() == before
    own = {entry.start >> 16 for entry in QemuImg().map(store / "4.qcow2") if entry.depth == 0}
    assert min(own) == 1


def test_merged_files_are_deleted_when_told(store: Store) -> None:
    chain(store)
    before = store.content("4.qcow2", "base.qcow2")
    done = shorten(store / "4.qcow2", delete=True)
    assert done.deleted == done.merged
    assert store.content() == before


def test_down_to_an_image_in_the_middle(store: Store) -> None:
    chain(store)
    before = store.content()
    shorten(store / "4.qcow2", onto=store / "1.qcow2")
    assert line(store, "4.qcow2") == ["4.qcow2", "1.qcow2", "base.qcow2"]
    assert store.content() == before
    assert states(store, "4.qcow2") == {"same"}


def test_layers_that_are_kept_stay_in_the_chain(store: Store) -> None:
    chain(store, 6)
    before = store.content()
    done = shorten(store / "6.qcow2", keep=[store / "3.qcow2"], delete=True)
    assert line(store, "6.qcow2") == ["6.qcow2", "3.qcow2", "base.qcow2"]
    assert len(done.deleted) == 4
    assert states(store, "6.qcow2") == {"same"}
    assert store.content() == {name: before[name] for name in ("6.qcow2", "3.qcow2", "base.qcow2")}


def test_layers_that_others_stand_on_stay(store: Store) -> None:
    chain(store)
    store.overlay("other.qcow2", "2.qcow2")
    before = store.content()
    done = shorten(store / "4.qcow2", delete=True)
    assert [os.path.basename(path) for path in done.deleted] == ["3.qcow2", "1.qcow2"]
    assert line(store, "4.qcow2") == ["4.qcow2", "2.qcow2", "base.qcow2"]
    assert line(store, "other.qcow2") == ["other.qcow2", "2.qcow2", "base.qcow2"]
    assert states(store, "4.qcow2") | states(store, "other.qcow2") == {"same"}
    assert store.content() == {name: before[name] for name in store.content()}
    assert "there is no layer to merge" in refused(store, RefusedError, "4.qcow2").message


def test_what_stands_on_the_top_reads_the_same(store: Store) -> None:
    chain(store)
    store.overlay("leaf.qcow2", "4.qcow2", {7: 7})
    before = store.content()
    shorten(store / "4.qcow2")
    assert store.content() == before
    assert states(store, "leaf.qcow2") == {"same"}


def test_the_reference_stays_relative_or_absolute(store: Store) -> None:
    store.base("base.qcow2", 1)
    store.overlay("vms/1.qcow2", "base.qcow2")
    store.overlay("vms/far/2.qcow2", "vms/1.qcow2")
    shorten(store / "vms/far/2.qcow2")
    assert QemuImg().info(store / "vms/far/2.qcow2").backing_filename == "../../base.qcow2"
    store.images.overlay("3.qcow2", str(store / "vms/1.qcow2"))
    shorten(store / "3.qcow2")
    assert QemuImg().info(store / "3.qcow2").backing_filename == str(store / "base.qcow2")


def test_what_cannot_be_shortened(store: Store) -> None:
    chain(store, 3)
    assert "stands on nothing" in refused(store, RefusedError, "base.qcow2").message
    assert "no layer" in refused(store, RefusedError, "1.qcow2").message
    store.base("elsewhere.qcow2")
    assert "does not stand on" in refused(store, RefusedError, "3.qcow2", onto=store / "elsewhere.qcow2").message
    for name in ("3.qcow2", "2.qcow2", "base.qcow2"):
        with store.images.opened(store / name):
            refused(store, ImageInUseError, "3.qcow2")
    with store.images.opened(store / "2.qcow2", "-r"):
        refused(store, ImageInUseError, "3.qcow2", delete=True)
    (store / "2.qcow2").chmod(0o444)
    assert "sealed" in refused(store, RefusedError, "3.qcow2", delete=True).message
    shorten(store / "3.qcow2")


def test_snapshots_are_deleted_with_a_layer_only_by_force(store: Store, img: QemuImg) -> None:
    chain(store, 2)
    img.snapshot_create(store / "1.qcow2", "kept")
    assert "internal snapshots" in refused(store, RefusedError, "2.qcow2", delete=True).message
    shorten(store / "2.qcow2", delete=True, force=True)
    assert not (store / "1.qcow2").exists()


def test_a_merged_file_with_a_second_name_is_not_deleted(store: Store) -> None:
    chain(store, 2)
    os.link(store / "1.qcow2", store / "second-name.qcow2")
    refused(store, RefusedError, "2.qcow2", delete=True)


def test_a_parent_that_changed_since_is_noticed(store: Store) -> None:
    chain(store)
    store.write(store / "base.qcow2", (9, 9))
    refused(store, RefusedError, "4.qcow2")


def test_the_plan_names_commands_and_files(store: Store) -> None:
    chain(store)
    before = store.bytes()
    plan = ShortenRequest(store / "4.qcow2", keep=[store / "2.qcow2"], delete=True, settle=False).plan("qemu-img")
    assert [command[-1] for command in plan.commands] == [str(store / "4.qcow2"), str(store / "2.qcow2")]
    assert [(Path(image.path).name, image.action) for image in plan.images] == [
        ("4.qcow2", "replace"),
        ("2.qcow2", "replace"),
        ("2.qcow2", "read"),
        ("base.qcow2", "read"),
        ("3.qcow2", "delete"),
        ("1.qcow2", "delete"),
    ]
    assert store.bytes() == before


def test_a_layer_named_by_a_symlink_is_deleted_with_it(store: Store, img: QemuImg) -> None:
    """Only the symlink went, and the file stayed without what it stands on."""
    store.base("base.qcow2", 1, 2)
    store.overlay("a.qcow2", "base.qcow2", {0: 9})
    store.overlay("b.qcow2", "a.qcow2", {1: 8})
    (store / "link.qcow2").symlink_to("b.qcow2")
    store.overlay("top.qcow2", "link.qcow2")
    before = store.content("top.qcow2")
    request = ShortenRequest(store / "top.qcow2", delete=True)
    deleted = {image.path for image in request.plan("qemu-img").images if image.action == "delete"}
    assert deleted == {str(store / name) for name in ("a.qcow2", "b.qcow2", "link.qcow2")}
    assert set(request.make(img).deleted) == deleted
    assert sorted(path.name for path in store.directory.iterdir()) == ["base.qcow2", "top.qcow2"]
    assert store.content("top.qcow2") == before
