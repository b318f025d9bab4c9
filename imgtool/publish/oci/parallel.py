"""Several transfers at once."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from imgtool.image import policy_source

T = TypeVar("T")


class Meter:
    """Adds up bytes from several threads, and says the percentage."""

    def __init__(self, total: int, show: Callable[[float], None] | None) -> None:
        self._total = total
        self._show = show
        self._done = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """`count` may be negative: what was thrown away is to be done again."""
        if self._show is None:
            return
        with self._lock:
            self._done += count
            if self._total:
                self._show(min(100.0, 100 * self._done / self._total))


def each(work: Callable[[T], None], items: Sequence[T], *, jobs: int, halted: threading.Event) -> None:
    """Does `work` for each of `items`, `jobs` at a time. The first error is raised, and stops the
    others by `halted`.

    All have ended when this returns or raises one of their errors. The threads are daemons: whoever interrupts
    imgtool does not wait for a network. Whatever they do may be stopped at any moment.
    """
    if len(items) <= 1 or jobs <= 1:
        for item in items:
            work(item)
        return
    waiting: queue.SimpleQueue[T] = queue.SimpleQueue()
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    for item in items:
        waiting.put(item)
    threads = min(jobs, len(items))
    policy = policy_source.source()
    for _ in range(threads):
        threading.Thread(target=_worker, args=(work, waiting, ended, halted, policy), daemon=True).start()
    try:
        results = [ended.get() for _ in range(threads)]
    except BaseException:
        halted.set()
        raise
    for error in results:
        if error is not None:
            raise error


def _worker(
    work: Callable[[T], None],
    waiting: queue.SimpleQueue[T],
    ended: queue.SimpleQueue[BaseException | None],
    halted: threading.Event,
    policy: policy_source.Source | None,
) -> None:
    policy_source.adopt(policy)
    try:
        while not halted.is_set():
            work(waiting.get_nowait())
        ended.put(None)
    except queue.Empty:
        ended.put(None)
    except BaseException as error:
        halted.set()
        ended.put(error)
