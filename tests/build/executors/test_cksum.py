from __future__ import annotations

import random
import subprocess

import pytest

from imgtool.build.executors.cksum import Cksum, cksum


@pytest.mark.parametrize("length", [0, 1, 255, 256, 65536, 70001])
def test_it_is_the_programs(length: int) -> None:
    data = random.Random(length).randbytes(length)
    said = subprocess.run(["cksum"], input=data, stdout=subprocess.PIPE, check=True).stdout
    assert cksum(data) == int(said.split()[0])


def test_data_may_come_in_pieces() -> None:
    summed = Cksum()
    for piece in (b"a", b"", b"bc"):
        summed.update(piece)
    assert summed.value() == cksum(b"abc")
