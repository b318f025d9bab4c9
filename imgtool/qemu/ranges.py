"""Ranges of a disk, in bytes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from imgtool.qemu.extents import Extent


class Range(msgspec.Struct, frozen=True, gc=False, rename="kebab"):
    """A stretch of the disk."""

    start: int
    """Bytes from the disk's beginning."""
    length: int
    """Bytes."""

    @property
    def end(self) -> int:
        return self.start + self.length


def union(ranges: Iterable[Range]) -> list[Range]:
    """The same bytes in as few ranges as can be, in order."""
    found: list[Range] = []
    for one in sorted(ranges, key=lambda one: one.start):
        if found and one.start <= found[-1].end:
            found[-1] = Range(found[-1].start, max(one.end, found[-1].end) - found[-1].start)
        elif one.length:
            found.append(one)
    return found


def overlap(ranges: Sequence[Range], others: Sequence[Range]) -> int:
    """How many bytes are in both; each is in order and without overlaps."""
    total = at = 0
    for one in ranges:
        while at < len(others) and others[at].end <= one.start:
            at += 1
        for other in others[at:]:
            if other.start >= one.end:
                break
            total += min(one.end, other.end) - max(one.start, other.start)
    return total


def aligned(ranges: Iterable[Range | Extent], size: int) -> list[Range]:
    """The union of the pieces of `size` bytes, counted from the disk's beginning, in which `ranges` have a part."""

    def widened(one: Range | Extent) -> Range:
        start = one.start // size * size
        return Range(start, -(-one.end // size) * size - start)

    return union(map(widened, ranges))


def holds(ranges: Sequence[Range], offset: int) -> bool:
    """Whether the byte at `offset` is in `ranges`, which are in order and without overlaps."""
    at = bisect_right(ranges, offset, key=lambda one: one.start)
    return at > 0 and offset < ranges[at - 1].end


def within(extents: Iterable[Extent], ranges: Sequence[Range]) -> Iterator[Extent]:
    """The parts of `extents` in `ranges`; both are in order and without overlaps."""
    at = 0
    for extent in extents:
        while at < len(ranges) and ranges[at].end <= extent.start:
            at += 1
        for one in ranges[at:]:
            if one.start >= extent.end:
                break
            start, end = max(one.start, extent.start), min(one.end, extent.end)
            offset = None if extent.offset is None else extent.offset + start - extent.start
            yield msgspec.structs.replace(extent, start=start, length=end - start, offset=offset)
