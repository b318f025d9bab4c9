"""A part of the fault sweep, chosen by a seed: `make faults` tries every point. See tests/faults/harness.py."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.harness import KINDS, LostError, Operation, Shim, Trial
from tests.faults.operations import OPERATIONS

SEED = 4
FAULTS = 2
"""Of each operation, beside as many of its last points, where the change takes its place."""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """In memory where that can be had: no fault needs a disk, and every fsync takes its time there."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="imgtool-faults-", dir=memory) as made:
        yield Path(made)


@pytest.fixture(scope="module")
def shim(folder: Path) -> Iterator[Shim]:
    with Shim(folder) as running:
        yield running


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_nothing_is_lost(operation: Operation, shim: Shim, folder: Path) -> None:
    trial = Trial(operation, folder / operation.name, shim)
    chance = random.Random(f"{SEED} {operation.name}")
    points = chance.sample(range(1, trial.points + 1), min(FAULTS, trial.points))
    points += chance.sample(range(max(1, trial.points - 15), trial.points + 1), min(FAULTS, trial.points))
    tripped = [trial.at(chance.choice(KINDS), point) for point in points]
    assert any(tripped)


def test_the_harness_sees_what_is_lost(shim: Shim, folder: Path) -> None:
    """qemu-img's own rebase, in place and with the cache mode it takes by itself."""
    safe = next(one for one in OPERATIONS if one.name == "rebase")

    def words(store: Path) -> list[str]:
        image = f"driver=qcow2,file.driver=file,file.filename={store / 'top.qcow2'}"
        new = str(store / "new.qcow2")
        return ["rebase", "--image-opts", "--force", "-t", "writeback", "-b", new, "-F", "qcow2", image]

    operation = Operation("rebase in place", safe.build, words)
    trial = Trial(operation, folder / "in place", shim)
    lost = []
    for point in range(1, trial.points + 1):
        try:
            trial.at("kill", point)
        except LostError as error:
            lost.append(str(error))
    assert any("reads neither as before nor as after" in error for error in lost)
