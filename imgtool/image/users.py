"""Who has an image open, in words: for errors that refuse to go on, and what they advise."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from imgtool.image.locks import IMGTOOL, holders
from imgtool.image.names import printable

_VM = re.compile(rb"socket,id=qmp,path=(?P<folder>/.*/imgtool(?:-\d+)?/vm/(?P<name>[A-Za-z0-9][\w.+-]*))/qmp\.sock,")
"""The monitor of a VM that imgtool runs, in QEMU's command line."""


class Users(NamedTuple):
    """Those that `imgtool.image.locks.holders` finds."""

    names: str
    """`qemu-img (pid 12), …`; empty where nobody shows."""
    ending: str
    """What to do before the image can be had, the beginning of a hint."""

    @property
    def by(self) -> str:
        """For a sentence: ` by NAMES`, or nothing."""
        return f" by {self.names}" if self.names else ""


def users_of(path: str) -> Users:
    found = holders(path)
    names = ", ".join(f"{printable(holder.program)} (pid {holder.pid})" for holder in found)
    vms = [vm_of(holder.pid) for holder in found]
    if vms and all(vms):
        commands = " and ".join(f"`imgtool vm stop {vm}`" for vm in vms)
        return Users(names, f"{commands} {'ends it' if len(vms) == 1 else 'end them'}")
    if found and all(holder.program == IMGTOOL for holder in found):
        return Users(names, "wait until that is done")
    return Users(names, "end that process first")


def vm_of(pid: int) -> str | None:
    """The name of this user's VM that the process is the QEMU of; None when it is another program, or another's."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            found = _VM.search(file.read())
        if found is None or os.stat(found["folder"]).st_uid != os.getuid():
            return None
    except OSError:
        return None
    return found["name"].decode()
