"""Where the policy comes from when a caller names none. Apart from `imgtool.image.policy`, so that setting it does
not import what only looking at an image needs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imgtool.image.policy import Policy

source: Callable[[], Policy] | None = None
"""Asked each time; None for the strict policy."""


@contextlib.contextmanager
def deciding(given: Callable[[], Policy]) -> Iterator[None]:
    """Within, what `given` returns is the policy in force, for the whole process."""
    global source
    before = source
    source = given
    try:
        yield
    finally:
        source = before
