"""The result of a build, as `imgtool build` prints it and `imgtool.build_image` returns it."""

from __future__ import annotations

import msgspec


class LayerResult(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """A layer of the image, found or built."""

    name: str
    """In the recipe."""
    key: str
    """The SHA-256, in hex, of everything that went into it."""
    cached: bool
    """It was in the store already."""
    folder: str
    """The name of its folder in the store."""
    content: str
    """The digest of what a guest reads (`imgtool1:…`)."""
    seconds: float
    """It took, now or when it was made."""
    size: int
    """Bytes of its overlay's file."""
    pulled: bool = False
    """It came from the cache that machines share."""


class OutputResult(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """A finished image, found or made."""

    path: str
    """Its file."""
    format: str
    """As QEMU calls it."""
    made: bool
    """False when it was up to date."""
    manifest: str
    """The JSON file beside it that says how it was made (`imgtool schema manifest`)."""
    size: int
    """Bytes of its file."""


class Built(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The result of a build."""

    recipe: str
    """The recipe's file."""
    image: str
    """The image's name in the recipe."""
    layers: tuple[LayerResult, ...]
    """From the base upwards."""
    boots: int
    """VMs that were started, those for checks included."""
    output: str | None
    """The finished image's file, the first of several; None where none is wanted."""
    output_made: bool
    """False when it was up to date."""
    manifest: str | None
    """The JSON file beside it that says how it was made (`imgtool schema manifest`)."""
    outputs: tuple[OutputResult, ...]
    """The finished image in each format, the first included."""
    seconds: float
    """All of it took."""
