from __future__ import annotations

import os
from pathlib import Path

import pytest

from imgtool.errors import ProgramError
from imgtool.qemu.learned import binary_identity, place


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "qemu"
    path.write_bytes(b"one")
    return path


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


def replaced(program: Path) -> None:
    """Another binary at the same path, of the same size and time."""
    other = program.with_name("new")
    other.write_bytes(b"two")
    os.utime(other, ns=(program.stat().st_atime_ns, program.stat().st_mtime_ns))
    other.replace(program)


def test_what_was_kept_is_recalled(program: Path, cache: str) -> None:
    place("numbers", str(program), format=1, cache_dir=cache).keep((1, 2))
    assert place("numbers", str(program), format=1, cache_dir=cache).recall(tuple[int, int]) == (1, 2)


@pytest.mark.parametrize(("format", "when"), [(2, ""), (1, "another boot")])
def test_what_was_true_of_something_else_is_not(format: int, when: str, program: Path, cache: str) -> None:
    place("numbers", str(program), format=1, cache_dir=cache).keep((1, 2))
    assert place("numbers", str(program), format=format, when=when, cache_dir=cache).recall(tuple[int, int]) is None


def test_a_binary_written_in_place_is_not_known_and_takes_the_place_of_the_former(program: Path, cache: str) -> None:
    place("numbers", str(program), format=1, cache_dir=cache).keep((1, 2))
    program.write_bytes(b"another")
    now = place("numbers", str(program), format=1, cache_dir=cache)
    assert now.recall(tuple[int, int]) is None
    now.keep((3, 4))
    assert now.recall(tuple[int, int]) == (3, 4)
    assert len(list(Path(cache).iterdir())) == 1


def test_a_value_of_another_shape_is_not_known(program: Path, cache: str) -> None:
    kept = place("numbers", str(program), format=1, cache_dir=cache)
    kept.keep("a word")
    assert kept.recall(tuple[int, int]) is None


def test_another_binary_at_the_same_path_is_another_identity(program: Path) -> None:
    first = binary_identity(str(program))
    replaced(program)
    assert binary_identity(str(program)) != first


def test_a_program_whose_name_is_no_utf8_is_known_like_any_other(tmp_path: Path, cache: str) -> None:
    program = tmp_path / os.fsdecode(b"qemu-\xff")
    program.write_bytes(b"")
    place("numbers", str(program), format=1, cache_dir=cache).keep((1, 2))
    assert place("numbers", str(program), format=1, cache_dir=cache).recall(tuple[int, int]) == (1, 2)


def test_a_program_that_is_not_there_is_a_program_error(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="No such file"):
        place("numbers", str(tmp_path / "none"), format=1)
