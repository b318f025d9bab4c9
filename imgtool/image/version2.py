"""What a qcow2 of version 2 (`-o compat=0.10`) cannot have: what came with version 3. QEMU says so late, and in words
of its own; of the dirty bitmaps that an image has when it becomes one it says nothing, and breaks them."""

from __future__ import annotations

from collections.abc import Mapping

from imgtool.errors import RefusedError
from imgtool.image.formats.qcow2 import Qcow2Details
from imgtool.image.header import Header
from imgtool.image.names import pasted, printable

_COMPATS = ("0.10", "v2")
"""What QEMU calls it."""

_AMENDED = {"lazy_refcounts": "off", "refcount_bits": "16"}
"""Option of `amend` → the one value that version 2 takes."""


def is_version_2(compat: object) -> bool:
    """Whether `compat`, the value of that option, means version 2."""
    return compat in _COMPATS


def refuse_version_2(header: Header, path: str, what: str) -> None:
    """RefusedError when the image at `path`, which has `header`, is a qcow2 of version 2: it cannot have `what`."""
    if isinstance(header.details, Qcow2Details) and header.details.version == 2:
        raise RefusedError(
            f"{printable(path)} is a qcow2 of version 2 (compat=0.10), which cannot have {what}",
            hint=f"`imgtool amend -o compat=1.1 {pasted(path)}` makes it version 3",
            path=path,
        )


def refuse_amend(header: Header, path: str, options: Mapping[str, object]) -> None:
    """RefusedError when the qcow2 at `path`, which has `header`, is of version 2 after it got the amended `options`,
    and they or what it holds need version 3."""
    details = header.details
    if not isinstance(details, Qcow2Details):
        return
    becomes = is_version_2(options["compat"]) if "compat" in options else details.version == 2
    if not becomes:
        return
    for name, value in _AMENDED.items():
        if str(options.get(name, value)) != value:
            newer = f"{name}={printable(str(options[name]))}"
            raise RefusedError(
                f"{printable(path)} {'becomes' if 'compat' in options else 'is'} a qcow2 of version 2 (compat=0.10), "
                f"which cannot have {newer}",
                hint=f"-o compat=1.1,{newer} makes it version 3 besides",
                path=path,
            )
    if details.version != 2:
        _refuse_held(details, path, options)


def _refuse_held(details: Qcow2Details, path: str, options: Mapping[str, object]) -> None:
    anew = f"`imgtool convert -O qcow2 -o compat=0.10 {pasted(path)} NEW` makes an image without"
    if details.bitmaps:
        what, hint = "dirty bitmaps", f"`imgtool bitmap --remove {pasted(path)} NAME` removes one"
    elif details.refcount_bits != 16 and "refcount_bits" not in options:
        what, hint = f"refcount_bits={details.refcount_bits}", "-o compat=0.10,refcount_bits=16 changes both"
    elif details.external_data:
        what, hint = "an external data file", anew
    elif details.extended_l2:
        what, hint = "extended L2 entries", anew
    else:
        return
    raise RefusedError(
        f"{printable(path)} has {what}, and a qcow2 of version 2 cannot have that", hint=hint, path=path
    )
