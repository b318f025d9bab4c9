"""A host of its own for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.machine.nets.lab import Lab, made_lab


@pytest.fixture
def lab() -> Iterator[Lab]:
    with made_lab() as lab:
        yield lab


@pytest.fixture
def lan(lab: Lab) -> Lab:
    """A host that is on a LAN by `nic0`."""
    lab.add_lan()
    return lab
