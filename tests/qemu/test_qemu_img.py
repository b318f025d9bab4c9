"""Every wrapper against the qemu-img at hand, on every format it can make."""

from __future__ import annotations

import gzip
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from imgtool.errors import (
    CommandError,
    ImageExistsError,
    ImageInUseError,
    ImageNotFoundError,
    ImageUnreadableError,
    RefusedError,
    UsageError,
)
from imgtool.image.names import printable
from imgtool.qemu.img_argv import OptionValue
from imgtool.qemu.qemu_img import ImageOpts, Merge, QemuImg, SnapshotParam, Verbatim
from tests.conftest import Images
from tests.qemu.disks import ALL_FORMATS, CHECKED, FORMATS, MIB, content, disk, patiently, write

pytestmark = pytest.mark.matrix

SAMPLES = Path(__file__).parents[2] / "fixtures" / "images"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A raw image of known content."""
    return write(tmp_path / "source.raw", disk(1))


@pytest.fixture
def base(img: QemuImg, raw: Path, tmp_path: Path) -> Path:
    """A qcow2 that holds the same."""
    img.convert(raw, tmp_path / "base.qcow2", format="raw", output_format="qcow2")
    return tmp_path / "base.qcow2"


def overlay(img: QemuImg, base: Path, name: str = "overlay.qcow2") -> Path:
    path = base.parent / name
    img.create(path, format="qcow2", backing=base.name, backing_format="qcow2")
    return path


def sample(tmp_path: Path, name: str) -> Path:
    return write(tmp_path / name, gzip.decompress((SAMPLES / f"{name}.gz").read_bytes()))


def test_only_parallels_may_be_missing_here() -> None:
    assert set(ALL_FORMATS) - set(FORMATS) <= {"parallels"}


@pytest.mark.parametrize("format", FORMATS)
def test_an_image_is_created(img: QemuImg, tmp_path: Path, format: str) -> None:
    made = img.create(tmp_path / "a", 4 * MIB, format=format)
    assert made.path == str(tmp_path / "a")
    assert made.written == (made.path,)
    assert made.info is not None
    assert (made.info.filename, made.info.format) == (made.path, format)
    assert made.info.virtual_size >= 4 * MIB  # vpc rounds up to a CHS geometry
    assert made.info.backing_filename is None
    assert os.listdir(tmp_path) == ["a"]
    assert img.info(tmp_path / "a", format=format) == made.info


@pytest.mark.parametrize("format", FORMATS)
def test_a_disk_survives_conversion_there_and_back(img: QemuImg, raw: Path, tmp_path: Path, format: str) -> None:
    seen: list[float] = []
    made = img.convert(raw, tmp_path / "a", format="raw", output_format=format, progress=seen.append)
    assert made.info is not None
    assert (made.info.filename, made.info.format) == (str(tmp_path / "a"), format)
    assert made.written == (made.path,)
    assert made.notes == ""
    assert seen == sorted(seen)
    assert seen[-1] == 100.0
    assert content(img, tmp_path / "a", tmp_path, format)[: 2 * MIB] == raw.read_bytes()
    assert set(os.listdir(tmp_path)) == {"a", "source.raw", "content.raw"}


@pytest.mark.parametrize("format", FORMATS)
def test_check_says_clean_or_that_the_format_has_none(img: QemuImg, tmp_path: Path, format: str) -> None:
    img.create(tmp_path / "a", 4 * MIB, format=format)
    found = img.check(tmp_path / "a", format=format)
    if format in CHECKED:
        assert (found.status, found.exit_status) == ("clean", 0)
        assert found.report is not None
        assert (found.report.filename, found.report.check_errors) == (found.path, 0)
    else:
        assert (found.status, found.exit_status, found.report) == ("unsupported", 63, None)


@pytest.mark.parametrize("format", FORMATS)
def test_map_covers_the_disk(img: QemuImg, raw: Path, tmp_path: Path, format: str) -> None:
    made = img.convert(raw, tmp_path / "a", format="raw", output_format=format)
    assert made.info is not None
    entries = img.map(tmp_path / "a", format=format)
    ends = [entry.start + entry.length for entry in entries]
    assert [entry.start for entry in entries] == [0, *ends[:-1]]
    assert ends[-1] == made.info.virtual_size
    assert any(entry.data for entry in entries)
    part = img.map(tmp_path / "a", format=format, start_offset=MIB, max_length=65536)
    assert part[0].start == MIB
    assert sum(entry.length for entry in part) == 65536


@pytest.mark.parametrize("format", FORMATS)
def test_compare_tells_the_same_from_the_different(img: QemuImg, raw: Path, tmp_path: Path, format: str) -> None:
    img.convert(raw, tmp_path / "a", format="raw", output_format=format)
    seen: list[float] = []
    same = img.compare(raw, tmp_path / "a", format="raw", other_format=format, progress=seen.append)
    assert (same.identical, same.offset) == (True, None)
    assert (same.path, same.other) == (str(raw), str(tmp_path / "a"))
    assert seen
    changed = bytearray(raw.read_bytes())
    changed[MIB] ^= 0xFF
    different = img.compare(write(tmp_path / "b", bytes(changed)), tmp_path / "a", format="raw", other_format=format)
    assert not different.identical
    assert different.offset is not None
    assert MIB - 65536 <= different.offset <= MIB  # qemu-img names the beginning of a block it compared
    assert str(different.offset) in different.message


def test_strict_compare_also_looks_at_sizes(img: QemuImg, raw: Path, tmp_path: Path) -> None:
    longer = write(tmp_path / "longer.raw", raw.read_bytes() + bytes(MIB))
    assert img.compare(raw, longer, format="raw", other_format="raw").identical
    strict = img.compare(raw, longer, format="raw", other_format="raw", strict=True)
    assert (strict.identical, strict.offset) == (False, None)


@pytest.mark.parametrize("format", ["raw", "qcow2", "luks"])
def test_measure_says_what_an_image_would_need(img: QemuImg, raw: Path, tmp_path: Path, format: str) -> None:
    key = ["secret,id=s,data=x"] if format == "luks" else []
    options: dict[str, OptionValue] = {"key-secret": "s", "iter-time": 10} if key else {}
    empty = patiently(lambda: img.measure(size=2 * MIB, output_format=format, options=options, objects=key))
    full = patiently(lambda: img.measure(raw, format="raw", output_format=format, options=options, objects=key))
    assert 0 < empty.required <= full.required <= full.fully_allocated
    assert empty.fully_allocated == full.fully_allocated


def test_measure_takes_a_snapshot(img: QemuImg, base: Path) -> None:
    whole = img.measure(base, format="qcow2", output_format="qcow2")
    img.snapshot_create(base, "full", format="qcow2")
    kept = img.measure(base, format="qcow2", output_format="qcow2", snapshot="full")
    assert kept.required == whole.required


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


def test_an_overlay_takes_its_size_from_its_base(img: QemuImg, base: Path, tmp_path: Path) -> None:
    made = img.create(tmp_path / "o", format="qcow2", backing="base.qcow2", backing_format="qcow2")
    assert made.info is not None
    assert made.info.virtual_size == 2 * MIB
    assert made.info.backing_filename == "base.qcow2"
    assert made.info.full_backing_filename == str(base)
    assert made.info.backing_filename_format == "qcow2"
    chain = img.info_chain(tmp_path / "o")
    assert [image.filename for image in chain] == [str(tmp_path / "o"), str(base)]


@pytest.mark.parametrize("format", ["qcow2", "qed", "qcow", "vmdk"])
def test_every_format_that_can_have_a_backing_file_takes_a_relative_one(
    img: QemuImg, raw: Path, tmp_path: Path, format: str
) -> None:
    (tmp_path / "d").mkdir()
    img.convert(raw, tmp_path / "d" / "base", format="raw", output_format=format)
    made = img.create(tmp_path / "o", format=format, backing="./d/base", backing_format=format)
    assert made.info is not None
    assert made.info.backing_filename == "./d/base"
    assert content(img, tmp_path / "o", tmp_path, format) == raw.read_bytes()
    assert set(os.listdir(tmp_path)) == {"d", "o", "source.raw", "content.raw"}


def test_convert_can_make_an_overlay(img: QemuImg, raw: Path, base: Path, tmp_path: Path) -> None:
    changed = bytearray(raw.read_bytes())
    changed[0] ^= 1
    write(tmp_path / "changed.raw", bytes(changed))
    made = img.convert(
        tmp_path / "changed.raw",
        tmp_path / "o",
        format="raw",
        output_format="qcow2",
        backing="base.qcow2",
        backing_format="qcow2",
    )
    assert made.info is not None
    assert made.info.backing_filename == "base.qcow2"
    assert content(img, tmp_path / "o", tmp_path) == changed


def test_a_missing_backing_file_is_named(img: QemuImg, tmp_path: Path) -> None:
    with pytest.raises(ImageNotFoundError) as caught:
        img.create(tmp_path / "o", format="qcow2", backing="gone", backing_format="raw")
    assert caught.value.path == str(tmp_path / "gone")
    assert os.listdir(tmp_path) == []
    made = img.create(tmp_path / "o", MIB, format="qcow2", backing="gone", backing_format="raw", unsafe_backing=True)
    assert made.info is not None
    assert made.info.backing_filename == "gone"


def test_no_image_becomes_its_own_backing_file(img: QemuImg, base: Path) -> None:
    before = base.read_bytes()
    with pytest.raises(UsageError):
        img.create(base, format="qcow2", backing="base.qcow2", backing_format="qcow2", overwrite=True)
    assert base.read_bytes() == before


def test_an_image_without_size_or_base_makes_no_sense(img: QemuImg, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        img.create(tmp_path / "a", format="qcow2")


@pytest.mark.parametrize(
    ("subformat", "extents"),
    [
        ("monolithicSparse", []),
        ("streamOptimized", []),
        ("monolithicFlat", ["a-flat.vmdk"]),
        ("twoGbMaxExtentSparse", ["a-s001.vmdk"]),
        ("twoGbMaxExtentFlat", ["a-f001.vmdk"]),
    ],
)
def test_a_vmdk_of_several_files_arrives_with_all_of_them(
    img: QemuImg, raw: Path, tmp_path: Path, subformat: str, extents: list[str]
) -> None:
    target = tmp_path / "d" / "a.vmdk"
    target.parent.mkdir()
    made = img.convert(raw, target, format="raw", output_format="vmdk", options={"subformat": subformat})
    assert set(os.listdir(target.parent)) == {"a.vmdk", *extents}
    assert made.written == (str(target), *(str(target.parent / name) for name in extents))
    assert made.info is not None
    assert made.info.vmdk is not None
    assert made.info.vmdk.create_type == subformat
    assert content(img, target, tmp_path, "vmdk") == raw.read_bytes()
    if extents:
        target.unlink()
        with pytest.raises(ImageExistsError) as caught:
            img.create(target, MIB, format="vmdk", options={"subformat": subformat}, overwrite=True)
        assert caught.value.path == str(target.parent / extents[0])
        assert set(os.listdir(target.parent)) == set(extents)


def test_a_vmdk_cannot_rest_on_something_above_its_directory_by_a_relative_name(img: QemuImg, tmp_path: Path) -> None:
    img.create(tmp_path / "base", MIB, format="vmdk")
    (tmp_path / "d").mkdir()
    with pytest.raises(RefusedError):
        img.create(tmp_path / "d" / "o", format="vmdk", backing="../base", backing_format="vmdk")
    assert os.listdir(tmp_path / "d") == []
    img.create(tmp_path / "d" / "o", format="vmdk", backing=tmp_path / "base", backing_format="vmdk")


@pytest.mark.parametrize("raw_outside", [False, True])
def test_a_data_file_arrives_with_its_image(img: QemuImg, raw: Path, tmp_path: Path, raw_outside: bool) -> None:
    target, data = tmp_path / "d" / "a.qcow2", tmp_path / "d" / "a,b.data"
    target.parent.mkdir()
    options = {"data_file_raw": raw_outside}
    made = img.convert(raw, target, format="raw", output_format="qcow2", data_file=data, options=options)
    assert set(os.listdir(target.parent)) == {target.name, data.name}
    assert made.written == (str(target), str(data))
    assert made.info is not None
    assert made.info.qcow2 is not None
    assert (made.info.qcow2.data_file, made.info.qcow2.data_file_raw) == (str(data), raw_outside)
    assert content(img, target, tmp_path) == raw.read_bytes()
    assert img.check(target).status == "clean"
    with pytest.raises(ImageExistsError) as caught:
        img.create(tmp_path / "d" / "b.qcow2", MIB, format="qcow2", options={"data_file": str(data)}, overwrite=True)
    assert caught.value.path == str(data)
    assert set(os.listdir(target.parent)) == {target.name, data.name}


def test_luks_is_made_and_read_with_its_key(img: QemuImg, raw: Path, tmp_path: Path) -> None:
    key = [f"secret,id=k,file={write(tmp_path / 'key', b'swordfish')}"]
    options: dict[str, OptionValue] = {"key-secret": "k", "iter-time": 10}
    target = tmp_path / "a.luks"
    made = patiently(
        lambda: img.convert(raw, target, format="raw", output_format="luks", options=options, objects=key)
    )
    assert made.info is not None
    assert made.info.format_specific is not None
    assert made.info.format_specific.type == "luks"
    opened = ImageOpts.of({"driver": "luks", "key-secret": "k", "file.filename": str(target)})
    assert img.check(opened, objects=key).status == "unsupported"
    assert img.info(opened, objects=key).virtual_size == 2 * MIB
    img.convert(opened, tmp_path / "plain.raw", output_format="raw", objects=key)
    assert (tmp_path / "plain.raw").read_bytes() == raw.read_bytes()
    assert img.compare(raw, opened, format="raw", objects=key).identical
    assert sum(entry.length for entry in img.map(opened, objects=key)) == 2 * MIB
    assert img.resize(opened, 3 * MIB, objects=key).after.virtual_size == 3 * MIB
    img.convert(raw, opened, format="raw", output_format="luks", skip_creation=True, objects=key)
    with pytest.raises(CommandError):
        img.convert(target, tmp_path / "x.raw", format="luks", output_format="raw")
    assert not (tmp_path / "x.raw").exists()


def test_an_existing_target_is_replaced_only_when_asked(img: QemuImg, raw: Path, base: Path) -> None:
    before = base.read_bytes()
    with pytest.raises(ImageExistsError):
        img.create(base, MIB, format="qcow2")
    with pytest.raises(ImageExistsError):
        img.convert(raw, base, output_format="qcow2")
    assert base.read_bytes() == before
    made = img.create(base, MIB, format="qcow2", overwrite=True)
    assert made.info is not None
    assert made.info.virtual_size == MIB


def test_an_image_can_be_converted_onto_itself(img: QemuImg, raw: Path, base: Path, tmp_path: Path) -> None:
    made = img.convert(base, base, output_format="qcow2", options={"cluster_size": 4096}, overwrite=True)
    assert made.info is not None
    assert made.info.cluster_size == 4096
    assert content(img, base, tmp_path) == raw.read_bytes()


def test_a_failed_convert_leaves_no_target_and_the_old_one(img: QemuImg, raw: Path, tmp_path: Path) -> None:
    target = tmp_path / "a"
    with pytest.raises(CommandError) as caught:
        img.convert(raw, target, format="qcow2", output_format="raw")
    assert ".imgtool" not in caught.value.message
    assert set(os.listdir(tmp_path)) == {"source.raw"}
    write(target, b"old")
    with pytest.raises(CommandError):
        img.convert(raw, target, format="raw", output_format="qcow2", options={"nonsense": 1}, overwrite=True)
    assert target.read_bytes() == b"old"
    assert set(os.listdir(tmp_path)) == {"a", "source.raw"}


def test_every_option_of_convert_at_once(img: QemuImg, raw: Path, tmp_path: Path) -> None:
    img.create(tmp_path / "a", 2 * MIB, format="qcow2")
    img.convert(
        raw,
        tmp_path / "a",
        format="raw",
        output_format="qcow2",
        skip_creation=True,
        target_is_zero=True,
        sparse_size=65536,
        num_coroutines=4,
        out_of_order=True,
        rate_limit=100 * MIB,
        cache="writethrough",
        source_cache="writeback",
        force_share=True,
        salvage=True,
    )
    assert content(img, tmp_path / "a", tmp_path) == raw.read_bytes()


def test_several_images_are_put_end_to_end(img: QemuImg, raw: Path, tmp_path: Path) -> None:
    second = write(tmp_path / "second.raw", disk(2))
    made = img.convert([raw, second], tmp_path / "a", format="raw", output_format="qcow2")
    assert made.info is not None
    assert made.info.virtual_size == 4 * MIB
    assert content(img, tmp_path / "a", tmp_path) == raw.read_bytes() + second.read_bytes()


def test_an_existing_target_can_be_written_in_place(img: QemuImg, raw: Path, tmp_path: Path) -> None:
    target = write(tmp_path / "device", b"\xff" * (2 * MIB))
    identity = target.stat().st_ino
    img.convert(raw, target, format="raw", output_format="raw", skip_creation=True)
    assert target.read_bytes() == raw.read_bytes()
    assert target.stat().st_ino == identity


def test_an_image_in_use_can_be_looked_at_and_not_touched(img: QemuImg, images: Images) -> None:
    path = images.base("a.qcow2")
    copy = images / "copy"
    with images.opened(path) as pid:
        assert img.info(path).virtual_size == MIB
        assert img.snapshot_list(path) == []
        for attempt in (
            lambda: img.check(path),
            lambda: img.check(path, repair="leaks"),
            lambda: img.info(path, force_share=False),
            lambda: img.map(path),
            lambda: img.measure(path, output_format="raw"),
            lambda: img.compare(path, path),
            lambda: img.convert(path, copy, output_format="raw"),
            lambda: img.resize(path, "+1M"),
            lambda: img.snapshot_create(path, "s"),
            lambda: img.amend(path, {"compat": "0.10"}),
            lambda: img.bitmap(path, "b", ["add"]),
            lambda: img.rebase(path, backing=None),
            lambda: img.create(path, MIB, format="qcow2", overwrite=True),
            lambda: img.convert(images / "a.qcow2", path, output_format="qcow2", overwrite=True, force_share=True),
            lambda: img.convert(images.base("b.qcow2"), path, output_format="qcow2", skip_creation=True),
        ):
            with pytest.raises(ImageInUseError) as caught:
                attempt()
            assert caught.value.path == str(path)
            assert str(pid) in caught.value.message
        assert not copy.exists()
        img.convert(path, copy, output_format="raw", force_share=True)
    assert img.check(path).status == "clean"
    assert img.info(path).virtual_size == MIB


def test_an_image_open_for_reading_can_be_read_and_not_changed(img: QemuImg, images: Images) -> None:
    path = images.base("a.qcow2")
    with images.opened(path, "-r"):
        assert img.check(path).status == "clean"
        with pytest.raises(ImageInUseError):
            img.resize(path, "+1M")


@pytest.mark.parametrize("length", [0, 3, 50])
def test_a_truncated_image_is_one_clear_error(img: QemuImg, base: Path, length: int) -> None:
    os.truncate(base, length)
    with pytest.raises(CommandError) as caught:
        img.info(base, format="qcow2")
    assert caught.value.path == str(base)
    assert "\n" not in caught.value.message
    assert (tmp := caught.value.hint) is None or "\n" not in tmp


def test_what_is_no_image_never_reaches_a_program(tmp_path: Path) -> None:
    class NoProgram:
        runner = None

        def find(self, name: str) -> str:
            return name

    img = QemuImg(NoProgram())  # type: ignore[arg-type]
    os.mkfifo(tmp_path / "fifo")
    for path, error in (
        (tmp_path / "gone", ImageNotFoundError),
        (tmp_path, ImageUnreadableError),
        (tmp_path / "fifo", ImageUnreadableError),
    ):
        for attempt in (
            lambda path=path: img.info(path),
            lambda path=path: img.check(path),
            lambda path=path: img.convert(path, tmp_path / "a", output_format="raw"),
            lambda path=path: img.commit(path),
            lambda path=path: img.snapshot_list(path),
            lambda path=path: img.snapshot_create(path, "s"),
            lambda path=path: img.rebase(path, backing=None),
            lambda path=path: img.resize(path, 1),
            lambda path=path: img.compare(path, path),
            lambda path=path: img.map(path),
            lambda path=path: img.measure(path, output_format="raw"),
            lambda path=path: img.amend(path, {"a": 1}),
            lambda path=path: img.bitmap(path, "b", ["add"]),
        ):
            with pytest.raises(error) as caught:
                attempt()
            assert caught.value.path == str(path)
    assert set(os.listdir(tmp_path)) == {"fifo"}


def test_a_result_carries_the_callers_path_when_it_is_no_utf8(img: QemuImg, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff\n")
    made = img.create(path, MIB, format="vmdk")
    assert made.info is not None
    assert (made.path, made.info.filename, made.written) == (str(path), str(path), (str(path),))
    assert made.info.vmdk is not None
    assert [extent.filename for extent in made.info.vmdk.extents] == [str(path)]
    assert all(child.info.filename == str(path) for child in made.info.children or ())
    assert img.check(path).path == str(path)
    with pytest.raises(CommandError) as caught:
        img.info(path, format="qcow2")
    assert caught.value.path == str(path)
    assert printable(str(path)) in printable(caught.value.path or "")
