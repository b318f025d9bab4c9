"""Where the policy comes from when a caller names none. Apart from `imgtool.image.policy`, so that setting it does
not import what only looking at an image needs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imgtool.image.policy import Policy

Source = Callable[[], "Policy"]

_source: ContextVar[Source | None] = ContextVar("imgtool.policy", default=None)


def source() -> Source | None:
    """Asked each time for the policy in force here; None for the strict one."""
    return _source.get()


def adopt(given: Source | None) -> None:
    """Makes it that of the current thread, which imgtool has started for one where it is `source`."""
    _source.set(given)


@contextlib.contextmanager
def deciding(given: Source | None) -> Iterator[None]:
    """Inside the `with` block, what `given` returns is the policy in force: in this thread (or task), and in those
    that imgtool itself starts for it, but in no other of the process."""
    before = _source.get()
    _source.set(given)
    try:
        yield
    finally:
        _source.set(before)
