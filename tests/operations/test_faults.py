"""A part of the fault sweep, chosen by a seed: `make faults` tries every point. See tests/faults/harness.py."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.harness import KINDS, LostError, Operation, Shim, Trial
from tests.faults.operations import OPERATIONS

SEED = 4
FAULTS = 6
"""Of each operation, beside the last points, where the change takes its place."""
LAST = 3


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shim]:
    with Shim(tmp_path_factory.mktemp("faults")) as running:
        yield running


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_nothing_is_lost(operation: Operation, shim: Shim, tmp_path: Path) -> None:
    trial = Trial(operation, tmp_path / operation.name.replace(" ", "-").replace("(", "").replace(")", ""), shim)
    chance = random.Random(f"{SEED} {operation.name}")
    points = chance.sample(range(1, trial.points + 1), min(FAULTS, trial.points))
    points += range(max(1, trial.points - 20), trial.points + 1, 20 // LAST)
    tripped = [trial.at(chance.choice(KINDS), point) for point in points]
    assert any(tripped)


def test_the_harness_sees_what_is_lost(shim: Shim, tmp_path: Path) -> None:
    operation = next(one for one in OPERATIONS if one.name == "overlay delete")
    trial = Trial(operation, tmp_path / "harness", shim)
    trial.before["4.qcow2"] = trial.after["4.qcow2"] = "another digest"
    with pytest.raises(LostError, match=r"4\.qcow2"):
        trial.at("kill", 1)
