"""One module per format. Each has `parse(source) -> Header`: the header of an image that is in this format, or
ImageFormatError. For an image of unknown format ask `imgtool.image.header`."""

from __future__ import annotations

FORMATS = (
    "bochs",
    "cloop",
    "dmg",
    "luks",
    "parallels",
    "qcow",
    "qcow2",
    "qed",
    "raw",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
)
"""The formats read here, all that QEMU has, by the names of its drivers."""
