"""Which format an image is in, found as QEMU finds it when nobody says: by magic numbers in the first 512 bytes.

All of QEMU's probes that look at bytes give the same score, except cloop's, which counts less. So a file may satisfy
two of them, for VDI's magic number is not at the beginning as all others are; which one QEMU takes is an accident.
"""

from __future__ import annotations

from imgtool.image.formats import magics

_FIRST_FOUR = {
    magics.QED: "qed",
    magics.VMDK: "vmdk",
    magics.VMDK_OLD: "vmdk",
}
_PARALLELS_VERSION = (2).to_bytes(4, "little")


def candidates(head: bytes, *, name: str | None = None) -> list[str]:
    """Every format whose probe these first bytes satisfy, the likeliest first; empty for raw. `name`, where it is
    known, decides about dmg alone, of which QEMU knows nothing but its suffix."""
    head = head[:512].ljust(512, b"\0")
    found = []
    magic = head[:4]
    if magic == magics.QCOW2:
        version = int.from_bytes(head[4:8])
        if version:
            found.append("qcow2" if version >= 2 else "qcow")
    elif magic in _FIRST_FOUR:
        found.append(_FIRST_FOUR[magic])
    elif head.startswith((magics.VPC, magics.VHDX)):
        found.append("vpc" if head.startswith(magics.VPC) else "vhdx")
    elif head.startswith(magics.LUKS + b"\0\1"):
        found.append("luks")
    elif head.startswith((magics.PARALLELS_OLD, magics.PARALLELS_EXTENDED)) and head[16:20] == _PARALLELS_VERSION:
        found.append("parallels")
    elif _is_bochs(head):
        found.append("bochs")
    elif _is_vmdk_text(head):
        found.append("vmdk")
    if _is_vdi(head):
        found.append("vdi")
    if head.startswith(magics.CLOOP):
        found.append("cloop")
    if name is not None and name.endswith(".dmg") and len(name) > 4 and not found:
        found.append("dmg")
    return found


def _is_vdi(head: bytes) -> bool:
    return head[magics.VDI_AT : magics.VDI_AT + 4] == magics.VDI


def _is_bochs(head: bytes) -> bool:
    if not head.startswith(magics.BOCHS):
        return False
    from imgtool.image.formats import bochs

    return bochs.matches(head)


def _is_vmdk_text(head: bytes) -> bool:
    if head[:1] not in (b"#", b" ", b"v"):  # a comment, a blank line, or the version
        return False
    from imgtool.image.formats import vmdk

    return vmdk.matches_text(head)
