"""The versions that programs reported, cached until the binary changes: starting one to ask takes as long as
everything else that `imgtool --version` does.

One line per program, in the user's cache folder: identity, tab, what it reported. Imports next to nothing, for the
same reason.
"""

from __future__ import annotations

import contextlib
import os

from imgtool.image.userdirs import user_dir
from imgtool.image.whole import write_whole

_MOST = 1 << 16
"""Bytes that are read."""
_KEPT = 50
"""Programs that are remembered."""


def known(program: str) -> str | None:
    """The first line that `program --version` printed; None where that is to be asked."""
    identity = _identity(program)
    if identity is None:
        return None
    return next((said for who, said in _lines() if who == identity), None)


def keep(program: str, said: str) -> None:
    """Remembers that `program --version` printed the line `said`. Failing to write it is no error."""
    identity = _identity(program)
    if identity is None or "\n" in said:
        return
    others = [line for line in _lines() if line[0] != identity]
    text = "".join(f"{who}\t{what}\n" for who, what in [(identity, said), *others[: _KEPT - 1]])
    place = path()
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(place), mode=0o700, exist_ok=True)
        write_whole(place, text.encode(errors="surrogateescape"))


def path() -> str:
    """Where it is kept."""
    return os.path.join(user_dir("cache"), "qemu", "versions")


def _identity(program: str) -> str | None:
    """What changes whenever another binary stands at the path. None for a script, whose program may change while it
    does not."""
    try:
        with open(program, "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if file.read(4) != b"\x7fELF":
                return None
    except OSError:
        return None
    numbers = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    identity = " ".join([*map(str, numbers), program])
    return None if set(identity) & {"\n", "\t", "\r"} else identity


def _lines() -> list[tuple[str, str]]:
    try:
        with open(path(), "rb") as file:
            text = file.read(_MOST).decode("utf-8", "surrogateescape")
    except OSError:
        return []
    return [(who, said) for who, tab, said in (line.partition("\t") for line in text.split("\n")) if tab]
