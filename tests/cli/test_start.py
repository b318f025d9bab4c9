"""The first tenth of a second, while imgtool itself is still being loaded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

FAKE = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit(7)\n"


@pytest.fixture(params=["typing", "click"])
def interrupting(tmp_path: Path, request: pytest.FixtureRequest) -> dict[str, str]:
    """An environment in which a Ctrl-C comes while a module is imported: the first that takes a while, and a later
    one. Who lives on ends with 7."""
    (tmp_path / f"{request.param}.py").write_text(FAKE)
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


@pytest.mark.parametrize(
    "command", [[sys.executable, "-m", "imgtool"], [str(Path(sys.executable).parent / "imgtool")]]
)
def test_a_ctrl_c_before_imgtool_can_answer_it_ends_it_without_a_traceback(
    interrupting: dict[str, str], command: list[str]
) -> None:
    done = subprocess.run([*command, "--version"], env=interrupting, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


def test_who_was_started_to_ignore_it_goes_on_ignoring_it(interrupting: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "imgtool", "--version"],
        env=interrupting,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (7, b"")
