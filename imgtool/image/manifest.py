"""What lies beside an image that a recipe made: `NAME.manifest.json`, as far as others than the build read it. The
whole of it is `imgtool.build.result.ImageManifest`."""

from __future__ import annotations

import os

import msgspec

SUFFIX = ".manifest.json"
"""What its name ends in, behind that of the image."""

_LARGEST = 16 << 20


class Provenance(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """Where an image comes from."""

    size: int
    """Bytes of the image's file."""
    content: str
    """The digest of what a guest reads of it."""
    recipe_sha256: str
    """Of the recipe's text, in hex."""
    labels: dict[str, str] = {}
    """What the recipe says of the image."""


def provenance_of(path: str) -> Provenance | None:
    """What the manifest beside the image says; None where there is none, or that of another file. Whoever uses it
    compares `content` with what the image holds."""
    try:
        with open(path + SUFFIX, "rb") as file:
            found = msgspec.json.decode(file.read(_LARGEST), type=Provenance)
        return found if found.size == os.stat(path).st_size else None
    except (OSError, msgspec.MsgspecError):
        return None
