"""Looking at images while another imgtool puts a change into place.

Each step of a change leaves every image as before or as after, but between two steps a store shows what a moment
later is no defect: an overlay that does not remember its new parent yet, a file that still has both its names. So
whoever only wants to see looks again when something seems wrong where a change is going on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterable
from time import monotonic, sleep, time_ns
from typing import TypeVar

from imgtool.chain.graph import Graph

T = TypeVar("T")

_PATIENCE = 10.0
"""Seconds to wait for a change that is going on, which mostly takes milliseconds."""

_PAUSE = 0.05
_LOOKS = 3
"""How often to look where names come and go all the time, without a change of imgtool that could be waited for."""

_CLOCK_NS = 20_000_000
"""A file's time may lag so far behind the clock."""


def steadily(
    look: Callable[[], T], graph_of: Callable[[T], Graph], *, hidden: Callable[[T], Iterable[str]] = lambda _: ()
) -> T:
    """What `look` sees, at a moment at which no change is going on where something seems wrong: in the graph, or with
    files of imgtool that are `hidden` there. After ten seconds whatever it sees."""
    deadline = monotonic() + _PATIENCE
    looks = 0
    while True:
        since = time_ns() - _CLOCK_NS
        seen = look()
        looks += 1
        doubtful = _doubtful(graph_of(seen)) | {os.path.dirname(path) for path in hidden(seen)}
        if not doubtful or monotonic() > deadline:
            return seen
        if not any(map(is_changing, doubtful)) and (looks == _LOOKS or not _touched(doubtful, since)):
            return seen
        sleep(_PAUSE)


def is_changing(directory: str) -> bool:
    """Whether another imgtool is putting a change into the directory just now: it holds flock(2) on it."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no locks on this file system, or not on directories
        return False
    finally:
        os.close(fd)
    return False


def _doubtful(graph: Graph) -> set[str]:
    """The directories of images with which something seems wrong, and of what these stand on. None in which no image
    was read: an image leads nobody into a directory that only it names."""
    found: set[str] = set()
    for image in graph.images:
        if any(one.severity != "info" or one.code == "parent-copied" for one in image.findings):
            found.update(os.path.dirname(path) for path in (image.path, image.parent or "") if path.startswith("/"))
    return found and found & {os.path.dirname(image.path) for image in graph.images if image.virtual_size is not None}


def _touched(directories: Iterable[str], since: int) -> bool:
    """Whether names came or went in one of the directories after `since`, in nanoseconds since 1970."""
    for directory in directories:
        with contextlib.suppress(OSError):
            if os.stat(directory).st_mtime_ns >= since:
                return True
    return False
