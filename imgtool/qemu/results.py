"""What QemuImg's methods return where qemu-img has no JSON of its own."""

from __future__ import annotations

from typing import Literal

import msgspec

from imgtool.image.qapi import ImageCheck, ImageInfo


class Result(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The base of the results below. Paths are absolute, as `imgtool.image.names.absolute` makes them."""

    path: str
    """The image the verb was used on; for `convert` the target."""


class Created(Result, frozen=True, kw_only=True):
    """A new image."""

    info: ImageInfo | None
    """What qemu-img says about it now; None for a target with image options, and where it was not to be asked."""
    written: tuple[str, ...]
    """Every file made: the image, and its extents or data file."""
    notes: str = ""
    """What qemu-img said although it succeeded: with `salvage`, which sectors could not be read."""


class Changed(Result, frozen=True, kw_only=True):
    """An image that was changed in place."""

    before: ImageInfo
    """What qemu-img said about it before."""
    after: ImageInfo
    """What it says now."""
    written: tuple[str, ...]
    """Every file that was written."""
    notes: str = ""
    """What qemu-img said although it succeeded: how it mended an image that had not been closed cleanly."""


class Committed(Changed, frozen=True, kw_only=True):
    """An overlay committed into its backing file. The base's part is None when the base is no local file."""

    base: str | None
    base_before: ImageInfo | None
    base_after: ImageInfo | None


class CheckResult(Result, frozen=True, kw_only=True):
    """What `check` found. `exit_status` is qemu-img's: 0 clean, 2 corrupt, 3 leaks, 63 the format has no check."""

    status: Literal["clean", "corrupt", "leaks", "unsupported"]
    exit_status: int
    report: ImageCheck | None
    """None when the format has no check."""


class CompareResult(Result, frozen=True, kw_only=True):
    """Whether the disks in `path` and `other` are the same."""

    other: str
    """The second image."""
    identical: bool
    """Whether a guest reads the same from both."""
    offset: int | None = None
    """Where they first differ, in bytes, when qemu-img says."""
    message: str = ""
    """qemu-img's own words."""
