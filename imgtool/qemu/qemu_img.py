"""qemu-img: one method per subcommand, of the same name."""

from __future__ import annotations

from imgtool.qemu.img_argv import Backing, BitmapAction, ImageOpts, Merge, SnapshotParam, Source, Verbatim
from imgtool.qemu.img_base import QUICK_LIMITS, Progress
from imgtool.qemu.img_change import Changing
from imgtool.qemu.img_make import Making
from imgtool.qemu.img_read import Reading
from imgtool.qemu.img_stage import Staging

__all__ = [
    "QUICK_LIMITS",
    "Backing",
    "BitmapAction",
    "ImageOpts",
    "Merge",
    "Progress",
    "QemuImg",
    "SnapshotParam",
    "Source",
    "Verbatim",
]


class QemuImg(Reading, Making, Changing, Staging):
    """qemu-img as typed calls.

    A `Source` is a path (of any name: it is always taken for a file or device, never for an option or protocol) or
    `ImageOpts`, QEMU's own `driver=…,file.filename=…`. A `Backing` is a path too, relative to the image, or a
    `Verbatim` reference. `format` is the image's; None lets qemu-img probe. `objects` are QEMU object definitions
    (`secret,id=s0,file=/path`).

    Every method raises ImageNotFoundError or ImageUnreadableError before a process starts when a path is missing, a
    directory, a FIFO or unreadable; ImageInUseError when another process holds the image; CommandError when qemu-img
    fails, or complains while changing something although it exits with 0; CommandTimeout at the time limit.
    """
