"""qemu-img's verbs on a file that an operation has staged: it is there, hidden, and nobody uses it yet, so that no
further care is needed for what happens half-way. Nothing is flushed: who staged it brings it to the disk."""

from __future__ import annotations

from collections.abc import Mapping

from imgtool.image.remembered import remember
from imgtool.qemu import img_argv
from imgtool.qemu.img_argv import Backing, OptionValue, Source
from imgtool.qemu.img_base import ImgBase, Progress, place_named
from imgtool.qemu.writeback import written_early
from imgtool.sizes import Size


class Staging(ImgBase):
    """See QemuImg."""

    def create_over(
        self,
        staged: str,
        size: Size | None,
        *,
        format: str,
        backing: Backing | None = None,
        backing_format: str | None = None,
        opens_backing: bool = False,
        options: Mapping[str, OptionValue] = {},
    ) -> None:
        """Makes the file `staged` an empty image of `size` bytes. `backing` is written as it is, and not opened; with
        `opens_backing` it is, and has the size when that is None."""
        argv = img_argv.create(
            self.program,
            staged,
            size,
            format=format,
            backing=backing,
            backing_format=backing_format,
            unsafe_backing=backing is not None and not opens_backing,
            options=options,
        )
        cwd = self._approve_parent(staged, backing, backing_format) if opens_backing else None
        self._change(argv, staged, cwd=cwd)
        place = place_named(staged, backing)
        if place is not None:
            remember(staged, place)

    def convert_over(
        self,
        source: Source,
        staged: str,
        *,
        format: str | None = None,
        output_format: str,
        options: Mapping[str, OptionValue] = {},
        compressed: bool = False,
        bitmaps: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Makes the file `staged` an image of the disk that `source` holds. It stays in the page cache, for those who
        prove it before it is brought to disk."""
        argv = img_argv.convert(
            self.program,
            [source],
            staged,
            output_format=output_format,
            format=format,
            options=options,
            compressed=compressed,
            bitmaps=bitmaps,
            cache="unsafe",
            progress=progress is not None,
        )
        cwd = self._approve([source], [format])
        with written_early(staged):
            self._change(argv, staged, others=[source], cwd=cwd, progress=progress)
