"""That a file is on its way to the disk early changes nothing but when it gets there."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from imgtool.qemu.writeback import written_early


def test_what_is_written_meanwhile_is_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file, written_early(str(path)):
        for number in range(32):
            file.write(bytes([number]) * 65536)
            file.flush()
            time.sleep(0.005)
    assert path.read_bytes() == b"".join(bytes([number]) * 65536 for number in range(32))


@pytest.mark.parametrize("name", ["missing", "folder"])
def test_that_there_is_no_such_file_is_no_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with written_early(str(tmp_path / name)):
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
