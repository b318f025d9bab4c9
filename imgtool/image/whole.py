"""Small files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os


def write_whole(path: str, content: bytes, *, durable: bool = False) -> None:
    """`content` becomes the file at `path` in one step, and is on disk then where it is to be `durable`. OSError when
    it cannot be; the file is as it was then, and nothing lies beside it."""
    draft = os.path.join(os.path.dirname(path), f".imgtool-{os.urandom(6).hex()}")
    try:
        with open(draft, "xb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise
