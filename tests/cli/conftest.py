"""Running the command as its users do: a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest


class Result(NamedTuple):
    status: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        """stdout as the one JSON document it must be."""
        return json.loads(self.stdout)

    @property
    def error(self) -> Any:
        """The error object on stderr of a run with `--output json`."""
        return json.loads(self.stderr)["error"]


class Imgtool(Protocol):
    def __call__(self, *words: str | bytes | Path, cwd: Path | None = None, **env: str) -> Result: ...


@pytest.fixture
def imgtool(tmp_path: Path) -> Imgtool:
    """`imgtool(*words)` runs the command in `tmp_path` (or `cwd`) and returns its status, stdout and stderr."""

    def run(*words: str | bytes | Path, cwd: Path | None = None, **env: str) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "imgtool", *words],
            cwd=cwd or tmp_path,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
            check=False,
        )
        return Result(
            done.returncode,
            done.stdout.decode(errors="surrogateescape"),
            done.stderr.decode(errors="surrogateescape"),
        )

    return run
