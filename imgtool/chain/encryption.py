"""Images whose disk is encrypted, which no program reads without their secret."""

from __future__ import annotations

import os
from collections.abc import Sequence

from imgtool.chain.graph import Image
from imgtool.errors import RefusedError
from imgtool.image.header import read_header
from imgtool.image.names import pasted, printable
from imgtool.qemu.img_argv import ImageOpts, OptionValue


def is_encrypted(image: Image) -> bool:
    """Whether the disk of `image` is encrypted in a way that QEMU knows; False for what is no file of this host."""
    if image.format not in ("qcow", "qcow2"):
        return image.format == "luks"
    fd = os.open(image.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return getattr(read_header(fd, format=image.format).details, "encryption", None) is not None
    finally:
        os.close(fd)


def refuse_encrypted(chain: Sequence[Image], *, image_opts: bool = False) -> None:
    """RefusedError when qemu-img cannot read the disk of `chain`, an image and all it stands on, without a secret.
    With `image_opts` the command at hand takes the options that give it one."""
    depths = [depth for depth, image in enumerate(chain) if is_encrypted(image)]
    if not depths:
        return
    image = chain[depths[0]]
    words = _with_secrets(chain, depths)
    raise RefusedError(
        f"{printable(image.path)} is encrypted: without its secret it cannot be read",
        hint=f"instead of its name, with the secret in FILE: {words}"
        if image_opts
        else f"`imgtool convert {words} -O qcow2 NEW` makes an image of it that is not",
        path=image.path,
    )


def _with_secrets(chain: Sequence[Image], depths: Sequence[int]) -> str:
    """The words that open `chain`, where the images at `depths` are encrypted. Source: `encrypt.key-secret` of
    BlockdevOptionsQcow2 and Qcow, `key-secret` of BlockdevOptionsLUKS."""
    options: dict[str, OptionValue] = {"driver": chain[0].format or "raw"}
    objects = []
    for number, depth in enumerate(depths):
        option = "key-secret" if chain[depth].format == "luks" else "encrypt.key-secret"
        options["backing." * depth + option] = f"key{number}"
        objects.append(f"--object secret,id=key{number},file=FILE")
    options["file.filename"] = chain[0].path
    return " ".join([*objects, "--image-opts", pasted(ImageOpts.of(options).text)])
