"""Rebase: a guest reads the same, or nothing is changed."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imgtool.chain.anchors import standings
from imgtool.chain.content import digest_of
from imgtool.chain.walk import walk
from imgtool.errors import (
    ChainError,
    ImageFormatError,
    ImageInUseError,
    ImageNotFoundError,
    ImgtoolError,
    RefusedError,
    UsageError,
)
from imgtool.operations.commit import commit
from imgtool.operations.rebase import RebaseRequest, rebase
from imgtool.operations.refit import every_snapshot
from imgtool.qemu.img_argv import Verbatim
from imgtool.qemu.qemu_img import QemuImg

if TYPE_CHECKING:
    from tests.operations.conftest import Store

pytestmark = pytest.mark.matrix


def two_bases(store: Store) -> None:
    store.base("old.qcow2", 1, 1, 5)
    store.base("new.qcow2", 2, 1, 5, 6)
    store.overlay("top.qcow2", "old.qcow2", {1: 3})


def states(path: Path) -> list[str]:
    return [found.state for found in standings(walk(path))]


def refused(store: Store, kind: type[ImgtoolError], image: str, backing: object, **how: object) -> ImgtoolError:
    return store.refused(kind, rebase, image, backing, **how)


def test_a_guest_reads_the_same_and_the_new_parent_is_remembered(store: Store) -> None:
    two_bases(store)
    store.overlay("leaf.qcow2", "top.qcow2", {4: 4})
    before = store.content()
    done = rebase(store / "top.qcow2", "new.qcow2")
    assert (done.backing, done.backing_format, done.before, done.proven) == ("new.qcow2", "qcow2", "old.qcow2", True)
    assert store.content() == before
    assert states(store / "leaf.qcow2") == ["same", "same"]
    assert [Path(image.path).name for image in walk(store / "top.qcow2")] == ["top.qcow2", "new.qcow2"]


def test_only_what_differs_is_copied(store: Store) -> None:
    two_bases(store)
    rebase(store / "top.qcow2", "new.qcow2")
    own = [entry.start for entry in QemuImg().map(store / "top.qcow2") if entry.depth == 0]
    assert own == [0, 1 << 16, 3 << 16]  # the second was its own already


def test_onto_nothing(store: Store) -> None:
    two_bases(store)
    before = store.content()
    assert rebase(store / "top.qcow2", None).backing is None
    assert store.content() == before
    assert len(walk(store / "top.qcow2")) == 1
    assert states(store / "top.qcow2") == []


def test_from_nothing(store: Store) -> None:
    two_bases(store)
    store.base("alone.qcow2", 1, 0, 5)
    before = store.content()
    rebase(store / "alone.qcow2", "old.qcow2")
    assert store.content() == before
    assert states(store / "alone.qcow2") == ["same"]


@pytest.mark.parametrize("format", ["raw", "vmdk", "qed"])
def test_onto_a_base_of_another_format(store: Store, format: str) -> None:
    two_bases(store)
    store.base("base", 7, 7, size="1M", format=format)
    before = store.by_qemu("top.qcow2", "qcow2")
    rebase(store / "top.qcow2", "base", backing_format=format)
    assert store.by_qemu("top.qcow2", "qcow2") == before
    assert QemuImg().info(store / "top.qcow2").backing_filename_format == format


def test_onto_a_smaller_base_the_rest_is_copied(store: Store) -> None:
    two_bases(store)
    store.base("small.qcow2", 9, size="128k")
    before = store.content("top.qcow2")
    rebase(store / "top.qcow2", "small.qcow2")
    assert store.content("top.qcow2") == before


def test_the_reference_is_as_asked_for(store: Store) -> None:
    two_bases(store)
    (store / "bases").mkdir()
    (store / "new.qcow2").rename(store / "bases/new.qcow2")
    absolute = str(store / "bases/new.qcow2")
    for given, how, reference in (
        ("bases/new.qcow2", {}, "bases/new.qcow2"),
        (absolute, {}, absolute),
        ("bases/../bases/new.qcow2", {"absolute": True}, absolute),
        (absolute, {"relative": True}, "bases/new.qcow2"),
    ):
        assert rebase(store / "top.qcow2", given, **how).backing == reference  # type: ignore[arg-type]
        assert QemuImg().info(store / "top.qcow2").backing_filename == reference


@pytest.mark.parametrize("name", ["nbd:new.qcow2", "-n,e\nw.qcow2", "\udcff.qcow2"])
def test_awkward_names_are_files(store: Store, name: str) -> None:
    two_bases(store)
    (store / "new.qcow2").rename(store / name)
    before = store.content("top.qcow2")
    rebase(store / "top.qcow2", name)
    assert store.content("top.qcow2") == before
    assert os.path.samefile(walk(store / "top.qcow2")[1].path, store / name)


def test_an_image_behind_a_symlink_is_changed_where_it_lies(store: Store) -> None:
    two_bases(store)
    (store / "link.qcow2").symlink_to("top.qcow2")
    before = store.content("top.qcow2")
    assert rebase(store / "link.qcow2", "new.qcow2").path == str(store / "top.qcow2")
    assert (store / "link.qcow2").is_symlink()
    assert store.content("top.qcow2") == before


def test_internal_snapshots_read_the_same_too(store: Store, img: QemuImg) -> None:
    two_bases(store)
    img.snapshot_create(store / "top.qcow2", "one")
    store.write(store / "top.qcow2", (0, 8))
    before, held = store.content("top.qcow2"), store.snapshot("top.qcow2", "one")
    rebase(store / "top.qcow2", "new.qcow2")
    assert store.content("top.qcow2") == before
    assert store.snapshot("top.qcow2", "one") == held
    rebase(store / "top.qcow2", None)
    assert store.content("top.qcow2") == before
    assert store.snapshot("top.qcow2", "one") == held
    assert img.check(store / "top.qcow2").status == "clean"


def test_no_snapshot_is_left_out_however_many_there_are(store: Store, img: QemuImg) -> None:
    """A graph lists a thousand; one that rebase left out would read another disk afterwards."""
    path = store.base("old.qcow2", 1)
    img.snapshot_create(path, "one")
    with path.open("r+b") as file:
        fields = file.read(72)
        (at,) = struct.unpack_from(">Q", fields, 64)
        file.seek(at)
        entry = file.read(len("1") + len("one") + 40 + 24)
        assert entry.endswith(b"1one")
        copies = b"".join(
            (entry[:-4] + b"%04d" % number).ljust(-(-len(entry) // 8) * 8, b"\0") for number in range(1001)
        )
        file.seek(0, os.SEEK_END)
        end = -(-file.tell() // 65536) * 65536
        file.seek(end)
        file.write(copies)
        file.seek(60)
        file.write(struct.pack(">IQ", 1001, end))
    (image,) = walk(path)
    assert len(image.snapshots) == 1000
    assert len(every_snapshot(image.path, "qcow2")) == 1001


def test_snapshots_and_bitmaps_together_are_refused(store: Store, img: QemuImg) -> None:
    two_bases(store)
    img.snapshot_create(store / "top.qcow2", "one")
    img.bitmap(store / "top.qcow2", "daily", ["add"])
    assert "dirty bitmaps" in refused(store, RefusedError, "top.qcow2", "new.qcow2").message


def test_a_name_alone_is_changed_when_it_makes_no_difference(store: Store) -> None:
    two_bases(store)
    copy = (store / "old.qcow2").read_bytes()
    (store / "copy.qcow2").write_bytes(copy)
    before = store.content("top.qcow2")
    size = (store / "top.qcow2").stat().st_size
    assert rebase(store / "top.qcow2", "copy.qcow2", unsafe=True).proven
    assert store.content("top.qcow2") == before
    assert (store / "top.qcow2").stat().st_size == size
    assert states(store / "top.qcow2") == ["same"]


def test_a_name_alone_is_not_changed_when_it_does(store: Store) -> None:
    two_bases(store)
    error = refused(store, RefusedError, "top.qcow2", "new.qcow2", unsafe=True)
    assert "holds something else" in error.message
    assert "--force" in str(error.hint)
    assert "without -u" in str(error.hint)
    assert not rebase(store / "top.qcow2", "new.qcow2", unsafe=True, force=True).proven
    assert [store.piece("top.qcow2", number) for number in range(4)] == [2, 3, 5, 6]


def test_what_snapshots_read_counts_for_a_name_alone(store: Store, img: QemuImg) -> None:
    two_bases(store)
    img.snapshot_create(store / "top.qcow2", "one")
    store.write(store / "top.qcow2", (0, 1), (3, 0))
    store.write(store / "old.qcow2", (0, 1))
    refused(store, RefusedError, "top.qcow2", "new.qcow2", unsafe=True)


def test_a_moved_base_is_known_again(store: Store) -> None:
    two_bases(store)
    (store / "bases").mkdir()
    (store / "old.qcow2").rename(store / "bases/moved.qcow2")
    error = refused(store, RefusedError, "top.qcow2", "new.qcow2", unsafe=True)
    assert "cannot be proven" in error.message
    assert rebase(store / "top.qcow2", "bases/moved.qcow2", unsafe=True).proven
    assert states(store / "top.qcow2") == ["same"]


@pytest.mark.parametrize("unsafe", [False, True])
def test_an_image_may_stand_on_what_was_named_elsewhere_and_is_found_from_there(store: Store, unsafe: bool) -> None:
    store.base("here/base.qcow2", 1, 2)
    store.overlay("here/top.qcow2", "here/base.qcow2", {1: 3})
    (store / "elsewhere").mkdir()
    shutil.copy2(store / "here/base.qcow2", store / "elsewhere/base.qcow2")
    rebase(store / "here/top.qcow2", "../elsewhere/base.qcow2", unsafe=unsafe)
    before = digest_of(store / "here/top.qcow2")
    store.overlay("elsewhere/other.qcow2", "elsewhere/base.qcow2", {0: 4})
    with pytest.raises(RefusedError, match=r"here/top\.qcow2 also stands on"):
        commit(store / "elsewhere/other.qcow2")
    assert digest_of(store / "here/top.qcow2") == before


def test_a_base_of_the_same_size_and_time_is_another(store: Store) -> None:
    for name, byte in (("old.img", 1), ("new.img", 2)):
        os.utime(store.base(name, byte, format="raw"), (1, 1))
    store.overlay("top.qcow2", "old.img", {3: 3})
    error = refused(store, RefusedError, "top.qcow2", "new.img", unsafe=True)
    assert "holds something else" in error.message


def test_the_same_file_in_another_format_is_another_disk(store: Store) -> None:
    two_bases(store)
    error = refused(store, RefusedError, "top.qcow2", "old.qcow2", unsafe=True, backing_format="raw")
    assert "holds something else" in error.message


def test_a_missing_base_is_named_only_by_force(store: Store) -> None:
    two_bases(store)
    error = refused(store, ImageNotFoundError, "top.qcow2", "gone.qcow2")
    assert "does not exist" in error.message
    error = refused(store, ImageNotFoundError, "top.qcow2", "gone.qcow2", unsafe=True, backing_format="raw")
    assert "--force" in str(error.hint)
    refused(store, UsageError, "top.qcow2", "gone.qcow2", unsafe=True, force=True)
    rebase(store / "top.qcow2", "gone.qcow2", unsafe=True, force=True, backing_format="raw")
    assert QemuImg().info(store / "top.qcow2").backing_filename == "gone.qcow2"


def test_a_wrong_format_is_refused(store: Store) -> None:
    two_bases(store)
    for unsafe in (False, True):
        error = refused(store, ImageFormatError, "top.qcow2", "new.qcow2", backing_format="vmdk", unsafe=unsafe)
        assert "looks like qcow2" in error.message


def test_no_circle_is_ever_made(store: Store) -> None:
    two_bases(store)
    store.overlay("leaf.qcow2", "top.qcow2")
    for name in ("top.qcow2", "leaf.qcow2"):
        for how in ({}, {"unsafe": True}, {"unsafe": True, "force": True}):
            assert "cannot have the backing file" in refused(store, RefusedError, "top.qcow2", name, **how).message
    tree = Verbatim(
        '{"driver":"qcow2","file":{"driver":"file","filename":"'.join(["json:", f'{store / "leaf.qcow2"}"}}}}'])
    )
    refused(store, RefusedError, "top.qcow2", tree, backing_format="qcow2", unsafe=True, force=True)


def test_a_circle_is_opened_only_by_force(store: Store) -> None:
    two_bases(store)
    store.images.rebase("old.qcow2", "top.qcow2")
    refused(store, ChainError, "top.qcow2", "new.qcow2")
    error = refused(store, RefusedError, "top.qcow2", "new.qcow2", unsafe=True)
    assert "never ends" in error.message
    rebase(store / "top.qcow2", "new.qcow2", unsafe=True, force=True)
    assert len(walk(store / "top.qcow2")) == 2


def test_images_in_use_are_left_alone(store: Store) -> None:
    two_bases(store)
    for name in ("top.qcow2", "old.qcow2", "new.qcow2"):
        with store.images.opened(store / name):
            refused(store, ImageInUseError, "top.qcow2", "new.qcow2")
    store.overlay("leaf.qcow2", "top.qcow2")
    with store.images.opened(store / "leaf.qcow2"):
        refused(store, ImageInUseError, "top.qcow2", "new.qcow2")


def test_a_sealed_image_stays_on_what_it_stands_on(store: Store) -> None:
    two_bases(store)
    (store / "top.qcow2").chmod(0o444)
    refused(store, RefusedError, "top.qcow2", "new.qcow2", force=True)


def test_a_parent_that_changed_since_is_noticed(store: Store) -> None:
    two_bases(store)
    store.write(store / "old.qcow2", (9, 9))
    assert "--force" in str(refused(store, RefusedError, "top.qcow2", "new.qcow2").hint)
    rebase(store / "top.qcow2", "new.qcow2", force=True)


def test_formats_that_cannot_be_moved_are_refused(store: Store) -> None:
    two_bases(store)
    store.base("old.vmdk", 1, format="vmdk")
    for format, base in (("vmdk", "vmdk"), ("qcow", "qcow2")):
        store.images.qemu_img("create", "-q", "-f", format, "-b", f"old.{base}", "-F", base, store / "top")
        assert format in refused(store, RefusedError, "top", "new.qcow2").message
        (store / "top").unlink()
    store.base("plain.raw", 1, format="raw")
    refused(store, RefusedError, "plain.raw", "new.qcow2")


def test_an_overlay_of_the_old_version_has_no_anchor(store: Store) -> None:
    two_bases(store)
    store.images.qemu_img(
        "create", "-q", "-f", "qcow2", "-o", "compat=0.10", "-b", "old.qcow2", "-F", "qcow2", store / "v2.qcow2"
    )
    before = store.content("v2.qcow2")
    rebase(store / "v2.qcow2", "new.qcow2")
    assert store.content("v2.qcow2") == before
    assert states(store / "v2.qcow2") == ["none"]


def test_an_overlay_that_was_made_one_of_version_2_remembers_its_new_base(store: Store, img: QemuImg) -> None:
    two_bases(store)
    img.amend(store / "top.qcow2", {"compat": "0.10"})
    rebase(store / "top.qcow2", "new.qcow2")
    assert states(store / "top.qcow2") == ["same"]
    store.write(store / "new.qcow2", (9, 1))
    assert states(store / "top.qcow2") == ["changed"]


def test_the_plan_names_the_command_and_the_images(store: Store) -> None:
    two_bases(store)
    before = store.bytes()
    plan = RebaseRequest(store / "top.qcow2", "new.qcow2", settle=False).plan("qemu-img")
    top = str(store / "top.qcow2")
    assert plan.commands == (
        ("qemu-img", "rebase", "-t", "unsafe", "-b", "new.qcow2", "-F", "qcow2", "-f", "qcow2", top),
    )
    assert [(Path(image.path).name, image.action) for image in plan.images] == [
        ("top.qcow2", "replace"),
        ("old.qcow2", "read"),
        ("new.qcow2", "read"),
    ]
    assert store.bytes() == before


def test_a_base_with_snapshots_is_put_on_another_and_on_nothing_again(store: Store, img: QemuImg) -> None:
    two_bases(store)
    img.snapshot_create(store / "new.qcow2", "one")
    store.write(store / "new.qcow2", (0, 8))
    before, held = store.content("new.qcow2"), store.snapshot("new.qcow2", "one")
    for backing in (None, "old.qcow2", None):
        rebase(store / "new.qcow2", backing)
        assert store.content("new.qcow2") == before
        assert store.snapshot("new.qcow2", "one") == held
