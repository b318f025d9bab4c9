"""qemu-img's verbs that change nothing (and `check`, which may repair)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec.structs import replace

from imgtool.image.qapi import BlockMeasureInfo, ImageCheck, ImageInfo, MapEntry, SnapshotInfo
from imgtool.image.qapi_json import decode
from imgtool.qemu import img_argv
from imgtool.qemu.answers import named
from imgtool.qemu.img_argv import Cache, ImageOpts, OptionValue, Repair, SnapshotParam, Source
from imgtool.qemu.img_base import Progress, place_of
from imgtool.qemu.img_info import Asking
from imgtool.qemu.inputs import check_input
from imgtool.qemu.process import NO_LIMITS
from imgtool.qemu.results import CheckResult, CompareResult
from imgtool.sizes import Size

_CHECK_ANSWERS: dict[int, Literal["clean", "corrupt", "leaks", "unsupported"]] = {
    0: "clean",
    2: "corrupt",
    3: "leaks",
    63: "unsupported",
}


class Reading(Asking):
    """See QemuImg."""

    def info_chain(
        self,
        image: Source,
        *,
        format: str | None = None,
        force_share: bool = True,
        objects: Sequence[str] = (),
    ) -> list[ImageInfo]:
        """`info --backing-chain`: `image` first, its base last. Opens every image of the chain, over the network
        too, and fails when one is missing; `imgtool.chain` does not."""
        argv = img_argv.info(
            self.program, image, format=format, backing_chain=True, force_share=force_share, objects=objects
        )
        done = self._read(argv, [image], formats=[format], force_share=force_share, limits=self.limits)
        first, *rest = decode(list[ImageInfo], done.stdout)
        return [named(first, image), *rest]

    def snapshot_list(
        self,
        image: Source,
        *,
        format: str | None = None,
        force_share: bool = True,
        objects: Sequence[str] = (),
    ) -> list[SnapshotInfo]:
        """The internal snapshots of `image` (`snapshot -l`, which has no JSON; `info` has)."""
        return list(self._info(image, format, objects, force_share=force_share).snapshots or ())

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
        """Checks the image's metadata. Corruption, leaks and a format without checks are results, not errors. With
        `repair` the result is about the image afterwards, and the report counts what was fixed."""
        argv = img_argv.check(
            self.program,
            image,
            format=format,
            repair=repair,
            source_cache=source_cache,
            force_share=force_share,
            objects=objects,
        )
        if repair is not None and not isinstance(image, ImageOpts):
            check_input(place_of(image), write=True)
        limits = self.long_limits if repair is None else NO_LIMITS
        done = self._read(
            argv, [image], formats=[format], force_share=force_share, limits=limits, answers=_CHECK_ANSWERS
        )
        status = _CHECK_ANSWERS[done.status]
        report = None
        if status != "unsupported":
            report = decode(ImageCheck, done.stdout)
            if not isinstance(image, ImageOpts):
                report = replace(report, filename=place_of(image))
        return CheckResult(path=place_of(image), status=status, exit_status=done.status, report=report)

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
        """Whether a guest reads the same from both. With `strict`, sizes and allocation must be the same too."""
        argv = img_argv.compare(
            self.program,
            image,
            other,
            format=format,
            other_format=other_format,
            strict=strict,
            source_cache=source_cache,
            force_share=force_share,
            objects=objects,
            progress=progress is not None,
        )
        done = self._read(
            argv,
            [image, other],
            formats=[format, other_format],
            force_share=force_share,
            limits=self.long_limits,
            progress=progress,
            answers=(0, 1),
        )
        message = done.stdout.decode(errors="replace").strip()
        # There is no JSON for compare: the offset is only in the message, in English since we run it under LC_ALL=C.
        offset = re.search(r"[Oo]ffset (\d+)", message)
        return CompareResult(
            path=place_of(image),
            other=place_of(other),
            identical=done.status == 0,
            offset=int(offset[1]) if offset and done.status == 1 else None,
            message=message,
        )

    def map(
        self,
        image: Source,
        *,
        format: str | None = None,
        start_offset: Size | None = None,
        max_length: Size | None = None,
        force_share: bool = False,
        objects: Sequence[str] = (),
    ) -> list[MapEntry]:
        """Where each range of the disk is stored, through the whole backing chain; in the order of the disk."""
        argv = img_argv.map(
            self.program,
            image,
            format=format,
            start_offset=start_offset,
            max_length=max_length,
            force_share=force_share,
            objects=objects,
        )
        done = self._read(argv, [image], formats=[format], force_share=force_share, limits=self.long_limits)
        return decode(list[MapEntry], done.stdout)

    def measure(
        self,
        image: Source | None = None,
        *,
        size: Size | None = None,
        output_format: str,
        format: str | None = None,
        options: Mapping[str, OptionValue] = {},
        snapshot: str | SnapshotParam | None = None,
        force_share: bool = False,
        objects: Sequence[str] = (),
    ) -> BlockMeasureInfo:
        """How many bytes an image in `output_format` would take for `image`, or for an empty disk of `size` bytes."""
        argv = img_argv.measure(
            self.program,
            image,
            size=size,
            output_format=output_format,
            format=format,
            options=options,
            snapshot=snapshot,
            force_share=force_share,
            objects=objects,
        )
        images = [] if image is None else [image]
        done = self._read(argv, images, formats=[format], force_share=force_share, limits=self.limits)
        return decode(BlockMeasureInfo, done.stdout)
