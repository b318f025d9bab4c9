"""Commit: what ends up where, who else is hurt, and what is refused."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imgtool.chain.anchors import standings
from imgtool.chain.walk import walk
from imgtool.errors import ImageInUseError, ImgtoolError, PolicyError, RefusedError
from imgtool.image.policy import trusting
from imgtool.operations.commit import CommitRequest, commit
from imgtool.qemu.programs import Programs
from imgtool.qemu.qemu_img import QemuImg

if TYPE_CHECKING:
    from tests.operations.conftest import Store

pytestmark = pytest.mark.matrix


def chain(store: Store) -> None:
    """base ← mid ← top, each with a piece of its own."""
    store.base("base.qcow2", 1, 1, 1, 1)
    store.overlay("mid.qcow2", "base.qcow2", {1: 2})
    store.overlay("top.qcow2", "mid.qcow2", {2: 3})


def states(path: Path) -> list[str]:
    return [found.state for found in standings(walk(path))]


def allocated(path: Path) -> int:
    return sum(entry.length for entry in QemuImg().map(path) if entry.depth == 0 and entry.data)


def refused(store: Store, kind: type[ImgtoolError], overlay: str, **how: object) -> ImgtoolError:
    return store.refused(kind, commit, overlay, **how)


def test_the_base_takes_the_data_and_the_overlay_is_empty(store: Store) -> None:
    chain(store)
    before = store.content()
    done = commit(store / "top.qcow2")
    assert (done.path, done.base) == (str(store / "top.qcow2"), str(store / "mid.qcow2"))
    assert done.emptied
    assert store.content() == {**before, "mid.qcow2": before["top.qcow2"]}
    assert allocated(store / "top.qcow2") == 0
    assert states(store / "top.qcow2") == ["same", "same"]


def test_with_keep_the_overlay_keeps_its_data(store: Store) -> None:
    chain(store)
    before = store.content()
    file = (store / "top.qcow2").stat()
    assert not commit(store / "top.qcow2", keep=True).emptied
    assert store.content() == {**before, "mid.qcow2": before["top.qcow2"]}
    assert allocated(store / "top.qcow2") == 64 << 10
    assert (store / "top.qcow2").stat().st_ino == file.st_ino
    assert states(store / "top.qcow2") == ["same", "same"]


def test_what_stands_on_the_overlay_reads_the_same_and_remembers_its_new_file(store: Store) -> None:
    chain(store)
    store.overlay("leaf.qcow2", "top.qcow2", {5: 9})
    store.overlay("far/leaf.qcow2", "leaf.qcow2")
    before = store.content()
    commit(store / "top.qcow2", store=[store / "far"])
    assert store.content() == {**before, "mid.qcow2": before["top.qcow2"]}
    assert states(store / "far/leaf.qcow2") == ["same"] * 4


def test_a_sibling_is_named_and_the_commit_refused(store: Store) -> None:
    chain(store)
    store.overlay("sibling.qcow2", "base.qcow2")
    error = refused(store, RefusedError, "mid.qcow2")
    assert str(store / "sibling.qcow2") in error.message
    assert error.hint is not None
    for way in ("--preserve-siblings", "--force", "imgtool convert"):
        assert way in error.hint


def test_a_sibling_in_another_directory_is_found_in_the_store(store: Store) -> None:
    chain(store)
    store.overlay("vms/sibling.qcow2", "base.qcow2")
    before = store.bytes()
    with pytest.raises(RefusedError, match=r"sibling\.qcow2"):
        commit(store / "mid.qcow2", store=[store / "vms"])
    assert store.bytes() == before


def test_by_force_the_siblings_change(store: Store) -> None:
    chain(store)
    store.overlay("sibling.qcow2", "base.qcow2", {0: 7})
    commit(store / "mid.qcow2", force=True)
    assert [store.piece("sibling.qcow2", number) for number in range(3)] == [7, 2, 1]


def test_siblings_keep_what_they_read(store: Store) -> None:
    chain(store)
    for number in range(3):
        store.overlay(f"vms/sibling-{number}.qcow2", "base.qcow2", {number: 70 + number})
    store.overlay("vms/nephew.qcow2", "vms/sibling-0.qcow2", {3: 8})
    before = store.content()
    done = commit(store / "mid.qcow2", preserve_siblings=True, store=[store / "vms"])
    assert [os.path.basename(path) for path in done.preserved] == [f"sibling-{n}.qcow2" for n in range(3)]
    assert store.content() == {**before, "base.qcow2": before["mid.qcow2"]}
    for name in ("top.qcow2", "vms/nephew.qcow2", "vms/sibling-2.qcow2"):
        assert set(states(store / name)) == {"same"}
    assert os.path.samefile(walk(store / "vms/sibling-1.qcow2")[1].path, store / "base.qcow2")
    assert QemuImg().info(store / "vms/sibling-1.qcow2").backing_filename == "../base.qcow2"


def test_a_sibling_that_may_not_refer_to_the_base_is_named(store: Store) -> None:
    """And not the hidden copy of it that was worked on."""
    chain(store)
    sibling = store / "vms/sibling.qcow2"
    sibling.parent.mkdir(exist_ok=True)
    words = ["create", "-q", "-f", "qcow2", "-b", "../base.qcow2", "-F", "qcow2", str(sibling)]
    subprocess.run([Programs().find("qemu-img"), *words], check=True)
    before = store.bytes()
    with pytest.raises(PolicyError) as caught:
        commit(store / "mid.qcow2", preserve_siblings=True, store=[store / "vms"])
    assert caught.value.path == str(sibling)
    assert caught.value.message.startswith(str(sibling))
    assert store.bytes() == before


def test_a_siblings_snapshots_keep_what_they_read(store: Store, img: QemuImg) -> None:
    chain(store)
    store.overlay("sibling.qcow2", "base.qcow2", {0: 7})
    img.snapshot_create(store / "sibling.qcow2", "one")
    store.write(store / "sibling.qcow2", (0, 8), (3, 9))
    img.snapshot_create(store / "sibling.qcow2", "two")
    store.write(store / "sibling.qcow2", (5, 10))
    before, known = store.content(), img.info(store / "sibling.qcow2").snapshots
    held = [store.snapshot("sibling.qcow2", name) for name in ("one", "two")]
    commit(store / "mid.qcow2", preserve_siblings=True)
    assert store.content() == {**before, "base.qcow2": before["mid.qcow2"]}
    assert [store.snapshot("sibling.qcow2", name) for name in ("one", "two")] == held
    assert img.info(store / "sibling.qcow2").snapshots == known
    assert img.check(store / "sibling.qcow2").status == "clean"


def test_the_overlays_own_snapshots_would_change(store: Store, img: QemuImg) -> None:
    chain(store)
    img.snapshot_create(store / "top.qcow2", "before the upgrade")
    error = refused(store, RefusedError, "top.qcow2")
    assert "before the upgrade" in error.message
    assert "--force" in str(error.hint)
    commit(store / "top.qcow2", force=True)


def test_a_base_further_down_takes_the_data_and_the_images_between_are_named(store: Store) -> None:
    chain(store)
    request = CommitRequest(store / "top.qcow2", base=store / "base.qcow2")
    plan = request.plan("qemu-img")
    assert f"{store / 'mid.qcow2'} will read the committed data as well" in plan.notes
    assert [(os.path.basename(image.path), image.action) for image in plan.images] == [
        ("base.qcow2", "replace"),
        ("mid.qcow2", "write"),
        ("top.qcow2", "read"),
    ]
    before = store.content()
    done = request.make(QemuImg())
    assert done.between == (str(store / "mid.qcow2"),)
    assert not done.emptied
    after = store.content()
    assert after["top.qcow2"] == before["top.qcow2"] == after["base.qcow2"]
    assert states(store / "top.qcow2") == ["same", "same"]


def test_an_image_between_with_other_overlays_is_not_passed_over(store: Store) -> None:
    chain(store)
    store.overlay("other.qcow2", "mid.qcow2")
    for how in ({}, {"preserve_siblings": True}):
        error = refused(store, RefusedError, "top.qcow2", base=store / "base.qcow2", **how)
        assert str(store / "other.qcow2") in error.message
    commit(store / "top.qcow2", base=store / "base.qcow2", force=True)


def test_a_base_that_is_not_in_the_chain_is_refused_with_those_that_are(store: Store) -> None:
    chain(store)
    store.base("elsewhere.qcow2")
    error = refused(store, RefusedError, "top.qcow2", base=store / "elsewhere.qcow2")
    assert error.hint == f"it stands on {store / 'mid.qcow2'}, {store / 'base.qcow2'}"
    refused(store, RefusedError, "base.qcow2")


def test_a_larger_overlay_makes_the_base_grow_and_it_is_said(store: Store) -> None:
    store.base("base.img", 1, 1, format="raw")
    store.overlay("top.qcow2", "base.img", {20: 3}, size=2 << 20)
    before = store.content("top.qcow2")
    request = CommitRequest(store / "top.qcow2")
    assert any("grows from 1M to 2M" in note for note in request.plan("qemu-img").notes)
    done = request.make(QemuImg())
    assert (done.base_size_before, done.base_size_after) == (1 << 20, 2 << 20)
    assert store.content("top.qcow2", "base.img") == {**before, "base.img": before["top.qcow2"]}


def test_a_smaller_overlay_leaves_the_end_of_the_base_alone(store: Store) -> None:
    store.base("base.qcow2", *range(1, 17))
    store.images.overlay("top.qcow2", "base.qcow2", size="512k")
    store.write(store / "top.qcow2", (0, 99))
    before = store.content("top.qcow2")
    commit(store / "top.qcow2")
    assert store.content("top.qcow2") == before
    assert [store.piece("base.qcow2", number) for number in (0, 1, 8, 15)] == [99, 2, 9, 16]


@pytest.mark.parametrize("format", ["raw", "qed", "qcow", "vmdk", "vdi", "vpc", "vhdx"])
def test_the_base_may_be_of_any_format_that_qemu_writes(store: Store, format: str) -> None:
    store.base("base", 1, 1, 1, size="8M", format=format)
    store.images.overlay("top.qcow2", "base", format=format)
    store.write(store / "top.qcow2", (1, 2))
    before = store.by_qemu("top.qcow2", "qcow2")
    commit(store / "top.qcow2")
    assert store.by_qemu("top.qcow2", "qcow2") == before
    assert store.by_qemu("base", format) == before


@pytest.mark.parametrize("format", ["qed", "qcow"])
def test_the_overlay_may_be_of_any_format_with_backing_files(store: Store, format: str) -> None:
    store.base("base.qcow2", 1, 1, 1)
    store.images.qemu_img("create", "-q", "-f", format, "-b", "base.qcow2", "-F", "qcow2", store / "top")
    store.write(store / "top", (1, 2), format=format)
    before = store.by_qemu("top", format)
    commit(store / "top")
    assert store.by_qemu("top", format) == before == store.by_qemu("base.qcow2")


def test_a_vmdk_on_a_vmdk_could_not_be_read_any_more(store: Store) -> None:
    """It knows its backing file by a number, which changes when that is written."""
    store.base("base.vmdk", 1, 2, format="vmdk")
    store.images.qemu_img("create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", "mid.vmdk")
    store.images.qemu_img("create", "-q", "-f", "qcow2", "-b", "mid.vmdk", "-F", "vmdk", "top.qcow2")
    store.write(store / "mid.vmdk", (1, 3), format="vmdk")
    store.write(store / "top.qcow2", (2, 4))
    for how in ({"overlay": store / "mid.vmdk"}, {"overlay": store / "top.qcow2", "base": store / "base.vmdk"}):
        with pytest.raises(RefusedError, match="number"):
            CommitRequest(**how, keep=True)  # type: ignore[arg-type]
    before = store.by_qemu("top.qcow2")
    commit(store / "top.qcow2")
    assert store.by_qemu("top.qcow2") == store.by_qemu("mid.vmdk", "vmdk") == before


@pytest.mark.parametrize(
    "options", ['"driver":"raw","offset":65536', '"driver":"raw","size":65536', '"driver":"throttle","limits.x":1']
)
def test_a_base_that_is_named_with_options_is_not_written(store: Store, options: str) -> None:
    """What lies where in the file is not known."""
    base = store.base("base.img", 1, 2, format="raw")
    file = f'"file":{{"driver":"file","filename":"{base}"}}'
    store.images.overlay("top.qcow2", f"json:{{{options},{file}}}", format="raw", size="64k")
    store.overlay("sibling.qcow2", "base.img")
    assert "no plain file" in refused(store, RefusedError, "top.qcow2").message
    for how in ({}, {"preserve_siblings": True}):
        assert "top.qcow2 also stands on" in refused(store, RefusedError, "sibling.qcow2", **how).message


def test_the_name_and_mode_of_the_base_stay(store: Store) -> None:
    chain(store)
    (store / "mid.qcow2").chmod(0o640)
    commit(store / "top.qcow2")
    assert stat.S_IMODE((store / "mid.qcow2").stat().st_mode) == 0o640


def test_a_base_behind_a_symlink_is_changed_where_it_lies(store: Store) -> None:
    store.base("bases/v1.qcow2", 1, 1)
    (store / "latest.qcow2").symlink_to("bases/v1.qcow2")
    store.images.overlay("top.qcow2", "latest.qcow2")
    store.write(store / "top.qcow2", (1, 2))
    before = store.content("top.qcow2")
    commit(store / "top.qcow2")
    assert (store / "latest.qcow2").is_symlink()
    assert store.content("top.qcow2", "bases/v1.qcow2") == {**before, "bases/v1.qcow2": before["top.qcow2"]}


def test_a_base_that_stands_on_something_else_where_it_lies_is_refused(store: Store) -> None:
    """Its copy would be made there."""
    for folder, byte in (("here", 1), ("there", 2)):
        store.base(f"{folder}/root.qcow2", byte)
    store.overlay("there/base.qcow2", "there/root.qcow2")
    (store / "here/base.qcow2").symlink_to("../there/base.qcow2")
    store.images.overlay("here/top.qcow2", "base.qcow2")
    store.images.run_io(store / "here/top.qcow2", "write -P 5 0 4k")
    with trusting(f"{store.directory}/"):
        assert "depends on the name" in refused(store, RefusedError, "here/top.qcow2").message


def test_a_sealed_base_is_never_written(store: Store) -> None:
    chain(store)
    (store / "mid.qcow2").chmod(0o444)
    error = refused(store, RefusedError, "top.qcow2", force=True)
    assert "sealed" in error.message


def test_images_in_use_are_left_alone(store: Store) -> None:
    chain(store)
    store.overlay("sibling.qcow2", "base.qcow2")
    for name in ("top.qcow2", "mid.qcow2"):
        with store.images.opened(store / name) as pid:
            assert f"pid {pid}" in refused(store, ImageInUseError, "top.qcow2").message
    with store.images.opened(store / "sibling.qcow2"):
        for how in ({"force": True}, {"preserve_siblings": True}):
            refused(store, ImageInUseError, "mid.qcow2", **how)
    with store.images.opened(store / "sibling.qcow2", "-r"):
        for how in ({"force": True}, {"preserve_siblings": True}):
            refused(store, ImageInUseError, "mid.qcow2", **how)


def test_a_parent_that_changed_since_is_noticed(store: Store) -> None:
    chain(store)
    store.write(store / "base.qcow2", (9, 9))
    error = refused(store, RefusedError, "mid.qcow2")
    assert str(store / "base.qcow2") in error.message
    assert "--force" in str(error.hint)
    commit(store / "mid.qcow2", force=True)
    assert states(store / "mid.qcow2") == ["same"]


def test_what_was_noticed_is_not_forgotten_by_a_commit_beside_it(store: Store) -> None:
    chain(store)
    store.overlay("leaf.qcow2", "top.qcow2")
    store.write(store / "top.qcow2", (9, 9))
    commit(store / "top.qcow2")
    assert states(store / "leaf.qcow2")[0] in ("written", "changed")


def test_a_base_with_two_names_is_refused(store: Store) -> None:
    chain(store)
    os.link(store / "mid.qcow2", store / "second-name.qcow2")
    assert "2 names" in refused(store, RefusedError, "top.qcow2").message


def test_a_snapshot_of_a_base_that_grows_stays_what_it_was(store: Store, img: QemuImg) -> None:
    """qemu-img reads it as large as the disk is now, as after a resize; applied, it has the size that it had."""
    store.base("base.qcow2", 1, 1)
    img.snapshot_create(store / "base.qcow2", "one")
    store.write(store / "base.qcow2", (1, 2))
    store.overlay("top.qcow2", "base.qcow2", {20: 3}, size=2 << 20)
    store.overlay("sibling.qcow2", "base.qcow2", {2: 4})
    held, before = store.snapshot("base.qcow2", "one"), store.content()
    commit(store / "top.qcow2", preserve_siblings=True)
    assert store.content("sibling.qcow2", "top.qcow2") == {
        name: before[name] for name in ("sibling.qcow2", "top.qcow2")
    }
    assert store.snapshot("base.qcow2", "one") == held + bytes(1 << 20)
    img.snapshot_apply(store / "base.qcow2", "one")
    assert img.info(store / "base.qcow2").virtual_size == 1 << 20
    assert store.by_qemu("base.qcow2") == held


def test_an_image_that_keeps_its_data_elsewhere_is_refused(store: Store, img: QemuImg) -> None:
    store.base("base.qcow2", 1)
    img.create(
        store / "mid.qcow2", None, format="qcow2", backing="base.qcow2", backing_format="qcow2",
        data_file=store / "mid.data",
    )  # fmt: skip
    store.images.overlay("top.qcow2", "mid.qcow2")
    assert "another file" in refused(store, RefusedError, "top.qcow2").message
    assert "another file" in refused(store, RefusedError, "mid.qcow2").message
    store.images.overlay("top2.qcow2", "mid.data", format="raw", size="1M")
    assert "holds the data of" in refused(store, RefusedError, "top2.qcow2").message


def test_the_plan_names_commands_images_and_bytes(store: Store) -> None:
    chain(store)
    store.overlay("sibling.qcow2", "base.qcow2")
    before = store.bytes()
    plan = CommitRequest(store / "mid.qcow2", preserve_siblings=True, settle=False).plan("qemu-img")
    commit_argv, rebase_argv = plan.commands
    opened = f"driver=qcow2,file.driver=file,file.filename={store / 'mid.qcow2'},backing.driver=qcow2,"
    opened += f"backing.file.driver=file,backing.file.filename={store / 'base.qcow2'}"
    assert commit_argv == ("qemu-img", "commit", "-t", "unsafe", "--image-opts", opened)
    assert rebase_argv[-1] == str(store / "sibling.qcow2")
    assert [(os.path.basename(image.path), image.action) for image in plan.images] == [
        ("sibling.qcow2", "replace"),
        ("base.qcow2", "replace"),
        ("mid.qcow2", "replace"),
        ("top.qcow2", "write"),
    ]
    assert plan.images[1].bytes is not None
    assert plan.images[1].bytes > 256 << 10
    assert store.bytes() == before


def test_a_raw_base_with_a_qcow2s_magic_number_stays_raw(store: Store) -> None:
    """A guest may write what it likes into its disk."""
    inner = store.base("inner.qcow2", 5)
    base = store / "base.raw"
    base.write_bytes(inner.read_bytes() + bytes(1 << 20))
    store.images.overlay("top.qcow2", "base.raw", format="raw")
    store.write(store / "top.qcow2", (15, 2))
    before = store.by_qemu("top.qcow2", "qcow2")
    commit(store / "top.qcow2")
    assert store.by_qemu("base.raw", "raw") == before == base.read_bytes()
