"""Reset: an overlay is empty again, and nothing else is lost."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from imgtool.chain.anchors import standings
from imgtool.chain.walk import walk
from imgtool.errors import ImageInUseError, ImgtoolError, RefusedError
from imgtool.operations.reset import ResetRequest, reset
from imgtool.qemu.qemu_img import QemuImg

if TYPE_CHECKING:
    from tests.operations.conftest import Store

pytestmark = pytest.mark.matrix


def refused(store: Store, kind: type[ImgtoolError], image: str, **how: object) -> ImgtoolError:
    return store.refused(kind, reset, image, **how)


def test_it_reads_its_base_again(store: Store) -> None:
    store.base("base.qcow2", 1, 1)
    store.overlay("top.qcow2", "base.qcow2", {0: 9, 5: 9})
    (store / "top.qcow2").chmod(0o600)
    before = store.content("base.qcow2")
    done = reset(store / "top.qcow2")
    assert done.base == str(store / "base.qcow2")
    assert done.lost > 128 << 10
    assert store.content() == {**before, "top.qcow2": before["base.qcow2"]}
    assert (store / "top.qcow2").stat().st_size < 1 << 20
    assert stat.S_IMODE((store / "top.qcow2").stat().st_mode) == 0o600
    assert [found.state for found in standings(walk(store / "top.qcow2"))] == ["same"]
    assert QemuImg().info(store / "top.qcow2").backing_filename == "base.qcow2"


def test_size_and_options_stay(store: Store, img: QemuImg) -> None:
    store.base("base.qcow2", 1)
    img.create(
        store / "top.qcow2", 2 << 20, format="qcow2", backing="base.qcow2", backing_format="qcow2",
        options={"cluster_size": "32k", "lazy_refcounts": True, "refcount_bits": 8},
    )  # fmt: skip
    before = img.info(store / "top.qcow2")
    store.write(store / "top.qcow2", (20, 9))
    reset(store / "top.qcow2")
    after = img.info(store / "top.qcow2")
    assert (after.virtual_size, after.cluster_size) == (2 << 20, 32 << 10)
    assert after.qcow2 == before.qcow2


def test_the_old_version_stays_the_old_version(store: Store, img: QemuImg) -> None:
    store.base("base.qcow2", 1)
    img.create(
        store / "top.qcow2", format="qcow2", backing="base.qcow2", backing_format="qcow2", options={"compat": "0.10"}
    )
    reset(store / "top.qcow2")
    found = img.info(store / "top.qcow2").qcow2
    assert found is not None
    assert found.compat == "0.10"


def test_what_stands_on_it_would_lose_its_ground(store: Store) -> None:
    store.base("base.qcow2", 1)
    store.overlay("top.qcow2", "base.qcow2", {0: 9})
    store.overlay("leaf.qcow2", "top.qcow2")
    error = refused(store, RefusedError, "top.qcow2")
    assert str(store / "leaf.qcow2") in error.message
    assert "--force" in str(error.hint)
    reset(store / "top.qcow2", force=True)
    assert [found.state for found in standings(walk(store / "leaf.qcow2"))] == ["changed", "same"]


def test_what_cannot_be_reset(store: Store, img: QemuImg) -> None:
    store.base("base.qcow2", 1)
    store.overlay("top.qcow2", "base.qcow2", {0: 9})
    assert "no backing file" in refused(store, RefusedError, "base.qcow2", force=True).message
    for options in ((), ("-r",)):
        with store.images.opened(store / "top.qcow2", *options):
            refused(store, ImageInUseError, "top.qcow2")
    img.snapshot_create(store / "top.qcow2", "one")
    assert "snapshot" in refused(store, RefusedError, "top.qcow2").message
    (store / "top.qcow2").chmod(0o444)
    assert "sealed" in refused(store, RefusedError, "top.qcow2", force=True).message
    store.images.qemu_img("create", "-q", "-f", "qed", "-b", "base.qcow2", "-F", "qcow2", store / "top.qed")
    assert "only qcow2" in refused(store, RefusedError, "top.qed").message


def test_the_plan_says_what_is_lost(store: Store) -> None:
    store.base("base.qcow2", 1)
    store.overlay("top.qcow2", "base.qcow2", {0: 9})
    before = store.bytes()
    plan = ResetRequest(store / "top.qcow2", settle=False).plan("qemu-img")
    assert plan.commands[0][:9] == (*("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2"),)
    assert "what was written to it is lost" in plan.notes
    assert plan.total == (store / "top.qcow2").stat().st_blocks * 512
    assert [image.action for image in plan.images] == ["replace", "read"]
    assert store.bytes() == before
