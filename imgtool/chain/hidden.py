"""Hidden files that imgtool left among the images, by interrupted changes and killed runs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator

from imgtool.chain.findings import Finding, finding
from imgtool.image.names import HIDDEN, printable

JOURNAL = ".journal"
"""How the name of a journal of `imgtool.operations.transaction` ends."""

_LOCK = ".lock"
_OLD = 3600
"""Seconds after which something without a lock file that could be held belongs to no run any more."""

KEPT = f"{HIDDEN}quarantine"
"""Where `chain collect` puts images; no leftover."""


def hidden_findings(paths: Iterable[str]) -> Iterator[tuple[str, Finding]]:
    """(path, finding) for each of the hidden files `paths` that a process which is gone left behind."""
    known = set(paths)
    busy = {_mark(path) for path in known if path.endswith((JOURNAL, _LOCK)) and _is_locked(path)}
    foreign = {_mark(path) for path in known if path.endswith(JOURNAL) and is_foreign(path)}
    unfinished = {_mark(path) for path in known if path.endswith(JOURNAL)} - foreign
    given_up = {_mark(path) for path in known if path.endswith(_LOCK)} - busy | foreign
    for path in sorted(known):
        name = os.path.basename(path)
        if name == KEPT or _mark(path) in busy or not os.path.lexists(path):
            continue
        if path.endswith(JOURNAL):
            if _mark(path) in foreign:
                text = (
                    f"{printable(name)} is of a change that was broken off in a directory of which this is a copy, "
                    "or before its file system gave the files other numbers: it is not finished, and every image "
                    "reads as before it or as after"
                )
                yield path, finding("leftover", text)
            elif _is_decided(path):
                text = "a change of these images was broken off; the next run finishes it"
                yield path, finding("unfinished-change", text)
            else:
                yield (
                    path,
                    finding("leftover", f"{printable(name)} is of a run that was killed before it changed anything"),
                )
        elif _mark(path) not in unfinished and (_mark(path) in given_up or not _is_fresh(path)):
            yield path, finding("leftover", f"{printable(name)} was left by a run that was killed")


def _mark(path: str) -> str:
    """What the hidden files of one run in one directory share: `.imgtool-MARK.lock`, `.imgtool-MARK-0.tmp`."""
    folder, name = os.path.split(path)
    return os.path.join(folder, name.removeprefix(HIDDEN).partition(".")[0].partition("-")[0])


def _is_locked(path: str) -> bool:
    import fcntl

    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def _is_decided(path: str) -> bool:
    try:
        with open(path, "rb") as lines:
            return any(line.startswith(b'{"steps"') and line.endswith(b"\n") for line in lines)
    except OSError:
        return False


def is_foreign(path: str) -> bool:
    """Whether the journal names another inode than its own, so that `imgtool.operations.journal` does not know it."""
    import json

    try:
        with open(path, "rb") as lines:
            made = json.loads(lines.readline(4096))["inode"]
            return bool(made != os.fstat(lines.fileno()).st_ino)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _is_fresh(path: str) -> bool:
    try:
        status = os.lstat(path)
    except OSError:
        return True
    return time.time() - status.st_mtime < _OLD
