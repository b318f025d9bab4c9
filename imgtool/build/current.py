"""Whether the output of a recipe is up to date: what decides its content, and whether it is the file that was made of
that."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from imgtool.build.base import Base, disk_size
from imgtool.build.keys import plain
from imgtool.build.memory import identity
from imgtool.build.recipe import Loaded, Output
from imgtool.build.records import Record
from imgtool.image.manifest import SUFFIX
from imgtool.qemu.img_types import OptionValue


def made_of(loaded: Loaded, output: Output, base: Base, content: str) -> dict[str, Any]:
    """All that decides what the output is, for telling whether it is up to date. `content` is that of the last layer,
    or of the base."""
    found: dict[str, Any] = plain(
        {
            "content": content,
            "format": output.format,
            "compression": compression_of(output),
            "options": output.options,
            "thin": base.path if is_thin(output) else None,
            "checks": loaded.recipe.checks,
            "labels": loaded.recipe.image.labels,
        }
    )
    if not loaded.recipe.layers:
        found["size"] = disk_size(loaded, base)  # of layers it is a part of the content
    return found


def is_current(record: Record, path: str, wanted: Mapping[str, Any]) -> bool:
    """Whether the output at `path` is the one that was made of `wanted`, untouched, its manifest beside it."""
    made = record.output(path)
    if made is None or made.made_of != wanted:
        return False
    try:
        return identity(os.stat(path)) == made.identity and os.path.exists(path + SUFFIX)
    except OSError:
        return False


def compression_of(output: Output) -> str:
    if output.compression is not None:
        return output.compression
    return "zstd" if output.format == "qcow2" else "none"


def options_of(output: Output) -> dict[str, OptionValue]:
    """qemu-img's `-o` for it: the recipe's, and what its compression takes."""
    options: dict[str, OptionValue] = dict(output.options)
    compression = compression_of(output)
    if output.format == "qcow2" and compression in ("zstd", "zlib"):
        options.setdefault("compression_type", compression)
    return options


def is_thin(output: Output) -> bool:
    return bool(output.thin) or output.flatten is False
