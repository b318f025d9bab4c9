"""Which format an image is in, found as QEMU finds it when nobody says: by magic numbers in the first 512 bytes.

All of QEMU's probes that look at bytes give the same score, except cloop's, which counts less. So a file may satisfy
two of them, for VDI's magic number is not at the beginning as all others are; which one QEMU takes is an accident.
"""

from __future__ import annotations

from imgtool.image.formats import bochs, cloop, luks, parallels, qcow2, qed, vdi, vhdx, vmdk, vpc

_FIRST_FOUR = {
    qed.MAGIC: "qed",
    vmdk.MAGIC: "vmdk",
    vmdk.MAGIC_OLD: "vmdk",
}
_PARALLELS_VERSION = (2).to_bytes(4, "little")


def candidates(head: bytes, *, name: str | None = None) -> list[str]:
    """Every format whose probe these first bytes satisfy, the likeliest first; empty for raw. `name`, where it is
    known, decides about dmg alone, of which QEMU knows nothing but its suffix."""
    head = head[:512].ljust(512, b"\0")
    found = []
    magic = head[:4]
    if magic == qcow2.MAGIC:
        version = int.from_bytes(head[4:8])
        if version:
            found.append("qcow2" if version >= 2 else "qcow")
    elif magic in _FIRST_FOUR:
        found.append(_FIRST_FOUR[magic])
    elif head.startswith((vpc.MAGIC, vhdx.MAGIC)):
        found.append("vpc" if head.startswith(vpc.MAGIC) else "vhdx")
    elif head.startswith(luks.MAGIC + b"\0\1"):
        found.append("luks")
    elif head.startswith((parallels.MAGIC_OLD, parallels.MAGIC_EXTENDED)) and head[16:20] == _PARALLELS_VERSION:
        found.append("parallels")
    elif bochs.matches(head):
        found.append("bochs")
    elif vmdk.matches_text(head):
        found.append("vmdk")
    if head[vdi.MAGIC_AT : vdi.MAGIC_AT + 4] == vdi.MAGIC:
        found.append("vdi")
    if head.startswith(cloop.MAGIC):
        found.append("cloop")
    if name is not None and name.endswith(".dmg") and len(name) > 4 and not found:
        found.append("dmg")
    return found
