"""The wrappers that change an image, against the qemu-img at hand."""

from __future__ import annotations

import gzip
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from imgtool.errors import (
    CommandError,
    ImageNotFoundError,
    RefusedError,
    UsageError,
)
from imgtool.qemu.qemu_img import Merge, QemuImg, SnapshotParam, Verbatim
from tests.conftest import Images
from tests.qemu.disks import FORMATS, MIB, content, disk, overlay, write

pytestmark = pytest.mark.matrix

SAMPLES = Path(__file__).parents[2] / "fixtures" / "images"


def sample(tmp_path: Path, name: str) -> Path:
    return write(tmp_path / name, gzip.decompress((SAMPLES / f"{name}.gz").read_bytes()))


@pytest.mark.parametrize("format", ["raw", "qcow2", "qed"])
def test_resize_grows_and_says_what_was(img: QemuImg, tmp_path: Path, format: str) -> None:
    img.create(tmp_path / "a", 4 * MIB, format=format)
    grown = img.resize(tmp_path / "a", 6 * MIB, format=format)
    assert (grown.before.virtual_size, grown.after.virtual_size) == (4 * MIB, 6 * MIB)
    assert grown.written == (str(tmp_path / "a"),)
    assert img.resize(tmp_path / "a", "+2M").after.virtual_size == 8 * MIB


def test_resize_shrinks_only_when_told_to(img: QemuImg, tmp_path: Path) -> None:
    img.create(tmp_path / "a", 4 * MIB, format="qcow2")
    with pytest.raises(CommandError):
        img.resize(tmp_path / "a", "-1M", format="qcow2")
    assert img.resize(tmp_path / "a", "-1M", format="qcow2", shrink=True).after.virtual_size == 3 * MIB


def test_resize_can_allocate_what_is_new(img: QemuImg, tmp_path: Path) -> None:
    img.create(tmp_path / "a", MIB, format="raw")
    grown = img.resize(tmp_path / "a", 3 * MIB, format="raw", preallocation="full")
    assert (grown.after.actual_size or 0) >= 2 * MIB


@pytest.mark.parametrize("format", sorted(set(FORMATS) - {"raw", "qcow2", "qed"}))
def test_what_a_format_cannot_do_is_an_error_and_no_change(
    img: QemuImg, raw: Path, tmp_path: Path, format: str
) -> None:
    img.convert(raw, tmp_path / "a", output_format=format)
    before = content(img, tmp_path / "a", tmp_path, format)
    attempts: list[Callable[[], object]] = [
        lambda: img.snapshot_create(tmp_path / "a", "s", format=format),
        lambda: img.amend(tmp_path / "a", {"size": 8 * MIB}, format=format),
        lambda: img.bitmap(tmp_path / "a", "b", ["add"], format=format),
    ]
    for attempt in attempts:
        with pytest.raises(CommandError) as caught:
            attempt()
        assert caught.value.path == str(tmp_path / "a")
        assert caught.value.status == 1
    assert content(img, tmp_path / "a", tmp_path, format) == before


def test_snapshots_are_made_listed_applied_and_deleted(img: QemuImg, base: Path, tmp_path: Path) -> None:
    first = content(img, base, tmp_path)
    made = img.snapshot_create(base, "-one, two", format="qcow2")
    assert made.before.snapshots is None
    assert [snapshot.name for snapshot in made.after.snapshots or ()] == ["-one, two"]
    Images(tmp_path).run_io(base, "write -P 7 0 64k")
    assert content(img, base, tmp_path) != first
    (snapshot,) = img.snapshot_list(base)
    assert (snapshot.name, snapshot.vm_state_size) == ("-one, two", 0)
    param = SnapshotParam(name=snapshot.name)
    img.convert(base, tmp_path / "then.raw", format="qcow2", output_format="raw", snapshot=param)
    assert (tmp_path / "then.raw").read_bytes() == first
    img.snapshot_apply(base, "-one, two", format="qcow2")
    assert content(img, base, tmp_path) == first
    gone = img.snapshot_delete(base, snapshot.name)
    assert gone.after.snapshots is None
    assert img.snapshot_list(base) == []


