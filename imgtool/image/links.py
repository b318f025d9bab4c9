"""The other files, devices and servers that an image's header names: what opening the image would open as well."""

from __future__ import annotations

import os
from typing import Literal

import msgspec

from imgtool.errors import ImageFormatError
from imgtool.image.formats.base import Header
from imgtool.image.reference import Reference, parse, parse_data_file

Role = Literal["backing", "data-file", "extent"]
ROLE_NAMES: dict[Role, str] = {"backing": "backing file", "data-file": "data file", "extent": "extent"}

NETWORK_PROTOCOLS = frozenset(
    (
        "nbd",
        "http",
        "https",
        "ftp",
        "ftps",
        "tftp",
        "ssh",
        "iscsi",
        "iser",
        "rbd",
        "gluster",
        "nfs",
        "sheepdog",
        "vxhs",
    )
)
HOST_PROTOCOLS = frozenset(("file", "host_device", "host_cdrom", "vvfat", "nvme", "null-co", "null-aio"))
PROTOCOLS = NETWORK_PROTOCOLS | HOST_PROTOCOLS


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """One name in a header, and what it means."""

    role: Role
    name: bytes
    format: str | None
    """The format that the header names for it; `raw` for data files and extents, which QEMU takes as they are."""
    reference: Reference | None
    """None when the name makes no sense; `error` says why."""
    error: str | None = None

    @property
    def leaves(self) -> tuple[Reference, ...]:
        return () if self.reference is None else self.reference.leaves


def links(header: Header, *, directory: str) -> list[Link]:
    """Every name in the header of an image that lies in `directory`."""
    found = []
    if header.backing is not None:
        found.append(_link("backing", header.backing, header.backing_format, directory))
    if header.data_file is not None:
        found.append(_link("data-file", header.data_file, "raw", directory))
    for extent in getattr(header.details, "extents", ()):
        name = os.fsdecode(extent.name)
        reference = Reference(text=name, kind="file", protocol="file", path=os.path.join(directory, name))
        found.append(Link(role="extent", name=extent.name, format="raw", reference=reference))
    return found


def _link(role: Role, name: bytes, format: str | None, directory: str) -> Link:
    try:
        reader = parse_data_file if role == "data-file" else parse
        reference = reader(name, directory=directory)
    except ImageFormatError as error:
        return Link(role=role, name=name, format=format, reference=None, error=error.message)
    return Link(role=role, name=name, format=format or reference.format, reference=reference)


def is_below(path: str, directory: str) -> bool:
    """Whether `path` lies in `directory` or below once every symlink on both ways is followed."""
    real, top = os.path.realpath(path), os.path.realpath(directory)
    return real == top or real.startswith(top.rstrip("/") + "/")
