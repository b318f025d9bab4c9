"""What qemu-img says of an image, as typed values with the names the caller has for it."""

from __future__ import annotations

import msgspec

from imgtool.image import qapi_json
from imgtool.image.names import absolute
from imgtool.image.qapi import BlockChildInfo, BlockNodeInfo, FormatSpecific, ImageInfo, Qcow2Info, VmdkInfo
from imgtool.image.qapi_json import decode
from imgtool.qemu.img_types import ImageOpts, Source


def prepare() -> None:
    """Does beforehand what the first `image_info` has to do before it reads an answer, of a qcow2 mostly."""
    qapi_json.prepare(ImageInfo, FormatSpecific, Qcow2Info)


def image_info(answer: bytes, image: Source) -> ImageInfo:
    """The JSON that `qemu-img info` wrote about `image`. DecodeError when it is none."""
    return named(decode(ImageInfo, answer), image)


def named(info: ImageInfo, image: Source) -> ImageInfo:
    """`info` with the caller's path wherever qemu-img writes the image's own name, which it spells with U+FFFD when
    it is no UTF-8."""
    if isinstance(image, ImageOpts) or info.filename == absolute(image):
        return info
    renamed = _renamed(info, info.filename, absolute(image))
    assert isinstance(renamed, ImageInfo)
    return renamed


def _renamed(info: BlockNodeInfo, said: str, path: str) -> BlockNodeInfo:
    children = info.children
    if children is not None:
        children = tuple(
            BlockChildInfo(name=child.name, info=_renamed(child.info, said, path), unknown=child.unknown)
            for child in children
        )
    specific = info.format_specific
    if specific is not None and isinstance(specific.data, VmdkInfo):
        extents = tuple(
            msgspec.structs.replace(extent, filename=path) if extent.filename == said else extent
            for extent in specific.data.extents
        )
        data = msgspec.structs.replace(specific.data, extents=extents)
        specific = FormatSpecific(type=specific.type, data=data, unknown=specific.unknown)
    filename = path if info.filename == said else info.filename
    return msgspec.structs.replace(info, filename=filename, children=children, format_specific=specific)
