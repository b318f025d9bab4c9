"""Progress on stderr: a tqdm bar on a terminal, JSON lines for programs, silence otherwise."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from imgtool.cli.context import Context, is_terminal
from imgtool.image.names import harmless

_DELAY = 0.5
"""Seconds before a bar appears: what is done sooner needs none."""


@contextmanager
def progress(context: Context, task: str) -> Iterator[Callable[[float], None] | None]:
    """A function that takes percents (0 to 100) of `task`, or None when nobody wants to see them."""
    if context.progress == "json":
        yield _json_lines(task)
    elif context.quiet or context.progress == "none" or not is_terminal():
        yield None
    else:
        from tqdm import tqdm

        with tqdm(
            total=100,
            desc=harmless(task),
            unit="%",
            delay=_DELAY,
            leave=False,
            file=sys.stderr,
            bar_format="{desc}: {percentage:5.1f}% |{bar}| {elapsed} < {remaining}",
        ) as bar:

            def show(percent: float) -> None:
                bar.update(max(0.0, percent - bar.n))

            yield show


def _json_lines(task: str) -> Callable[[float], None]:
    import json

    def show(percent: float) -> None:
        print(json.dumps({"event": "progress", "task": task, "percent": percent}), file=sys.stderr, flush=True)

    return show
