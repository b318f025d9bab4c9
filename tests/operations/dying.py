"""A Python process that dies, as by kill -9, at the n-th call that changes a file or a directory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DYING = """
import os, sys
names = ("rename", "link", "unlink", "fsync", "write", "pwrite", "mkdir", "rmdir")
real = {name: getattr(os, name) for name in names}
deaths, script = int(sys.argv[1]), sys.argv[2]
del sys.argv[1:3]
count = 0
def dying(name):
    def call(*args, **kwargs):
        global count
        count += 1
        if count == deaths:
            os._exit(9)
        return real[name](*args, **kwargs)
    return call
code = compile(script, "script", "exec")
for name in names:
    setattr(os, name, dying(name))
exec(code, {"real": real})
os._exit(0)
"""


def ends_well(script: str, *words: str, at: int, cwd: Path) -> bool:
    """Runs `script` with `words` in sys.argv[1:]; False when it died at the `at`-th call."""
    argv = [sys.executable, "-c", DYING, str(at), script, *words]
    status = subprocess.run(argv, cwd=cwd, check=False).returncode
    assert status in (0, 9)
    return status == 0
