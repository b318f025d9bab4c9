"""Raw images: the bytes of the disk and nothing else. What those bytes are can still be recognised."""

from __future__ import annotations

from imgtool.image.formats.base import Details, Header, bytes_of
from imgtool.image.source import Source

_SIGNATURES = (
    ("iso9660", 32769, b"CD001"),
    ("udf", 34817, b"NSR0"),
    ("ext", 1080, b"\x53\xef"),
    ("xfs", 0, b"XFSB"),
    ("btrfs", 65600, b"_BHRfS_M"),
    ("ntfs", 3, b"NTFS    "),
    ("fat", 54, b"FAT1"),
    ("fat", 82, b"FAT32   "),
    ("exfat", 3, b"EXFAT   "),
    ("squashfs", 0, b"hsqs"),
    ("swap", 4086, b"SWAPSPACE2"),
    ("lvm2", 536, b"LVM2 001"),
    ("luks2", 0, b"LUKS\xba\xbe\0\x02"),
)
_GPT_AT = 512
_BOOT_SIGNATURE_AT = 510
_PARTITIONS_AT = 446


class RawDetails(Details, frozen=True, kw_only=True, rename="kebab"):
    """What the disk seems to hold."""

    partitions: str | None = None
    """`gpt` or `mbr`."""
    contents: tuple[str, ...] = ()
    """Names of the file systems (and the like) whose signature is there; an ISO may hold several."""


def parse(source: Source) -> Header:
    """A raw image of any content; QEMU counts a last partial sector as a whole one."""
    return Header(format="raw", virtual_size=bytes_of("raw", source.sectors))


def contents(source: Source) -> RawDetails:
    """What the bytes are when they are taken for a disk."""
    found = []
    for name, at, signature in _SIGNATURES:
        if source.at(at, len(signature)) == signature and name not in found:
            found.append(name)
    return RawDetails(partitions=_partitions(source), contents=tuple(found))


def _partitions(source: Source) -> str | None:
    if source.at(_GPT_AT, 8) == b"EFI PART":
        return "gpt"
    if source.at(_BOOT_SIGNATURE_AT, 2) != b"\x55\xaa":
        return None
    table = source.at(_PARTITIONS_AT, 64)
    entries = [table[at : at + 16] for at in range(0, 64, 16)]
    # a FAT or NTFS boot sector has the same signature, but code where the entries would be
    sound = all(entry[0] in (0, 0x80) for entry in entries)
    return "mbr" if sound and any(entry[4] for entry in entries) else None
