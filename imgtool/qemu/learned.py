"""What was learned about a QEMU program by running it, kept in the user's cache folder until the program changes.

There is one file for each binary and kind of knowledge, and in it stands which state of the binary it is true of.
What cannot be read is not known, and what cannot be written is simply not kept.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any, TypeVar

import msgspec

from imgtool.errors import ProgramError
from imgtool.image.names import printable
from imgtool.image.userdirs import user_dir
from imgtool.image.whole import write_whole

T = TypeVar("T")


class _Kept(msgspec.Struct, frozen=True):
    identity: str
    value: msgspec.Raw


class Place(msgspec.Struct, frozen=True):
    """Where one thing about one program is kept, and of which state of the world it is true."""

    path: str
    identity: str

    def recall(self, type: type[T]) -> T | None:
        """What was kept; None when there is nothing, or it was true of another binary, or has another shape."""
        try:
            with open(self.path, "rb") as file:
                kept = msgspec.json.decode(file.read(), type=_Kept)
            return msgspec.json.decode(kept.value, type=type) if kept.identity == self.identity else None
        except (OSError, msgspec.MsgspecError):
            return None

    def keep(self, value: Any) -> None:
        """Writes `value` down, whole or not at all."""
        content = msgspec.json.encode(_Kept(self.identity, msgspec.Raw(msgspec.json.encode(value))))
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
            write_whole(self.path, content)


def place(kind: str, program: str, *, format: int, when: str = "", cache_dir: str | None = None) -> Place:
    """The place of what is of this `kind` about the binary at `program`. `format` is the number of the value's shape;
    `when` is what else it hangs on. `cache_dir` None is the user's cache folder. ProgramError when there is no such
    program."""
    try:
        status = os.stat(program)
        identity = f"{format}\n{when}\n{binary_identity(program)}"
    except OSError as error:
        raise ProgramError(f"{printable(program)}: {error.strerror}") from error
    folder = cache_dir or os.path.join(user_dir("cache"), "qemu")
    return Place(os.path.join(folder, f"{kind}-{status.st_dev:x}-{status.st_ino:x}.json"), identity)


def binary_identity(program: str) -> str:
    """What changes whenever another QEMU stands at `program`: path, size, time and inode, and the state of the
    folders its loadable modules lie in."""
    status = os.stat(program)
    identity = [os.path.realpath(program), status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev]
    for folder in _module_folders():
        with contextlib.suppress(OSError):
            identity += [folder, os.stat(folder).st_mtime_ns]
    return repr(identity)


def _module_folders() -> list[str]:
    """Where `/usr/lib*/qemu` and `/usr/lib/*/qemu` may be, in order."""
    beside = [f"/usr/{name}/qemu" for name in _names("/usr") if name.startswith("lib")]
    return sorted(beside + [f"/usr/lib/{name}/qemu" for name in _names("/usr/lib")])


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
