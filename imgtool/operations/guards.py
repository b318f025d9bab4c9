"""What resizing a disk or going back to a snapshot would cost, found out before it is done."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from imgtool.chain.content import layers_of
from imgtool.chain.graph import Image
from imgtool.errors import ImageFormatError, ImgtoolError, RefusedError
from imgtool.image.names import pasted, printable
from imgtool.image.partitions import Partition, Table, read_table
from imgtool.image.snapshot_diff import written_since
from imgtool.qemu.disk import Disk
from imgtool.qemu.qemu_img import QemuImg

_EXTENDED = ("05", "0f", "85")
_GPT_BACKUP = 33 * 512
"""Bytes of the second table behind the last partition."""

_FIXED = frozenset(("bochs", "cloop", "dmg", "parallels", "qcow", "vdi", "vhdx", "vmdk", "vpc"))
"""Formats that QEMU resizes in no way; seen with 5.2, 7.2 and 10.0."""

_ONLY_GROW = frozenset(("qed",))


class Layout(NamedTuple):
    """What a disk holds, as far as can be seen from outside the guest."""

    size: int
    table: Table | None
    data_end: int
    """The first byte behind the last that is not known to be zero."""


def look_at_disk(chain: Sequence[Image], img: QemuImg) -> Layout | None:
    """What lies on the disk of `chain` (that of `imgtool.chain.walk.guard`); None where that cannot be seen: it is
    encrypted, in use, or not on this host."""
    size = chain[0].virtual_size
    if size is None:
        return None
    try:
        disk = Disk(img, layers_of(chain), size)
        table = read_table(disk.read)
    except ImgtoolError:
        return None
    end = max((extent.end for extent in disk.extents if extent.data and not extent.zero), default=0)
    return Layout(size, table, end)


def refuse_fixed(path: str, format: str | None, current: int, wanted: int) -> None:
    """RefusedError when QEMU cannot resize images of `format`, or not to fewer bytes than the `current` ones."""
    if format not in _FIXED and not (format in _ONLY_GROW and wanted < current):
        return
    what = f"resize {format} images" if format in _FIXED else f"make {format} images smaller"
    raise RefusedError(
        f"QEMU cannot {what}, and {printable(path)} is one",
        hint=f"convert it first: `imgtool convert -f {format} -O qcow2 {pasted(path)} {pasted(path + '.qcow2')}`",
        path=path,
    )


def refuse_cut(layout: Layout, wanted: int, *, path: str) -> None:
    """RefusedError when a disk of `wanted` bytes would cut off a part that is in use."""
    shown = printable(path)
    if layout.table is not None and layout.table.partitions:
        last = _last(layout.table)
        if wanted < last.end:
            raise RefusedError(
                f"{_partition(last)} of {shown} ends at byte {last.end}: {wanted} bytes would cut it off",
                hint="make it smaller in the guest first; --force cuts it off",
                path=path,
            )
    elif wanted < layout.data_end:
        raise RefusedError(
            f"{shown} has no partitions, but data up to byte {layout.data_end}: {wanted} bytes would cut it off",
            hint="make the file system smaller in the guest first; --force cuts off what lies behind its new end",
            path=path,
        )


def after_resize(layout: Layout, wanted: int) -> list[str]:
    """What remains to be done in the guest once its disk has `wanted` bytes."""
    table = layout.table
    if table is None or not table.partitions:
        if wanted > layout.size and layout.data_end:
            return ["the disk has no partitions: what lies on it does not grow by itself (resize2fs, xfs_growfs, …)"]
        return []
    last = _last(table)
    notes = []
    if wanted > layout.size:
        notes.append(
            f"{_partition(last)} still ends at byte {last.end}: in the guest make it larger "
            f"(growpart DISK {last.number}), then its file system (resize2fs, xfs_growfs, …)"
        )
    elif wanted < layout.size and table.kind == "gpt":
        room = "" if wanted - last.end >= _GPT_BACKUP else ", for which there is no room left"
        notes.append(
            f"the second partition table, at the disk's end, is cut off: `sgdisk -e DISK` makes it anew{room}"
        )
    return notes


def _last(table: Table) -> Partition:
    """The partition that ends last; of an extended one and the logical one in it, the latter."""
    return max(table.partitions, key=lambda one: (one.end, one.type not in _EXTENDED))


def _partition(one: Partition) -> str:
    name = f" ({printable(one.name)})" if one.name else ""
    return f"partition {one.number}{name}"


def lost_by_apply(path: str, wanted: str) -> str | None:
    """What going back to the snapshot `wanted` (its ID) loses, in words; None when the disk as it is now is in one of
    the snapshots, or that cannot be told."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        written = written_since(fd)
    except (ImageFormatError, OSError, AssertionError):
        return None
    finally:
        os.close(fd)
    if wanted not in written or 0 in written.values():
        return None
    return (
        f"{written[wanted]} bytes that were written since that snapshot are lost: the disk as it is now is in no "
        "snapshot (`imgtool snapshot -c NAME` keeps it)"
    )
