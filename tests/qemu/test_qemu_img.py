"""Every wrapper that reads against the qemu-img at hand, on every format it can make, and what all wrappers share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imgtool.errors import (
    ImageFormatError,
    ImageInUseError,
    ImageNotFoundError,
    ImageUnreadableError,
)
from imgtool.image.names import printable
from imgtool.qemu.img_argv import OptionValue
from imgtool.qemu.qemu_img import QemuImg
from tests.conftest import Images
from tests.qemu.disks import ALL_FORMATS, CHECKED, FORMATS, MIB, content, patiently, write

pytestmark = pytest.mark.matrix


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
    with pytest.raises(ImageFormatError) as caught:
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
    with pytest.raises(ImageFormatError) as caught:
        img.info(path, format="qcow2")
    assert caught.value.path == str(path)
    assert printable(str(path)) in printable(caught.value.path or "")
