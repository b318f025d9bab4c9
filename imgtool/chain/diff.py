"""Where two disks differ: what an overlay changed, or two overlays of one base, or any two images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from imgtool.chain.content import layers_of
from imgtool.chain.graph import Image
from imgtool.chain.layers import merged
from imgtool.chain.walk import guard
from imgtool.errors import ImgtoolError
from imgtool.image.header import Qcow2Details, read_header
from imgtool.image.names import PathLike
from imgtool.image.partitions import Partition, Table, read_table
from imgtool.qemu.digest import chunk_digests
from imgtool.qemu.disk import Disk
from imgtool.qemu.extents import read_extents
from imgtool.qemu.qemu_img import QemuImg
from imgtool.qemu.ranges import Range, aligned, overlap, union, within


class Changed(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What is different in one partition."""

    partition: Partition
    """As in the table of B."""
    bytes: int
    """How many of its bytes differ."""


class Diff(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """Where two disks differ."""

    a: str
    """The first image's path."""
    b: str
    """The second image's path."""
    common: str | None
    """The image that both stand on (or that one of them is); None when they have nothing in common."""
    exact: bool
    """Whether bytes were compared. Else what was written counts, whether or not it is what was there before."""
    a_size: int
    """Bytes of its disk."""
    b_size: int
    """Bytes of its disk."""
    cluster_size: int
    """Bytes of the clusters that are counted."""
    clusters: int
    """How many clusters of the disk are touched."""
    bytes: int
    """How many bytes of the disk differ, as `ranges` adds up."""
    ranges: tuple[Range, ...]
    """Where they differ, in the order of the disk."""
    table: Table | None
    """The partition table of B, where it could be read."""
    partitions: tuple[Changed, ...]
    """Those of `table` with differences."""
    elsewhere: int
    """Bytes that differ outside of all partitions."""


EXACT_CHUNK = 64 << 10


def diff(
    a: PathLike,
    b: PathLike,
    *,
    a_format: str | None = None,
    b_format: str | None = None,
    exact: bool = False,
    qemu_img: QemuImg | None = None,
    force_share: bool = False,
) -> Diff:
    """Where the disks in `a` and `b` differ. When both stand on the same image, or one stands on the other, what was
    written since comes from one `qemu-img map` of each; otherwise, and with `exact`, their bytes are compared in
    pieces of 64 KiB.

    Raises as `guard`, `QemuImg.map` and, where bytes are read, `digest_of`.
    """
    img = qemu_img or QemuImg()
    sides = [_Side(path, format, img, force_share) for path, format in ((a, a_format), (b, b_format))]
    common = _common(sides[0].chain, sides[1].chain)
    if common is None:
        exact = True
        candidates = [Range(0, max(side.size for side in sides))]
    else:
        candidates = union(one for side in sides for one in side.written_above(common))
        sizes = sorted(side.size for side in sides)
        if sizes[0] != sizes[1]:
            candidates = union([*candidates, Range(sizes[0], sizes[1] - sizes[0])])
    if exact:
        candidates = _really_different(sides, candidates, img)
    table = sides[1].table()
    cluster = sides[1].cluster_size() if not exact else EXACT_CHUNK
    total = sum(one.length for one in candidates)
    changed = tuple(_by_partition(table, candidates)) if table is not None else ()
    outside = union(Range(one.start, one.end - one.start) for one in (table.partitions if table else ()))
    return Diff(
        a=sides[0].chain[0].path,
        b=sides[1].chain[0].path,
        common=None if common is None else common.path,
        exact=exact,
        a_size=sides[0].size,
        b_size=sides[1].size,
        cluster_size=cluster,
        clusters=_clusters(candidates, cluster),
        bytes=total,
        ranges=tuple(candidates),
        table=table,
        partitions=changed,
        elsewhere=total - overlap(candidates, outside),
    )


class _Side:
    """One of the two disks."""

    def __init__(self, path: PathLike, format: str | None, img: QemuImg, force_share: bool) -> None:
        self.chain = guard(path, format=format)
        self.size = self.chain[0].virtual_size or 0
        self.layers = layers_of(self.chain)
        self.extents = read_extents(img, self.layers, force_share=force_share)
        self._img, self._force_share = img, force_share

    def written_above(self, image: Image) -> list[Range]:
        """What the images above `image` hold."""
        index = next(at for at, one in enumerate(self.chain) if _same(one, image))
        return union(
            Range(part.start, part.length)
            for part in merged(self.extents)
            if part.layer is not None and part.layer < index
        )

    def table(self) -> Table | None:
        disk = Disk(self._img, self.layers, self.size, extents=self.extents, force_share=self._force_share)
        try:
            return read_table(disk.read)
        except ImgtoolError:
            return None  # encrypted: what is in it cannot be told

    def cluster_size(self) -> int:
        fd = os.open(self.chain[0].path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            details = read_header(fd, format=self.chain[0].format).details
        finally:
            os.close(fd)
        return details.cluster_size if isinstance(details, Qcow2Details) else EXACT_CHUNK


def _same(one: Image, other: Image) -> bool:
    return one.path == other.path or os.path.samefile(one.path, other.path)


def _common(one: Sequence[Image], other: Sequence[Image]) -> Image | None:
    """The first image of `one` that is in `other` too."""
    return next((image for image in one if any(_same(image, there) for there in other)), None)


def _clusters(ranges: Iterable[Range], size: int) -> int:
    count, behind = 0, 0
    for one in ranges:
        first, last = max(one.start // size, behind), (one.end - 1) // size + 1
        count, behind = count + max(0, last - first), max(behind, last)
    return count


def _by_partition(table: Table, ranges: Sequence[Range]) -> Iterator[Changed]:
    for partition in table.partitions:
        count = overlap(ranges, [Range(partition.start, partition.end - partition.start)])
        if count and not (table.kind == "mbr" and partition.type in ("05", "0f", "85")):
            yield Changed(partition=partition, bytes=count)


def _really_different(sides: Sequence[_Side], ranges: Sequence[Range], img: QemuImg) -> list[Range]:
    """The chunks within `ranges` whose bytes differ; what lies behind the end of the smaller disk differs."""
    wanted = aligned(ranges, EXACT_CHUNK)
    size = max(side.size for side in sides)
    one, other = (
        chunk_digests(img, side.layers, side.size, chunk=EXACT_CHUNK, extents=list(within(side.extents, wanted)))
        for side in sides
    )
    numbers = {number for number in one.keys() | other.keys() if one.get(number) != other.get(number)}
    smaller = min(side.size for side in sides)
    found = [Range(number * EXACT_CHUNK, min(EXACT_CHUNK, size - number * EXACT_CHUNK)) for number in numbers]
    return union([*found, Range(smaller, size - smaller)])
