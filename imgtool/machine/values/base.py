"""What all configuration structs share.

Every field that may be left open is None until someone sets it, so that merging (command line over profile) can tell
"not said" from "said, and it is the default".

The annotations of these structs are no strings (`from __future__ import annotations`): each of the hundreds would be
compiled anew at every start.
"""

from typing import Annotated

import msgspec

Size = Annotated[
    int,
    msgspec.Meta(
        ge=0,
        description="bytes; a profile may also write it in QEMU's notation: 2G",
        extra_json_schema={"also": "string"},  # see imgtool.cli.schema_input
        extra={"unit": "bytes"},
    ),
]
Path = Annotated[
    str, msgspec.Meta(description="a file; relative to the profile it stands in", extra={"unit": "path"})
]
Count = Annotated[int, msgspec.Meta(ge=1)]
Index = Annotated[int, msgspec.Meta(ge=0)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]

PropertyValue = str | bool | int
"""A property QEMU knows and imgtool does not: written `on`/`off`, a number, or as it is."""


class Config(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab", omit_defaults=True
):
    """A part of a machine's configuration: immutable, named as QEMU names it, strict about the unknown."""
