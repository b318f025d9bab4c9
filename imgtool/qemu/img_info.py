"""`qemu-img info`, apart from the other verbs: what these import takes as long as qemu-img takes to answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from imgtool.qemu.img_base import ImgBase
from imgtool.qemu.img_types import Source

if TYPE_CHECKING:
    from imgtool.image.qapi import ImageInfo


class Asking(ImgBase):
    """See QemuImg."""

    def info(
        self,
        image: Source,
        *,
        format: str | None = None,
        force_share: bool = True,
        objects: Sequence[str] = (),
    ) -> ImageInfo:
        """What is known of `image`; also of one that a running VM writes, unless `force_share` (-U) is False."""
        return self._info(image, format, objects, force_share=force_share)
