"""Files that a running VM has open and that are not where they were: deleted, replaced or moved behind its back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Literal, NamedTuple

import msgspec

from imgtool.errors import RefusedError
from imgtool.image.names import pasted, printable
from imgtool.machine.vm import HeldImage, State


class LostFile(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """An image of a running VM that its name does not lead to any more."""

    code: Literal["deleted", "replaced", "moved"]
    """deleted: it has no name, and goes with the VM. replaced: the same, and its name is another file's now. moved:
    it has another name."""
    severity: Literal["error", "warning"]
    """error: what it holds is lost when the VM ends. warning: the VM will not find it when it is started again."""
    path: str
    """Its name when the VM was started."""
    message: str
    """What was found, in words."""
    hint: str
    """What to do next."""


class _Open(NamedTuple):
    place: str
    """In /proc."""
    name: str
    links: int


def lost_files(name: str, pid: int, state: State) -> tuple[LostFile, ...]:
    """Those of the VM `name`, whose QEMU is `pid`. An image that QEMU has closed in the meantime is none; nor is one
    where /proc does not show what QEMU has open."""
    astray = [image for image in state.images if not _is_there(image)]
    if not astray:
        return ()
    open_files = dict(_open_files(pid))
    found = {image.path: open_files.get((image.device, image.inode)) for image in astray}
    return tuple(_lost(name, path, held) for path, held in found.items() if held is not None)


def refuse_loss(name: str, pid: int, state: State) -> None:
    """RefusedError when what the guest has written goes with its VM, since the disk's name is gone."""
    written = {image.path for image in state.images if image.writable}
    for file in lost_files(name, pid, state):
        if file.severity == "error" and file.path in written:
            raise RefusedError(file.message, hint=f"{file.hint}; --force ends it all the same", path=file.path)


def _is_there(image: HeldImage) -> bool:
    try:
        status = os.stat(image.path)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == (image.device, image.inode)


def _open_files(pid: int) -> Iterator[tuple[tuple[int, int], _Open]]:
    """By device and inode."""
    folder = f"/proc/{pid}/fd"
    try:
        numbers = os.listdir(folder)
    except OSError:
        return  # it has ended in the meantime, or has become another user
    for number in numbers:
        place = f"{folder}/{number}"
        try:
            status = os.stat(place)
            yield (status.st_dev, status.st_ino), _Open(place, os.readlink(place), status.st_nlink)
        except OSError:
            continue


def _lost(name: str, path: str, held: _Open) -> LostFile:
    shown = printable(path)
    replaced = os.path.lexists(path)
    if held.links:
        what = "is another file now" if replaced else "is not there any more"
        return LostFile(
            code="moved",
            severity="warning",
            path=path,
            message=f"{shown} {what}: the VM has {printable(held.name)}",
            hint=f"give it its name back, or start the VM with {pasted(held.name)} next time",
        )
    saved = pasted(path + ".saved")
    return LostFile(
        code="replaced" if replaced else "deleted",
        severity="error",
        path=path,
        message=f"{shown} was {'replaced' if replaced else 'deleted'}: what the VM has there is lost when it ends",
        hint=f"`imgtool vm pause {name} && cp --sparse=always {held.place} {saved}` saves it",
    )
