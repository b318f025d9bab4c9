from __future__ import annotations

import os
from pathlib import Path

import pytest

from imgtool.build import memory as subject
from imgtool.build.memory import Memory
from imgtool.qemu.digest import ContentMap


def a_map(number: int) -> ContentMap:
    return ContentMap(1 << 20, {0: bytes([number]) * 32})


def test_a_map_is_found_by_its_digest(tmp_path: Path) -> None:
    Memory(str(tmp_path)).keep_map(a_map(1))
    assert Memory(str(tmp_path)).map_of(a_map(1).digest) == a_map(1)
    assert Memory(str(tmp_path)).map_of(a_map(2).digest) is None


@pytest.mark.parametrize("content", [b"", b"imgtool1\n", a_map(2).encoded()])
def test_a_map_of_another_disk_is_none(tmp_path: Path, content: bytes) -> None:
    memory = Memory(str(tmp_path))
    memory.keep_map(a_map(1))
    (kept,) = (path for path in tmp_path.rglob("*") if path.is_file())
    kept.write_bytes(content)
    assert memory.map_of(a_map(1).digest) is None


def grow_older(folder: Path) -> None:
    """Every map by a second, so that the order they were kept in shows whatever a file system's clock."""
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, ns=(0, path.stat().st_mtime_ns - 10**9))


def test_only_the_latest_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "_MOST_MAPS", 3)
    memory = Memory(str(tmp_path))
    for number in range(5):
        memory.keep_map(a_map(number))
        grow_older(tmp_path)
    assert [memory.map_of(a_map(number).digest) is not None for number in range(5)] == [
        False,
        False,
        True,
        True,
        True,
    ]


def test_one_that_is_used_is_among_the_latest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "_MOST_MAPS", 3)
    memory = Memory(str(tmp_path))
    for number in range(5):
        memory.keep_map(a_map(number))
        grow_older(tmp_path)
        assert memory.map_of(a_map(0).digest) is not None


def test_where_nothing_can_be_written_nothing_is_kept_and_nothing_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    memory = Memory(str(tmp_path / "file" / "folder"))
    memory.keep_map(a_map(1))
    assert memory.map_of(a_map(1).digest) is None
