"""`--max-size`: how large an image may become is asked before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from imgtool.cli.render import size
from imgtool.errors import RefusedError

if TYPE_CHECKING:
    from imgtool.cli.context import Context
    from imgtool.qemu.img_argv import Source
    from imgtool.qemu.qemu_img import QemuImg

_MEASURED = ("raw", "qcow2", "luks")
"""Formats that QEMU can measure; the others take about what a qcow2 takes."""


def refuse_too_large(
    context: Context, program: QemuImg, sources: Sequence[Source], most: int | None, arguments: dict[str, Any]
) -> None:
    """RefusedError when what `sources` hold would take more than `most` bytes in the new image, or than the
    configuration allows. `arguments` are those of `QemuImg.convert`. A raw disk counts with its holes."""
    if most is None and context.settings is not None:
        most = context.settings.limits.max_size
    if most is None:
        return
    wanted = arguments["output_format"]
    measured = wanted in _MEASURED
    needed = sum(
        program.measure(
            source,
            output_format=wanted if measured else "qcow2",
            format=arguments["format"],
            options=arguments["options"] if measured else {},
            snapshot=arguments["snapshot"],
            force_share=arguments["force_share"],
            objects=arguments["objects"],
        ).required
        for source in sources
    )
    if needed > most:
        raise RefusedError(
            f"the new image would take {size(needed)}, which is more than {size(most)}",
            hint=f"--max-size {needed} allows as much; nothing was written",
        )
