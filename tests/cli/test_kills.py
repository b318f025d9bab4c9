"""Boots, and kill -9 of imgtool, of QEMU, or of both, at random moments; `make kills` is the long form."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("seed", [1, 2])
def test_kills_leave_nothing_that_the_next_command_minds(seed: int) -> None:
    words = ["--count", "4", "--seed", str(seed)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.machine.kills", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "nothing was left" in done.stdout
