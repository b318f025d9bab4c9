"""What the benchmark makes of its figures. That it takes them is no test's business."""

from __future__ import annotations

import pytest

from fixtures.bench.__main__ import ROWS, as_json, line
from fixtures.bench.measure import Goal, Result, pairs


@pytest.mark.parametrize(
    ("ours", "peer", "goal", "ratio", "met"),
    [
        ([2.0, 3.0, 4.0], [2.0, 2.0, 2.0], Goal(1.5), 1.5, True),
        ([2.0, 3.1, 4.0], [2.0, 2.0, 2.0], Goal(1.5), 1.55, False),
        ([1.0, 2.0], [40.0, 40.0], Goal(20, faster=True), 30, True),
        ([2.0], [39.0], Goal(20, faster=True), 19.5, False),
        ([0.1, 0.4, 9.0], [], Goal(0.5, alone=True), None, True),
        ([401.0], [], Goal(400, alone=True, kind="MiB"), None, False),
    ],
)
def test_the_ratio_is_the_median_of_pairs(
    ours: list[float], peer: list[float], goal: Goal, ratio: float | None, met: bool
) -> None:
    result = Result("what", ours, peer, "peer", goal)
    assert result.ratio == (None if ratio is None else pytest.approx(ratio))
    assert result.met == met


def test_runs_are_taken_in_turn_after_one_that_does_not_count() -> None:
    order: list[str] = []
    figures = iter(range(100))

    def run(name: str) -> float:
        order.append(name)
        return next(figures)

    ours, peer = pairs(lambda: run("A"), lambda: run("B"), 2)
    assert order == ["A", "B"] * 3
    assert (ours, peer) == ([2, 4], [3, 5])


def test_what_limits_it_stands_beside_a_goal_that_was_missed_only() -> None:
    met = Result("`x`", [0.011, 0.012, 0.015], [0.02, 0.02, 0.02], "`y`", Goal(1), "the disk")
    assert line(met) == "| `x` | 12 ms (11–15) | 20 ms: `y` | 0.60 | ≤ 1 × | met |  |"
    slow = met._replace(ours=[0.8, 1.0, 1.6], peer=[120.0, 1200.0, 1300.0])
    assert line(slow).startswith("| `x` | 1 s (0.8–1.6) | 1200 s (120–1300): `y` |")
    missed = met._replace(peer=[0.01, 0.01, 0.01])
    assert line(missed).endswith("| 1.20 | ≤ 1 × | missed | the disk |")
    assert as_json("row", missed)["met"] is False


def test_without_a_goal_there_is_no_verdict() -> None:
    result = Result("`x`", [2.0], [1.0], "`y`", None, "the disk")
    assert line(result) == "| `x` | 2 s | 1 s: `y` | 2.00 |  |  |  |"
    assert (as_json("row", result)["goal"], as_json("row", result)["met"]) == (None, None)


def test_every_row_has_a_name_to_ask_for_it() -> None:
    assert all(name == name.lower() and " " not in name for name in ROWS)
