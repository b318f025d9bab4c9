"""One chain, from an image down to its base, as QEMU would open it; and the guard in front of every program that
opens one.

qemu-img hangs, or eats gigabytes, on a backing cycle (check, convert, map, compare), blocks on a FIFO, and
crashes on chains of over a thousand images. Headers are read natively here, and nothing is started.
"""

from __future__ import annotations

import os
from itertools import pairwise

from msgspec.structs import replace

from imgtool.chain.findings import Finding, finding
from imgtool.chain.graph import Image
from imgtool.chain.link import MAX_DEPTH, UNUSABLE
from imgtool.chain.look import LOCAL_PROTOCOLS, Identity, Looker, identity
from imgtool.chain.scan import absolute
from imgtool.chain.trust import trusted
from imgtool.errors import (
    ChainError,
    ImageError,
    ImageFormatError,
    ImageNotFoundError,
    ImageUnreadableError,
    ImgtoolError,
)
from imgtool.image.header import FORMATS
from imgtool.image.names import PathLike, pasted, printable
from imgtool.image.policy import Policy, approve, current
from imgtool.image.reference import parse

_HARD_LIMIT = 100_000
"""Images a walk looks at before it gives up on a chain that only ever grows deeper."""


def walk(path: PathLike, *, format: str | None = None, policy: Policy | None = None) -> list[Image]:
    """The images of the backing chain of `path`: the image itself first, its base last.

    Each parent is read in the format its child names, as QEMU does. The last node may be a missing, unusable or
    remote one, which its findings say. A chain that leads back into itself ends before the image that it would reach
    again, and its last node carries the finding `cycle` (or `self-reference`). With `policy`, what it does not let an
    image refer to is not opened: the chain ends with its node, and the image above carries the finding `not-trusted`.
    Raises nothing for what is found.
    """
    looker = Looker()
    seen: dict[Identity, str] = {}
    chain: list[Image] = []
    image, file = looker.at(absolute(path), format=format)
    while True:
        if file is not None:
            seen[file] = image.path
        chain.append(image)
        backing = image.backing
        if backing is None or len(chain) == _HARD_LIMIT:
            break
        outside = backing.path is not None and policy is not None and not trusted(image, backing.path, policy)
        if backing.path is None or outside:
            remote = Image(path=backing.path or backing.reference)
            image.parent = remote.path
            remote.children = [image.path]
            chain.append(remote)
            break
        parent, file = looker.at(backing.path, format=backing.format if backing.format in FORMATS else None)
        if file is not None and file in seen:
            image.parent = seen[file]
            image.add(_circle(image, seen[file]))
            break
        image.parent = parent.path
        parent.children = [image.path]
        image = parent
    for depth, node in enumerate(reversed(chain)):
        node.depth = depth
    return chain


def guard(
    path: PathLike,
    *,
    format: str | None = None,
    opens_parents: bool = True,
    max_depth: int | None = MAX_DEPTH,
    policy: Policy | None = None,
) -> list[Image]:
    """The chain of `path`, as `walk` returns it, provided that it is safe to give it to a QEMU program.

    PolicyError when an image of the chain refers to what `policy` (None: the one in force) does not allow; without
    `opens_parents` only what `path` itself refers to counts.

    ImageNotFoundError, ImageUnreadableError or ImageFormatError when `path` itself cannot be used. ChainError when
    the chain goes in a circle or is deeper than `max_depth` (None: any depth), and, with `opens_parents`, when a
    backing file or data file is missing or cannot be used. Whether a parent behind a protocol can be used is not
    looked at.
    """
    policy = replace(policy or current(), max_depth=_HARD_LIMIT)
    chain = walk(path, format=format, policy=policy)
    top = chain[0]
    for code, kind in _TOP_ERRORS.items():
        for found in top.findings:
            if found.code == code:
                raise kind(found.message, path=top.path, hint=_TOP_HINTS.get(code))
    refused: ImgtoolError | None = None
    try:
        approve(path, policy, format=format, parents=opens_parents)
    except (ChainError, ImageFormatError) as error:
        refused = error  # what follows may have a better message
    last = chain[-1]
    for found in last.findings:
        if found.code in ("cycle", "self-reference"):
            raise ChainError(
                f"the backing chain of {printable(top.path)} never ends: {found.message}",
                path=top.path,
                hint=f"`imgtool rebase -u --force -b BASE -F FORMAT {pasted(last.path)}` breaks the cycle",
            )
    _check_leaves(chain, opens_parents=opens_parents)
    if max_depth is not None and len(chain) > max_depth:
        raise ChainError(
            f"the backing chain of {printable(top.path)} is {len(chain)} images deep; {max_depth} are safe",
            path=top.path,
            hint="`imgtool convert` makes one image of a whole chain",
        )
    if opens_parents:
        _check_parents(chain)
    if refused is not None:
        raise refused
    return chain


