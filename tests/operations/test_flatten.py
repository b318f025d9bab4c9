"""Flatten: one image of a chain, in place or in a new file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imgtool.chain.anchors import standings
from imgtool.chain.walk import walk
from imgtool.errors import ImageExistsError, ImageInUseError, ImgtoolError, RefusedError
from imgtool.operations.flatten import FlattenRequest, flatten
from imgtool.operations.rebase import rebase
from imgtool.qemu.qemu_img import QemuImg

if TYPE_CHECKING:
    from tests.operations.conftest import Store

pytestmark = pytest.mark.matrix


def chain(store: Store) -> None:
    store.base("base.qcow2", 1, 1, 1)
    store.overlay("mid.qcow2", "base.qcow2", {1: 2})
    store.overlay("top.qcow2", "mid.qcow2", {2: 0})


def refused(store: Store, kind: type[ImgtoolError], image: str, **how: object) -> ImgtoolError:
    return store.refused(kind, flatten, image, **how)


def test_in_place_it_reads_the_same_and_stands_on_nothing(store: Store) -> None:
    chain(store)
    store.overlay("leaf.qcow2", "top.qcow2", {5: 5})
    before = store.content()
    done = flatten(store / "top.qcow2")
    assert done.stood_on == (str(store / "mid.qcow2"), str(store / "base.qcow2"))
    assert done.path == done.source == str(store / "top.qcow2")
    assert store.content() == before
    assert len(walk(store / "top.qcow2")) == 1
    assert [found.state for found in standings(walk(store / "leaf.qcow2"))] == ["same"]


def test_an_image_in_the_middle_is_flattened_under_its_overlays(store: Store) -> None:
    chain(store)
    before = store.content()
    flatten(store / "mid.qcow2")
    assert store.content() == before
    assert [Path(image.path).name for image in walk(store / "top.qcow2")] == ["top.qcow2", "mid.qcow2"]
    assert [found.state for found in standings(walk(store / "top.qcow2"))] == ["same"]


def test_in_place_snapshots_bitmaps_and_options_stay(store: Store, img: QemuImg) -> None:
    store.base("base.qcow2", 1, 2, 3)
    img.create(
        store / "top.qcow2", format="qcow2", backing="base.qcow2", backing_format="qcow2",
        options={"cluster_size": "32k", "lazy_refcounts": True, "refcount_bits": 32},
    )  # fmt: skip
    store.write(store / "top.qcow2", (1, 7))
    img.snapshot_create(store / "top.qcow2", "first")
    store.write(store / "top.qcow2", (1, 8), (9, 9))
    before, held = store.content(), store.snapshot("top.qcow2", "first")
    known = img.info(store / "top.qcow2")
    flatten(store / "top.qcow2")
    assert store.content() == before
    assert store.snapshot("top.qcow2", "first") == held
    after = img.info(store / "top.qcow2")
    assert after.snapshots == known.snapshots
    assert after.cluster_size == known.cluster_size
    assert after.qcow2 is not None
    assert after.qcow2 == known.qcow2
    img.snapshot_apply(store / "top.qcow2", "first")
    assert store.by_qemu("top.qcow2") == held


def test_in_place_bitmaps_stay(store: Store, img: QemuImg) -> None:
    chain(store)
    img.bitmap(store / "top.qcow2", "daily", ["add"])
    flatten(store / "top.qcow2")
    found = img.info(store / "top.qcow2").qcow2
    assert found is not None
    assert [bitmap.name for bitmap in found.bitmaps or ()] == ["daily"]


@pytest.mark.parametrize("format", ["vmdk", "qcow"])
def test_formats_without_a_rebase_are_written_anew(store: Store, format: str) -> None:
    base = "base.vmdk" if format == "vmdk" else "base.qcow2"
    store.base(base, 1, 2, format=base.split(".")[1])
    store.images.qemu_img("create", "-q", "-f", format, "-b", base, "-F", base.split(".")[1], store / "top")
    store.write(store / "top", (1, 9), format=format)
    before = store.by_qemu("top", format)
    flatten(store / "top")
    assert store.by_qemu("top", format) == before
    assert len(walk(store / "top")) == 1


def test_a_new_file_is_made_and_nothing_else_changes(store: Store) -> None:
    chain(store)
    before = store.bytes()
    done = flatten(store / "top.qcow2", to=store / "new.raw", output_format="raw")
    assert (done.path, done.format, done.virtual_size) == (str(store / "new.raw"), "raw", 1 << 20)
    after = store.bytes()
    assert after.pop("new.raw") == store.by_qemu("top.qcow2")
    assert after == before


def test_a_new_image_of_several_files_is_as_large_as_all_of_them(store: Store) -> None:
    chain(store)
    options = {"subformat": "twoGbMaxExtentSparse"}
    done = flatten(store / "top.qcow2", to=store / "new.vmdk", output_format="vmdk", options=options)
    files = [store / "new.vmdk", store / "new-s001.vmdk"]
    assert done.actual_size == sum(file.stat().st_blocks * 512 for file in files)


def test_a_new_file_may_be_compressed_and_have_options(store: Store, img: QemuImg) -> None:
    chain(store)
    flatten(store / "top.qcow2", to=store / "new.qcow2", compressed=True, options={"cluster_size": "128k"})
    assert img.compare(store / "top.qcow2", store / "new.qcow2").identical
    assert img.info(store / "new.qcow2").cluster_size == 128 << 10


def test_a_new_file_has_the_bitmaps_and_says_that_it_has_no_snapshots(store: Store, img: QemuImg) -> None:
    chain(store)
    img.bitmap(store / "top.qcow2", "daily", ["add"])
    img.snapshot_create(store / "top.qcow2", "one")
    done = flatten(store / "top.qcow2", to=store / "new.qcow2")
    found = img.info(store / "new.qcow2").qcow2
    assert found is not None
    assert [bitmap.name for bitmap in found.bitmaps or ()] == ["daily"]
    assert any("not the 1 internal snapshot" in note for note in done.notes)


def test_an_existing_file_is_replaced_only_when_told(store: Store) -> None:
    chain(store)
    store.base("other.qcow2", 9)
    refused(store, ImageExistsError, "top.qcow2", to=store / "other.qcow2")
    flatten(store / "top.qcow2", to=store / "other.qcow2", overwrite=True)
    assert len(set(store.content("top.qcow2", "other.qcow2").values())) == 1


def test_an_image_of_the_chain_or_with_overlays_is_never_the_target(store: Store) -> None:
    chain(store)
    store.base("other.qcow2", 9)
    store.overlay("on-other.qcow2", "other.qcow2")
    for name in ("top.qcow2", "base.qcow2", "other.qcow2"):
        refused(store, RefusedError, "top.qcow2", to=store / name, overwrite=True)


def test_overlays_of_the_target_are_looked_for_in_the_store_too(store: Store) -> None:
    chain(store)
    store.base("other.qcow2", 9)
    (store / "elsewhere").mkdir()
    words = ("-f", "qcow2", "-b", "../other.qcow2", "-F", "qcow2")
    store.images.qemu_img("create", "-q", *words, "elsewhere/on-other.qcow2")
    with pytest.raises(RefusedError, match=r"on-other\.qcow2"):
        flatten(store / "top.qcow2", to=store / "other.qcow2", overwrite=True, store=[store / "elsewhere"])


@pytest.mark.parametrize("format", ["qcow2", "vmdk"])
def test_what_was_done_to_the_target_meanwhile_stops_it(store: Store, img: QemuImg, format: str) -> None:
    chain(store)
    store.base("other", 9, format=format)

    def ask() -> FlattenRequest:
        return FlattenRequest(store / "top.qcow2", to=store / "other", output_format=format, overwrite=True)

    request = ask()
    store.overlay("on-other.qcow2", "other")
    before = store.by_qemu("on-other.qcow2")
    with pytest.raises(ImageInUseError, match="made an overlay of"):
        request.make(img)
    assert store.by_qemu("on-other.qcow2") == before
    (store / "on-other.qcow2").unlink()
    request = ask()
    with store.images.opened(store / "other", format=format), pytest.raises(ImageInUseError):
        request.make(img)
    ask().make(img)
    assert store.by_qemu("other", format) == store.by_qemu("top.qcow2")


def test_a_sealed_image_and_one_that_holds_the_data_of_another_are_never_the_target(store: Store) -> None:
    chain(store)
    store.base("sealed.qcow2", 9).chmod(0o444)
    store.images.qemu_img("create", "-q", "-f", "qcow2", "-o", "data_file=data.img", "with-data.qcow2", "1M")
    store.images.qemu_img("create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", "disk.vmdk", "1M")
    for name in ("sealed.qcow2", "data.img", "disk-flat.vmdk"):
        refused(store, RefusedError, "top.qcow2", to=store / name, overwrite=True)


def test_a_vmdk_that_stands_on_a_vmdk_could_not_be_read_any_more(store: Store) -> None:
    """It knows its backing file by a number, which changes with it."""
    store.base("base.vmdk", 1, 2, format="vmdk")
    for name, below in (("mid.vmdk", "base.vmdk"), ("top.vmdk", "mid.vmdk")):
        store.images.qemu_img("create", "-q", "-f", "vmdk", "-b", below, "-F", "vmdk", name)
    before = store.by_qemu("top.vmdk", "vmdk")
    assert "number" in refused(store, RefusedError, "mid.vmdk").message
    assert store.by_qemu("top.vmdk", "vmdk") == before
    flatten(store / "top.vmdk")
    assert store.by_qemu("top.vmdk", "vmdk") == before


def two_names(store: Store) -> None:
    """here/top.qcow2 leads to there/top.qcow2, and beside each lies another base.qcow2."""
    for folder, byte in (("here", 1), ("there", 2)):
        store.base(f"{folder}/base.qcow2", byte)
    store.overlay("there/top.qcow2", "there/base.qcow2", {1: 3})
    (store / "here/top.qcow2").symlink_to("../there/top.qcow2")


def test_by_another_name_an_image_may_stand_on_another_base(store: Store) -> None:
    two_names(store)
    before = store.by_qemu("here/top.qcow2")
    for how in ({}, {"to": store / "new.qcow2"}):
        assert "depends on the name" in refused(store, RefusedError, "here/top.qcow2", **how).message
    rebase(store / "here/top.qcow2", store / "here/base.qcow2", unsafe=True, force=True)
    flatten(store / "here/top.qcow2")
    assert store.by_qemu("here/top.qcow2") == store.by_qemu("there/top.qcow2") == before


def test_what_cannot_be_flattened(store: Store) -> None:
    chain(store)
    assert "nothing already" in refused(store, RefusedError, "base.qcow2").message
    assert "--to" in str(refused(store, RefusedError, "top.qcow2", output_format="raw").hint)
    for name in ("top.qcow2", "mid.qcow2", "base.qcow2"):
        with store.images.opened(store / name):
            refused(store, ImageInUseError, "top.qcow2")
    (store / "top.qcow2").chmod(0o444)
    refused(store, RefusedError, "top.qcow2", force=True)
    flatten(store / "top.qcow2", to=store / "new.qcow2")


def test_a_parent_that_changed_since_is_noticed(store: Store) -> None:
    chain(store)
    store.write(store / "base.qcow2", (9, 9))
    refused(store, RefusedError, "top.qcow2")
    flatten(store / "top.qcow2", force=True)


def test_a_sealed_overlay_that_would_have_to_be_written_is_seen_beforehand(store: Store) -> None:
    chain(store)
    (store / "top.qcow2").chmod(0o444)
    with pytest.raises(RefusedError, match=r"top\.qcow2 is sealed, and remembers .*mid\.qcow2"):
        FlattenRequest(store / "mid.qcow2", settle=False)
    store.images.rebase("top.qcow2", "./mid.qcow2")  # by a name that its anchor does not go by: it is not written
    before = store.content()
    flatten(store / "mid.qcow2")
    assert store.content() == before


def test_an_overlay_that_was_made_one_of_version_2_keeps_an_anchor_that_follows(store: Store, img: QemuImg) -> None:
    """What it stood on could not be flattened any more, nor it itself."""
    chain(store)
    img.amend(store / "top.qcow2", {"compat": "0.10"})
    before = store.content()
    flatten(store / "mid.qcow2")
    assert [found.state for found in standings(walk(store / "top.qcow2"))] == ["same"]
    store.write(store / "mid.qcow2", (5, 5))
    assert [found.state for found in standings(walk(store / "top.qcow2"))] == ["changed"]
    flatten(store / "top.qcow2", force=True)
    store.images.qemu_img("check", store / "top.qcow2")
    assert store.content("base.qcow2") == {"base.qcow2": before["base.qcow2"]}
    assert [store.piece("top.qcow2", number) for number in (0, 1, 2, 5)] == [1, 2, 0, 5]


def test_a_chain_too_deep_for_others_can_be_flattened(store: Store) -> None:
    store.base("c000.qcow2", 1, 2, size="256k")
    template = store.images.overlay("c999.qcow2", "c000.qcow2").read_bytes()
    (store / "c999.qcow2").unlink()
    for number in range(1, 215):
        below = f"c{number - 1:03}.qcow2".encode()
        (store / f"c{number:03}.qcow2").write_bytes(template.replace(b"c000.qcow2", below))
    before = store.content("c214.qcow2")
    flatten(store / "c214.qcow2")
    assert store.content("c214.qcow2") == before


def test_the_plan_names_the_command_and_the_bytes(store: Store) -> None:
    chain(store)
    before = store.bytes()
    top = str(store / "top.qcow2")
    plan = FlattenRequest(store / "top.qcow2", settle=False).plan("qemu-img")
    assert plan.commands == (("qemu-img", "rebase", "-t", "unsafe", "-b", "", "-f", "qcow2", top),)
    assert [(os.path.basename(image.path), image.action) for image in plan.images] == [
        ("top.qcow2", "replace"),
        ("mid.qcow2", "read"),
        ("base.qcow2", "read"),
    ]
    assert plan.images[0].bytes is not None
    plan = FlattenRequest(top, to=store / "new.raw", output_format="raw", settle=False).plan("qemu-img")
    assert plan.commands[0][1] == "convert"
    assert [image.action for image in plan.images] == ["create", "read", "read", "read"]
    assert store.bytes() == before
