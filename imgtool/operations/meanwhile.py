"""What another program did to an image between the look at it and its change: found out, and the errors for it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from imgtool.errors import ImageInUseError, ImageNotFoundError
from imgtool.image.names import printable
from imgtool.operations.alone import alone_in

_AGAIN = "nothing was changed here; run the command again"


def changed(path: str) -> ImageInUseError:
    """It is not what it was."""
    return ImageInUseError(
        f"{printable(path)} was changed by another program in the meantime", hint=_AGAIN, path=path
    )


def gone(path: str) -> ImageNotFoundError:
    """It was there, and is not there any more."""
    return ImageNotFoundError(
        f"{printable(path)} was moved or removed by another program in the meantime", hint=_AGAIN, path=path
    )


def stopped_at(path: str) -> ImageInUseError:
    """It is not what it was, and the change had begun."""
    return ImageInUseError(
        f"the change stopped half-way: {printable(path)} was changed or opened by another program meanwhile",
        hint="every image reads as before it or as after; run the command again",
        path=path,
    )


def stood_on(path: str) -> ImageInUseError:
    """Something stands on it that did not."""
    return ImageInUseError(f"another program made an overlay of {printable(path)} meanwhile", hint=_AGAIN, path=path)


class Seen:
    """A file as it was when it was looked at, on which a new image is to stand."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._inode = os.stat(path).st_ino

    def confirm(self) -> None:
        """ImageNotFoundError or ImageInUseError when it is not that file any more: put away, or replaced. To be
        called when no other imgtool can change it until the new image is there, and can be seen."""
        try:
            status = os.stat(self.path)
        except OSError as error:
            raise gone(self.path) from error
        if status.st_ino != self._inode:
            raise changed(self.path)

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """Inside the `with` block, the image is confirmed, and no other imgtool changes it."""
        with alone_in([os.path.dirname(os.path.realpath(self.path))]):
            self.confirm()
            yield
