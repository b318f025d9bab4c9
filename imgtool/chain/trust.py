"""The policy for files that are only looked at, not given to QEMU: it applies there too."""

from __future__ import annotations

import os

from imgtool.chain.findings import finding
from imgtool.chain.graph import Image
from imgtool.image.names import printable
from imgtool.image.policy import Policy


def trusted(image: Image, path: str, policy: Policy) -> bool:
    """Whether `image` may refer to the file at `path`; else it gets the finding `not-trusted`."""
    if policy.allows_file(path, directory=os.path.dirname(image.path)):
        return True
    image.add(
        finding("not-trusted", f"{printable(path)} lies outside its own directory and was not looked at: see --trust")
    )
    return False
