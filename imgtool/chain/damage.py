"""What a qcow2 tells about its own state: marks of damage, and an end that is missing."""

from __future__ import annotations

import os

from imgtool.chain.findings import finding
from imgtool.chain.graph import Image
from imgtool.chain.truncation import is_truncated
from imgtool.image.header import Header, Qcow2Details
from imgtool.image.names import printable
from imgtool.image.source import size_of

_KNOWN = frozenset(
    (
        *("dirty", "corrupt", "data-file", "compression-type", "extended-l2"),
        *("lazy-refcounts", "bitmaps", "data-file-raw"),
    )
)


def tell_damage(image: Image, fd: int, header: Header, status: os.stat_result) -> None:
    """Notes it on `image`, whose file is open at `fd`: to be handed to a scan."""
    details = header.details
    if not isinstance(details, Qcow2Details):
        return
    if details.incompatible:
        _tell_marks(image, details)
    size = status.st_size or size_of(fd)
    if is_truncated(fd, details, size):
        image.add(finding("truncated", f"it ends after {size} bytes, and uses clusters beyond"))


def _tell_marks(image: Image, details: Qcow2Details) -> None:
    if details.corrupt:
        image.add(finding("corrupt", "it is marked as damaged"))
    if details.dirty and image.in_use != "write":  # whoever writes it closes it, too
        image.add(finding("dirty", "it was not closed: its reference counts may be wrong"))
    if details.unknown_incompatible:
        names = [name for name in details.features if name not in _KNOWN]
        image.add(finding("unknown-feature", f"it needs {', '.join(map(printable, names))}, unknown to QEMU"))
