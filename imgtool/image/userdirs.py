"""Where imgtool keeps what is the user's: settings, caches, state, data.

On Linux these are the folders of the XDG Base Directory Specification. platformdirs knows them too, as it knows those
of other systems, but takes as long to import as qemu-img takes to answer.
"""

from __future__ import annotations

import os
import sys
from typing import Literal

Kind = Literal["config", "cache", "state", "data"]

_HOMES: dict[Kind, str] = {
    "config": "~/.config",
    "cache": "~/.cache",
    "state": "~/.local/state",
    "data": "~/.local/share",
}


def user_dir(kind: Kind) -> str:
    """imgtool's own folder of this kind. It may not be there yet."""
    if sys.platform.startswith("linux"):
        base = os.environ.get(f"XDG_{kind.upper()}_HOME", "")
        if not os.path.isabs(base):  # the specification has relative paths ignored
            base = os.path.expanduser(_HOMES[kind])
        return os.path.join(base, "imgtool")
    from platformdirs import PlatformDirs

    return str(getattr(PlatformDirs("imgtool", appauthor=False), f"user_{kind}_dir"))


def temporary_dir() -> str:
    """Where short-lived files go: TMPDIR, where that is a folder to write in, else /tmp. tempfile knows, too, but
    brings shutil and random along."""
    place = os.environ.get("TMPDIR", "")
    return place if os.path.isabs(place) and os.access(place, os.W_OK | os.X_OK) else "/tmp"
