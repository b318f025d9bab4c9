"""The errors for what another program did to an image between the look at it and its change."""

from __future__ import annotations

from imgtool.errors import ImageInUseError, ImageNotFoundError
from imgtool.image.names import printable

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
