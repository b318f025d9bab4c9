"""qemu-img, one method a subcommand, of the same name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from imgtool.image.names import PathLike
from imgtool.image.qapi import BlockMeasureInfo, ImageInfo, MapEntry, SnapshotInfo
from imgtool.qemu.img_argv import BitmapAction, Cache, ImageOpts, OptionValue, Repair, Source
from imgtool.qemu.process import NO_LIMITS, Limits
from imgtool.qemu.programs import Programs
from imgtool.qemu.results import Changed, CheckResult, Committed, CompareResult, Created

QUICK_LIMITS = Limits(seconds=60, cpu_seconds=30, address_space=2 << 30)
"""For verbs that look at metadata only: what keeps a hostile image from holding imgtool up."""

Progress = Callable[[float], None]
"""Called with a percentage, 0 to 100, each time qemu-img reports one."""


class QemuImg:
    """qemu-img as typed calls.

    A `Source` is a path (of any name: it is always taken for a file or device, never for an option or protocol) or
    `ImageOpts`, QEMU's own `driver=…,file.filename=…`. `format` is the image's; None lets qemu-img probe.
    `objects` are QEMU object definitions (`secret,id=s0,file=/path`).

    Every method raises ImageNotFoundError or ImageUnreadableError before a process starts when a path is missing, a
    directory, a FIFO or unreadable; ImageInUseError when another process holds the image; CommandError when qemu-img
    fails, or for a verb that changes something exits with 0 but complains.
    """

    def __init__(
        self,
        programs: Programs | None = None,
        *,
        limits: Limits = QUICK_LIMITS,
        long_limits: Limits = NO_LIMITS,
    ) -> None:
        self.programs = programs or Programs()
        self.limits = limits
        self.long_limits = long_limits

    def create(
        self,
        path: PathLike,
        size: int | None = None,
        *,
        format: str,
        backing: str | None = None,
        backing_format: str | None = None,
        unsafe_backing: bool = False,
        data_file: PathLike | None = None,
        options: Mapping[str, OptionValue] = {},
        overwrite: bool = False,
        objects: Sequence[str] = (),
    ) -> Created:
        """A new image of `size` bytes, or of its backing file's size.

        `backing` is the reference as it shall stand in the image: relative ones are resolved against the image's
        directory. `unsafe_backing` (-u) does not open it. Replaces an existing file only with `overwrite`, else
        ImageExistsError; appears under its name only when complete.
        """
        raise NotImplementedError

    def info(
        self,
        image: Source,
        *,
        format: str | None = None,
        force_share: bool = True,
        objects: Sequence[str] = (),
    ) -> ImageInfo:
        """What is known of `image`; of one that a running VM writes too, unless `force_share` is False."""
        raise NotImplementedError

    def info_chain(
        self,
        image: Source,
        *,
        format: str | None = None,
        force_share: bool = True,
        objects: Sequence[str] = (),
    ) -> list[ImageInfo]:
        """`info --backing-chain`: `image` first, its base last. Opens every image of the chain, and fails when one
        is missing; `imgtool.chain` does not."""
        raise NotImplementedError

    def check(
        self,
        image: Source,
        *,
        format: str | None = None,
        repair: Repair | None = None,
        source_cache: Cache | None = None,
        force_share: bool = False,
        objects: Sequence[str] = (),
    ) -> CheckResult:
        """Is the image's metadata consistent? Corruption, leaks and a format without checks are answers."""
        raise NotImplementedError

    def convert(
        self,
        sources: Source | Sequence[Source],
        target: Source,
        *,
        output_format: str,
        format: str | None = None,
        backing: str | None = None,
        backing_format: str | None = None,
        data_file: PathLike | None = None,
        options: Mapping[str, OptionValue] = {},
        snapshot: str | None = None,
        compressed: bool = False,
        sparse_size: int | None = None,
        num_coroutines: int | None = None,
        out_of_order: bool = False,
        rate_limit: int | None = None,
        cache: Cache = "writeback",
        source_cache: Cache | None = None,
        copy_offload: bool = False,
        skip_creation: bool = False,
        target_is_zero: bool = False,
        bitmaps: bool = False,
        skip_broken_bitmaps: bool = False,
        salvage: bool = False,
        force_share: bool = False,
        overwrite: bool = False,
        objects: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Created:
        """Copies `sources` (several are concatenated) into a new image, which appears under its name only when it is
        complete and on disk. A block device, or any target with `skip_creation` (-n), is written in place."""
        raise NotImplementedError

    def commit(
        self,
        image: Source,
        *,
        format: str | None = None,
        base: PathLike | None = None,
        keep: bool = False,
        cache: Cache | None = None,
        rate_limit: int | None = None,
        objects: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Committed:
        """Writes what `image` holds into its backing file, or into `base` further down, and empties `image` unless
        `keep` (-d). With `base` the images between are invalid afterwards."""
        raise NotImplementedError

    def snapshot_list(
        self,
        image: Source,
        *,
        format: str | None = None,
        force_share: bool = True,
        objects: Sequence[str] = (),
    ) -> list[SnapshotInfo]:
        """The internal snapshots of `image`."""
        raise NotImplementedError

    def snapshot_create(
        self, image: Source, name: str, *, format: str | None = None, objects: Sequence[str] = ()
    ) -> Changed:
        """Keeps the disk as it is now as internal snapshot `name`."""
        raise NotImplementedError

    def snapshot_apply(
        self, image: Source, snapshot: str, *, format: str | None = None, objects: Sequence[str] = ()
    ) -> Changed:
        """Reverts the disk to `snapshot` (a name or an ID)."""
        raise NotImplementedError

    def snapshot_delete(
        self, image: Source, snapshot: str, *, format: str | None = None, objects: Sequence[str] = ()
    ) -> Changed:
        """Deletes `snapshot` (a name or an ID)."""
        raise NotImplementedError

    def rebase(
        self,
        image: Source,
        *,
        backing: str | None,
        backing_format: str | None = None,
        format: str | None = None,
        unsafe: bool = False,
        cache: Cache | None = None,
        source_cache: Cache | None = None,
        force_share: bool = False,
        objects: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Changed:
        """Makes `backing` (as in `create`) the backing file, or none with None, keeping what the guest sees; with
        `unsafe` (-u) only the name is changed. The default cache is writethrough: anything else is not crash-safe."""
        raise NotImplementedError

    def resize(
        self,
        image: Source,
        size: int | str,
        *,
        format: str | None = None,
        shrink: bool = False,
        preallocation: str | None = None,
        objects: Sequence[str] = (),
    ) -> Changed:
        """Makes the disk `size` bytes, or what a text such as `+512M` says relative to the size it has."""
        raise NotImplementedError

    def compare(
        self,
        image: Source,
        other: Source,
        *,
        format: str | None = None,
        other_format: str | None = None,
        strict: bool = False,
        source_cache: Cache | None = None,
        force_share: bool = False,
        objects: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> CompareResult:
        """Does a guest see the same in both? With `strict` sizes and allocation must be the same too."""
        raise NotImplementedError

    def map(
        self,
        image: Source,
        *,
        format: str | None = None,
        start_offset: int | None = None,
        max_length: int | None = None,
        force_share: bool = False,
        objects: Sequence[str] = (),
    ) -> list[MapEntry]:
        """Where each range of the disk is stored, through the whole backing chain."""
        raise NotImplementedError

    def measure(
        self,
        image: Source | None = None,
        *,
        size: int | None = None,
        output_format: str,
        format: str | None = None,
        options: Mapping[str, OptionValue] = {},
        snapshot: str | None = None,
        force_share: bool = False,
        objects: Sequence[str] = (),
    ) -> BlockMeasureInfo:
        """What an image of `output_format` would need for `image`, or for an empty disk of `size` bytes."""
        raise NotImplementedError

    def amend(
        self,
        image: Source,
        options: Mapping[str, OptionValue],
        *,
        format: str | None = None,
        cache: Cache | None = None,
        force: bool = False,
        objects: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Changed:
        """Changes format options of an existing image."""
        raise NotImplementedError

    def bitmap(
        self,
        image: Source,
        bitmap: str,
        actions: Sequence[BitmapAction],
        *,
        format: str | None = None,
        granularity: int | None = None,
        merge_from: PathLike | None = None,
        merge_from_format: str | None = None,
        objects: Sequence[str] = (),
    ) -> Changed:
        """Does `actions` to a persistent bitmap, in order: `"add"`, `"remove"`, `"clear"`, `"enable"`, `"disable"`,
        or `Merge(source)`, whose source is a bitmap of this image or of `merge_from`."""
        raise NotImplementedError


_ = Literal, ImageOpts