_TOP_ERRORS: dict[str, type[ImageError]] = {
    "missing": ImageNotFoundError,
    "not-a-file": ImageUnreadableError,
    "unreadable": ImageUnreadableError,
    "malformed": ImageFormatError,
}
_TOP_HINTS = {"not-a-file": "only regular files and block devices hold images"}


def _check_leaves(chain: list[Image], *, opens_parents: bool) -> None:
    """The files of a `json:` tree of several: none of them may lead back into the chain, or be what blocks."""
    top, last = chain[0], chain[-1]
    if len(chain) < 2 or last.path.startswith("/") or last.children == ():
        return
    child = chain[-2]
    try:
        leaves = parse(os.fsencode(last.path), directory=os.path.dirname(child.path)).leaves
    except ImageFormatError:
        return  # `_check_parents` says so
    files = {_identity_at(image.path) for image in chain[:-1]} - {None}
    for leaf in leaves:
        if leaf.path is None or leaf.protocol not in LOCAL_PROTOCOLS:
            continue
        below = walk(leaf.path, format=leaf.format if leaf.format in FORMATS else None)
        turns = any(found.code in ("cycle", "self-reference") for found in below[-1].findings)
        if turns or any(_identity_at(image.path) in files for image in below):
            raise ChainError(
                f"the backing chain of {printable(top.path)} never ends: {printable(leaf.path)} leads back into it",
                path=top.path,
                hint=f"`imgtool rebase -u --force -b BASE -F FORMAT {pasted(child.path)}` breaks the cycle",
            )
        if opens_parents:
            _check_parents([child, *below])


def _identity_at(path: str) -> Identity | None:
    try:
        return identity(os.stat(path))
    except (OSError, ValueError):
        return None


def _check_parents(chain: list[Image]) -> None:
    top = chain[0]
    for child, node in pairwise(chain):
        for found in node.findings:
            if found.code in UNUSABLE:
                raise ChainError(
                    f"the backing chain of {printable(top.path)} is broken: {found.message}",
                    path=top.path,
                    hint=f"{printable(child.path)} names it as its backing file; "
                    f"`imgtool chain show {pasted(child.path)}` shows the chain",
                )
    looker = Looker()
    for image in chain:
        for found in image.findings:
            if found.code == "reference-malformed":
                raise ChainError(
                    f"the backing chain of {printable(top.path)} is broken: {printable(image.path)}: {found.message}",
                    path=top.path,
                )
        if not image.data_file or image.data_file.path is None:
            continue
        file, _ = looker.at(image.data_file.path, format="raw")
        for found in file.findings:
            if found.code in UNUSABLE:
                raise ChainError(
                    f"the external data file of {printable(image.path)} cannot be used: {found.message}",
                    path=top.path,
                )


def _circle(image: Image, back_at: str) -> Finding:
    name = printable(image.path)
    if back_at == image.path:
        return finding("self-reference", f"{name} is its own backing file")
    return finding("cycle", f"{name} has the backing file {printable(back_at)}, which stands on it")
