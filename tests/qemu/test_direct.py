"""Images that are written past the page cache: the same bytes, wherever they are made."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from imgtool import QemuImg
from imgtool.qemu import direct
from imgtool.qemu.direct import cache_for
from imgtool.qemu.img_argv import ImageOpts

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        for at in range(0, 16, 3):
            file.seek(at * MIB)
            file.write(bytes([at + 1]) * (MIB + 3 * KIB))
        file.truncate(20 * MIB)
    return path


@pytest.fixture(params=[True, False], ids=["direct", "cached"])
def takes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A file system that takes direct I/O, or one that does not."""
    answer: bool = request.param
    monkeypatch.setattr(direct, "_takes_direct_io", lambda _: answer)
    return answer


def test_what_is_written_past_the_cache(takes: bool, disk: Path, tmp_path: Path) -> None:
    target, best = tmp_path / "new", "none" if takes else "writeback"
    assert cache_for(target, [disk], output_format="qcow2") == best
    assert cache_for(target, [disk], output_format="raw") == best
    assert cache_for(target, [disk], output_format="vmdk") == "writeback"
    assert cache_for(target, [disk], output_format="qcow2", compressed=True) == "writeback"
    assert cache_for(target, [disk], output_format="qcow2", in_place=True) == "writeback"
    assert cache_for(target, [disk], output_format="qcow2", options={"data_file": "d"}) == "writeback"
    assert cache_for("/dev/null", [disk], output_format="qcow2") == "writeback"


def test_a_backing_file_would_be_read_past_the_cache_too(
    monkeypatch: pytest.MonkeyPatch, disk: Path, tmp_path: Path
) -> None:
    """On a file system that may not take it."""
    monkeypatch.setattr(direct, "_takes_direct_io", lambda _: True)
    target = tmp_path / "new.qcow2"
    assert cache_for(target, [disk], output_format="qcow2", backing="base.qcow2") == "writeback"


def test_where_a_symlink_leads_to_is_what_counts(monkeypatch: pytest.MonkeyPatch, disk: Path, tmp_path: Path) -> None:
    cached = tmp_path / "cached"
    cached.mkdir()
    monkeypatch.setattr(direct, "_takes_direct_io", lambda folder: folder != str(cached))
    link = tmp_path / "link.qcow2"
    link.symlink_to("cached/real.qcow2")
    (cached / "real.qcow2").touch()
    assert cache_for(link, [disk], output_format="qcow2") == "writeback"


def test_a_raw_image_whose_size_is_not_known_to_be_whole_blocks_is_not(
    monkeypatch: pytest.MonkeyPatch, disk: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(direct, "_takes_direct_io", lambda _: True)
    odd, target = tmp_path / "odd", tmp_path / "new"
    odd.write_bytes(bytes(4096 + 512))
    opts = ImageOpts(f"driver=raw,file.filename={disk}")
    assert cache_for(target, [disk, odd], output_format="raw") == "writeback"
    for unfit in (tmp_path / "missing", tmp_path, "/dev/zero"):
        assert cache_for(target, [unfit], output_format="raw") == "writeback"
    assert cache_for(target, [opts], output_format="raw") == "writeback"
    assert cache_for(target, [disk], output_format="raw", snapshot=True) == "writeback"
    assert cache_for(target, [odd, opts], output_format="qcow2") == "none"


def test_a_directory_is_asked_and_left_as_it_was(tmp_path: Path, disk: Path) -> None:
    cache = cache_for(tmp_path / "new", [disk], output_format="qcow2")
    words = ["dd", "if=/dev/zero", f"of={tmp_path / 'probe'}", "bs=4096", "count=1", "oflag=direct"]
    takes = subprocess.run(words, check=False, capture_output=True).returncode == 0
    assert takes or cache == "writeback"
    assert cache_for("/proc/new", [disk], output_format="qcow2") == "writeback"
    assert cache_for(tmp_path / "no" / "new", [disk], output_format="qcow2") == "writeback"
    assert sorted(os.listdir(tmp_path)) == ["disk.raw", "probe"]


@pytest.mark.parametrize("format", ["qcow2", "raw"])
def test_the_bytes_are_those_of_a_cached_conversion(disk: Path, tmp_path: Path, format: str) -> None:
    names = [tmp_path / f"{cache}.img" for cache in ("chosen", "writeback")]
    QemuImg().convert(disk, names[0], output_format=format)
    QemuImg().convert(disk, names[1], output_format=format, cache="writeback")
    assert names[0].read_bytes() == names[1].read_bytes()


def test_a_disk_that_ends_within_a_block_keeps_its_size(tmp_path: Path) -> None:
    odd = tmp_path / "odd.raw"
    odd.write_bytes(b"x" * (MIB + 512))
    QemuImg().convert(odd, tmp_path / "new.raw", output_format="raw")
    assert (tmp_path / "new.raw").read_bytes() == odd.read_bytes()
    made = QemuImg().convert(odd, tmp_path / "new.qcow2", output_format="qcow2")
    assert made.info is not None
    assert made.info.virtual_size == MIB + 512
