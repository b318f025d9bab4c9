"""imgtool, loaded once and forked for each command: `python -m tests.faults.server STATE`, run under the shim.

Reads a request a line on stdin, `{"words", "cwd", "at", "error", "sticky"}`, runs the command in a process of its own
with the fault that the request says, and answers `{"status", "stderr"}`. A fresh interpreter for each of thousands of
commands would take longer than the commands.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import struct
import sys
import tempfile
from typing import Any

STATE = struct.Struct("QQiiii")
"""`struct state` of shim.c: count, at, error, sticky, root, tripped."""


def load() -> None:
    """Imports what any command would."""
    for folder in ("cli", "operations", "chain", "qemu", "image"):
        package = importlib.import_module(f"imgtool.{folder}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)


def serve(state: str) -> None:
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile() as errors:
            pid = os.fork()
            if pid == 0:
                _run(request, state, errors.fileno())
            _, status = os.waitpid(pid, 0)
            errors.seek(0)
            text = errors.read().decode(errors="replace")
        print(json.dumps({"status": os.waitstatus_to_exitcode(status), "stderr": text}), flush=True)


def _run(request: dict[str, Any], state: str, errors: int) -> None:
    """In the child: becomes the command."""
    status = 70
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for fd, source in ((0, nothing), (1, nothing), (2, errors)):
            os.dup2(source, fd)
        os.chdir(request["cwd"])
        from imgtool.cli.main import main

        with open(state, "r+b") as file:
            file.write(STATE.pack(0, request["at"], request["error"], request["sticky"], os.getpid(), 0))
        try:
            main(request["words"])
        except SystemExit as done:
            status = int(done.code or 0)
        sys.stderr.flush()
    finally:
        os._exit(status)


if __name__ == "__main__":
    load()
    print("ready", flush=True)
    serve(sys.argv[1])
