"""Where programs are looked for. As shutil.which, whose module costs a tenth of what `imgtool info` takes."""

from __future__ import annotations

import os
from collections.abc import Sequence


def which(name: str, *, besides: Sequence[str] = ()) -> str | None:
    """The executable `name`, looked for on PATH and in the folders `besides`, unless it is a path."""
    return next(
        (place for place in places(name, besides) if os.path.isfile(place) and os.access(place, os.X_OK)), None
    )


def places(name: str, besides: Sequence[str] = ()) -> list[str]:
    """Where `name` may be, the first place first."""
    return [name] if "/" in name else [os.path.join(folder, name) for folder in (*os.get_exec_path(), *besides)]
