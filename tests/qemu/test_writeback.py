"""That a file is on its way to the disk early changes nothing but when it gets there."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from imgtool import QemuImg
from imgtool.qemu.img_argv import ImageOpts
from imgtool.qemu.img_make import cache_for
from imgtool.qemu.writeback import written_early

KIB, MIB = 1 << 10, 1 << 20


@pytest.mark.parametrize("keep", [True, False])
def test_what_is_written_meanwhile_is_as_it_was_written(tmp_path: Path, keep: bool) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file, written_early(str(path), keep=keep):
        for number in range(32):
            file.write(bytes([number]) * 65536)
            file.flush()
            time.sleep(0.005)
    assert path.read_bytes() == b"".join(bytes([number]) * 65536 for number in range(32))


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("name", ["missing", "folder"])
def test_that_there_is_no_such_file_is_no_error(tmp_path: Path, name: str, keep: bool) -> None:
    (tmp_path / "folder").mkdir()
    with written_early(str(tmp_path / name), keep=keep):
        time.sleep(0.1)


def test_no_thread_is_left_whatever_happens(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    before = threading.active_count()

    def fail() -> None:
        with written_early(str(path)):
            time.sleep(0.05)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert threading.active_count() == before


def test_only_what_is_written_in_place_is_flushed_by_qemu_img(tmp_path: Path) -> None:
    """A new file gets its name after it was brought to disk."""
    target, data = tmp_path / "new", tmp_path / "data"
    assert cache_for(target, {}) == "unsafe"
    assert cache_for(target, {"data_file": str(data)}) == "unsafe"
    assert cache_for(target, {"data_file": str(data), "keep_data_file": "on"}) == "writeback"
    assert cache_for(target, {}, in_place=True) == "writeback"
    assert cache_for(ImageOpts(f"driver=raw,file.filename={target}"), {}) == "writeback"


@pytest.mark.parametrize("format", ["qcow2", "raw", "vmdk", "vdi"])
def test_the_bytes_are_those_of_an_image_that_is_flushed(tmp_path: Path, format: str) -> None:
    """A disk that ends within a block keeps its size, too."""
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as file:
        for at in range(0, 16, 3):
            file.seek(at * MIB)
            file.write(bytes([at + 1]) * (MIB + 3 * KIB))
        file.truncate(20 * MIB + 512)
    names = [tmp_path / "a" / "disk.img", tmp_path / "b" / "disk.img"]
    for name in names:
        name.parent.mkdir()
    QemuImg().convert(disk, names[0], output_format=format)
    QemuImg().convert(disk, names[1], output_format=format, cache="writeback")
    assert names[0].stat().st_size == names[1].stat().st_size
    assert QemuImg().compare(names[0], names[1], format=format, other_format=format, strict=True).identical
    if format in ("qcow2", "raw"):
        assert names[0].read_bytes() == names[1].read_bytes()
