"""Looking for a secret where others could read it, while a build runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_EVERY = 0.05
_SMALL = 1 << 20
"""Larger files are disks, which are read when the build is done."""


class Watch:
    """Looks every 50 ms at the command lines and environments of all processes but this one, and at the small files
    below `folders`. `seen` are the places where the secret was; `looks` counts."""

    def __init__(self, secret: str, folders: Sequence[Path], *, but_environment_of: str = "") -> None:
        """`but_environment_of`: a word on the command line of a process that was given the secret there."""
        self.seen: set[str] = set()
        self.looks = 0
        self._secret = secret.encode()
        self._folders = folders
        self._given = but_environment_of.encode()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(_EVERY):
            for place in Path("/proc").glob("[0-9]*"):
                if int(place.name) == os.getpid():
                    continue
                words = _content(place / "cmdline")
                if self._secret in words:
                    self.seen.add(f"the command line {words!r}")
                given = self._given and self._given in words.split(b"\0")
                if not given and self._secret in _content(place / "environ"):
                    self.seen.add(f"the environment of {words!r}")
            for path in self._files():
                if self._secret in _content(path):
                    self.seen.add(str(path))
            self.looks += 1

    def _files(self) -> Iterator[Path]:
        for top in self._folders:
            for folder, _, names in os.walk(top):
                for path in (Path(folder, name) for name in names):
                    try:
                        if path.is_file() and path.stat().st_size <= _SMALL:
                            yield path
                    except OSError:
                        continue  # it is gone


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
