from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgtool.image.whole import write_whole


@pytest.fixture
def little_room() -> Iterator[None]:
    """No file may be larger than 16 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_and_nothing_lies_beside_it(tmp_path: Path, durable: bool) -> None:
    place = tmp_path / ("n" * 255)
    for content in (b"one", b"another"):
        write_whole(str(place), content, durable=durable)
        assert place.read_bytes() == content
    assert os.listdir(tmp_path) == [place.name]


def test_a_file_that_has_no_room_leaves_the_old_one_and_no_half(tmp_path: Path, little_room: None) -> None:
    place = tmp_path / "a"
    write_whole(str(place), b"old")
    with pytest.raises(OSError, match="File too large"):
        write_whole(str(place), bytes(17))
    assert place.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]
