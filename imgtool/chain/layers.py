"""Which image of a chain supplies which part of the disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from imgtool.chain.content import layers_of
from imgtool.chain.walk import guard
from imgtool.image.names import PathLike
from imgtool.qemu.extents import Extent, read_extents
from imgtool.qemu.qemu_img import QemuImg


class Part(msgspec.Struct, frozen=True, gc=False, rename="kebab"):
    """One range of the disk."""

    start: int
    """Bytes from the disk's beginning."""
    length: int
    """Bytes."""
    layer: int | None
    """Which of `layers` holds it, counted from 0, the topmost; None where no image holds anything."""
    zero: bool
    """Whether it reads as zeros without being stored."""

    @property
    def end(self) -> int:
        return self.start + self.length


class Share(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What one image supplies of the disk; what is hidden by those above it does not count."""

    path: str
    """The image."""
    format: str
    """As QEMU calls it."""
    data: int
    """Bytes."""
    zeros: int
    """Bytes that it says are zeros, hiding what lies below. QEMU tells them since 6.1."""
    actual_size: int | None
    """Bytes of its file that are allocated."""


class Layers(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """A chain as one disk."""

    path: str
    """The topmost image."""
    virtual_size: int
    """Bytes of the disk."""
    layers: tuple[Share, ...]
    """The topmost first."""
    parts: tuple[Part, ...]
    """The whole disk, in order."""
    unwritten: int
    """Bytes that no image holds."""
    commit_bytes: int
    """What committing the topmost image would write into the one beneath."""
    flatten_bytes: int
    """What flattening it would copy into it."""


def layers(
    image: PathLike, *, format: str | None = None, qemu_img: QemuImg | None = None, force_share: bool = False
) -> Layers:
    """Which image of its chain supplies which part of the disk in `image`, from one `qemu-img map`. Raises as `guard`
    and `QemuImg.map`."""
    chain = guard(image, format=format)
    extents = read_extents(qemu_img or QemuImg(), layers_of(chain), force_share=force_share)
    parts = tuple(merged(extents))
    data, zeros = [0] * len(chain), [0] * len(chain)
    for part in parts:
        if part.layer is not None:
            (zeros if part.zero else data)[part.layer] += part.length
    shares = tuple(
        Share(
            path=one.path,
            format=one.format or "raw",
            data=data[depth],
            zeros=zeros[depth],
            actual_size=one.actual_size,
        )
        for depth, one in enumerate(chain)
    )
    size = chain[0].virtual_size or 0
    return Layers(
        path=chain[0].path,
        virtual_size=size,
        layers=shares,
        parts=parts,
        unwritten=size - sum(data) - sum(zeros),
        commit_bytes=data[0] + zeros[0] if len(chain) > 1 else 0,
        flatten_bytes=sum(data[1:]),
    )


def merged(extents: Iterable[Extent]) -> Iterator[Part]:
    """The extents as parts, neighbours that are alike as one."""
    last: Part | None = None
    for extent in extents:
        layer = extent.depth if extent.held else None
        zero = extent.zero or not extent.data
        if last is not None and (last.layer, last.zero) == (layer, zero) and last.end == extent.start:
            last = Part(last.start, last.length + extent.length, layer, zero)
            continue
        if last is not None:
            yield last
        last = Part(extent.start, extent.length, layer, zero)
    if last is not None:
        yield last
