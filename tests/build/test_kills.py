"""Three of the kills that `make kills` does fifty of."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.alpine import Alpine
from tests.build.kills import EVENTS, VICTIMS, Kill, Site, run_round

MOMENTS = random.Random(20)


@pytest.fixture
def site(tmp_path: Path, alpine: Alpine) -> Iterator[Site]:
    made = Site(tmp_path, alpine)
    yield made
    made.close()


@pytest.mark.guest
@pytest.mark.parametrize(
    "kill", [Kill(victim, MOMENTS.randint(2, EVENTS - 4), MOMENTS.uniform(0, 1)) for victim in VICTIMS], ids=VICTIMS
)
def test_after_a_kill_the_next_build_ends_with_the_right_image(site: Site, kill: Kill) -> None:
    in_time, said = run_round(site, kill)
    assert in_time, said
