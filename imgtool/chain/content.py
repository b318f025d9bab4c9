"""What a guest reads of an image, as a digest, and the layers of a chain as qemu-img is given them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from imgtool.chain.encryption import refuse_encrypted
from imgtool.chain.graph import Image
from imgtool.chain.walk import guard
from imgtool.errors import RefusedError
from imgtool.image.names import PathLike, printable
from imgtool.qemu.extents import Layer
from imgtool.qemu.qemu_img import QemuImg


def layers_of(chain: Sequence[Image]) -> list[Layer]:
    """The images of `chain` (that of `imgtool.chain.walk.guard`). RefusedError when one is not on this host, or
    encrypted."""
    layers = []
    for image in chain:
        if image.format is None or (image.data_file is not msgspec.UNSET and image.data_file.path is None):
            raise RefusedError(
                f"{printable(chain[0].path)} stands on {printable(image.path)}, which is not a file on this host",
                path=chain[0].path,
            )
        data_file = None if image.data_file is msgspec.UNSET else image.data_file.path
        layers.append(Layer(image.path, image.format, data_file))
    refuse_encrypted(chain)
    return layers


def digest_of(
    image: PathLike,
    *,
    format: str | None = None,
    qemu_img: QemuImg | None = None,
    progress: Callable[[float], None] | None = None,
) -> str:
    """The content digest (`imgtool1:` and 64 hexadecimal digits) of what a guest reads of `image` and its chain.
    Images of the same disk have the same digest, whatever their formats and layers. `imgtool.qemu.digest` says how it
    is made.

    Raises as `guard`; RefusedError for a chain that is encrypted or is not made of files on this host,
    ImageInUseError when a program writes one of them, CommandError when qemu-img cannot read them.
    """
    from imgtool.qemu.digest import content_digest

    chain = guard(image, format=format)
    size = chain[0].virtual_size
    assert size is not None, "what guard lets pass has been read"
    return content_digest(qemu_img or QemuImg(), layers_of(chain), size, progress=progress)