def test_a_snapshot_of_an_overlay_with_a_relative_backing_file(
    img: QemuImg, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = overlay(img, base)
    monkeypatch.chdir("/")
    assert img.snapshot_create(top, "s", format="qcow2").after.snapshots
    assert content(img, top, tmp_path) == content(img, base, tmp_path)


@pytest.mark.parametrize("name", ["no such", "snapshot.id=1"])
def test_a_snapshot_that_is_not_there_is_an_error(img: QemuImg, base: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(CommandError):
        img.snapshot_apply(base, name)
    with pytest.raises(CommandError):
        img.convert(base, tmp_path / "a", output_format="raw", snapshot=name)
    assert not (tmp_path / "a").exists()


def test_commit_moves_what_the_overlay_holds_into_its_base(img: QemuImg, base: Path, tmp_path: Path) -> None:
    top = overlay(img, base)
    Images(tmp_path).run_io(top, "write -P 7 0 1M")
    seen_by_guest = content(img, top, tmp_path)
    seen: list[float] = []
    done = img.commit(top, format="qcow2", progress=seen.append)
    assert (done.path, done.base) == (str(top), str(base))
    assert done.written == (str(top), str(base))
    assert done.base_before is not None
    assert done.base_after is not None
    assert done.base_after.filename == str(base)
    assert seen[-1] == 100.0
    assert content(img, base, tmp_path) == seen_by_guest
    assert {entry.depth for entry in img.map(top) if entry.data} == {1}  # it was emptied


def test_commit_can_leave_the_overlay_as_it_is_and_go_further_down(img: QemuImg, base: Path, tmp_path: Path) -> None:
    middle = overlay(img, base, "middle.qcow2")
    top = overlay(img, middle, "top.qcow2")
    Images(tmp_path).run_io(top, "write -P 7 0 1M")
    done = img.commit(top, base=base, keep=True, cache="writeback", rate_limit=100 * MIB)
    assert done.base == str(base)
    assert content(img, base, tmp_path) == content(img, top, tmp_path)
    assert 0 in {entry.depth for entry in img.map(top) if entry.data}


def test_an_image_without_a_backing_file_has_nothing_to_commit_into(img: QemuImg, base: Path) -> None:
    with pytest.raises(UsageError):
        img.commit(base)


def test_a_missing_base_is_found_before_anything_is_committed(img: QemuImg, base: Path) -> None:
    top = overlay(img, base)
    base.rename(base.with_suffix(".away"))
    with pytest.raises((ImageNotFoundError, CommandError)):
        img.commit(top)


@pytest.mark.parametrize("unsafe", [False, True])
def test_rebase_changes_the_backing_file(img: QemuImg, base: Path, tmp_path: Path, unsafe: bool) -> None:
    top = overlay(img, base)
    copy = write(tmp_path / "copy.qcow2", base.read_bytes())
    seen: list[float] = []
    done = img.rebase(top, backing="copy.qcow2", backing_format="qcow2", unsafe=unsafe, progress=seen.append)
    assert (done.before.backing_filename, done.after.backing_filename) == ("base.qcow2", "copy.qcow2")
    assert done.after.full_backing_filename == str(copy)
    assert seen or unsafe


def test_rebase_keeps_what_the_guest_sees(img: QemuImg, base: Path, tmp_path: Path) -> None:
    top = overlay(img, base)
    before = content(img, top, tmp_path)
    other = write(tmp_path / "other.raw", disk(2))
    img.rebase(top, backing=other, backing_format="raw", format="qcow2")
    assert content(img, top, tmp_path) == before
    done = img.rebase(top, backing=None)
    assert done.after.backing_filename is None
    assert content(img, top, tmp_path) == before


def test_rebase_onto_something_missing_is_refused_unless_unsafe(img: QemuImg, base: Path) -> None:
    top = overlay(img, base)
    with pytest.raises(ImageNotFoundError) as caught:
        img.rebase(top, backing="gone", backing_format="raw")
    assert caught.value.path == str(base.parent / "gone")
    assert img.rebase(top, backing="gone", backing_format="raw", unsafe=True).after.backing_filename == "gone"
    remote = Verbatim("nbd://127.0.0.1/x")
    assert img.rebase(top, backing=remote, backing_format="raw", unsafe=True).after.backing_filename == remote.text


def test_amend_changes_options(img: QemuImg, base: Path, tmp_path: Path) -> None:
    before = content(img, base, tmp_path)
    seen: list[float] = []
    done = img.amend(base, {"compat": "0.10"}, format="qcow2", progress=seen.append)
    assert done.before.qcow2 is not None
    assert done.after.qcow2 is not None
    assert (done.before.qcow2.compat, done.after.qcow2.compat) == ("1.1", "0.10")
    assert seen[-1] == 100.0
    assert content(img, base, tmp_path) == before


def test_amend_to_version_2_is_refused_where_it_would_break_bitmaps(img: QemuImg, base: Path) -> None:
    img.bitmap(base, "kept", ["add"])
    before = base.read_bytes()
    with pytest.raises(RefusedError, match="has dirty bitmaps, and a qcow2 of version 2 cannot have that"):
        img.amend(base, {"compat": "0.10"})
    assert base.read_bytes() == before
    assert img.check(base).status == "clean"
    img.bitmap(base, "kept", ["remove"])
    img.amend(base, {"compat": "0.10"})


def test_bitmaps(img: QemuImg, base: Path, tmp_path: Path) -> None:
    def flags(path: Path) -> dict[str, tuple[str, ...]]:
        qcow2 = img.info(path).qcow2
        assert qcow2 is not None
        return {bitmap.name: bitmap.flags for bitmap in qcow2.bitmaps or ()}

    made = img.bitmap(base, "-one", ["add"], format="qcow2", granularity=131072)
    assert made.before.qcow2 is not None
    assert made.before.qcow2.bitmaps is None
    assert made.after.qcow2 is not None
    assert made.after.qcow2.bitmaps is not None
    assert [(bitmap.name, bitmap.granularity) for bitmap in made.after.qcow2.bitmaps] == [("-one", 131072)]
    img.bitmap(base, "two", ["add", "disable"], granularity=131072)
    assert flags(base) == {"-one": ("auto",), "two": ()}
    img.bitmap(base, "two", [Merge("-one"), "enable"])
    img.bitmap(base, "-one", ["clear"])
    other = tmp_path / "other.qcow2"
    img.create(other, 2 * MIB, format="qcow2")
    img.bitmap(other, "two", ["add"], granularity=131072)
    img.bitmap(other, "two", [Merge("two")], merge_from=base, merge_from_format="qcow2")
    img.bitmap(base, "-one", ["remove"])
    assert flags(base) == {"two": ("auto",)}
    img.convert(base, tmp_path / "copy.qcow2", output_format="qcow2", bitmaps=True)
    assert flags(tmp_path / "copy.qcow2") == {"two": ("auto",)}


def test_leaks_and_corruption_are_answers_and_can_be_repaired(img: QemuImg, tmp_path: Path) -> None:
    leaking, corrupt = sample(tmp_path, "qcow2-leaks.qcow2"), sample(tmp_path, "qcow2-corruption.qcow2")
    found = img.check(leaking, format="qcow2")
    assert (found.status, found.exit_status) == ("leaks", 3)
    assert found.report is not None
    assert found.report.leaks
    mended = img.check(leaking, format="qcow2", repair="leaks")
    assert mended.status == "clean"
    assert mended.report is not None
    assert mended.report.leaks_fixed == found.report.leaks
    found = img.check(corrupt, format="qcow2")
    assert (found.status, found.exit_status) == ("corrupt", 2)
    assert found.report is not None
    assert found.report.corruptions
    mended = img.check(corrupt, format="qcow2", repair="all")
    assert (mended.status, mended.exit_status) == ("clean", 0)
    assert mended.report is not None
    assert mended.report.corruptions_fixed


def test_mending_an_image_that_was_not_closed_is_no_failure(img: QemuImg, tmp_path: Path) -> None:
    path = tmp_path / "a"
    img.create(path, MIB, format="qcow2", options={"lazy_refcounts": True})
    with pytest.raises(subprocess.CalledProcessError):
        Images(tmp_path).run_io(path, "write -P 7 0 512k", "flush", "abort")
    grown = img.resize(path, "+1M", format="qcow2")
    assert (grown.after.virtual_size, grown.after.dirty_flag) == (2 * MIB, False)
    assert "epair" in grown.notes
    assert img.check(path).status == "clean"
    assert img.resize(path, "+1M").notes == ""


def test_a_size_below_nothing_is_no_step_back_from_the_size_there_is(img: QemuImg, tmp_path: Path) -> None:
    image = str(tmp_path / "image")
    img.create(image, 4 << 20, format="qcow2")
    with pytest.raises(UsageError, match="-1048576 bytes are no size"):
        img.resize(image, -(1 << 20), shrink=True)
    with pytest.raises(UsageError, match="-1 bytes are no size"):
        img.create(tmp_path / "other", -1, format="qcow2")
    with pytest.raises(UsageError, match="-1 bytes are no size"):
        img.measure(size=-1, output_format="raw")
    assert img.info(image).virtual_size == 4 << 20
    assert not (tmp_path / "other").exists()
