"""What is suspicious about an image in itself, whatever it refers to: format by format, within bounds.

Everything here was read before (`Header`), or is read now by `at`, from a source with a bound of its own.
"""

from __future__ import annotations

import struct
from array import array
from collections import Counter
from collections.abc import Iterator

from imgtool.errors import ImageFormatError
from imgtool.image.findings import Finding, finding
from imgtool.image.formats.base import SECTOR, Header
from imgtool.image.formats.luks import LuksDetails
from imgtool.image.formats.parallels import ParallelsDetails
from imgtool.image.formats.qcow import QcowDetails
from imgtool.image.formats.qcow2 import EXT_CRYPTO, EXT_DATA_FILE, Qcow2Details
from imgtool.image.formats.qed import QedDetails
from imgtool.image.formats.raw import RawDetails
from imgtool.image.formats.vhdx import VhdxDetails
from imgtool.image.formats.vmdk import VmdkDetails
from imgtool.image.formats.vpc import VpcDetails
from imgtool.image.names import printable
from imgtool.image.source import CutShortError, Source

TABLES_LIMIT = 1 << 20
"""Bytes of L1 and L2 tables that are looked at; enough for 8 GiB of guest data in clusters of 64 KiB."""

MANY_SNAPSHOTS = 1000
MANY_BITMAPS = 1000
HUGE_DISK = 1 << 50
INFLATION = 250
"""A file that unfolds to more than this many times its size is a bomb: zeros, which compress as well as that, are
never stored by QEMU."""
_INFLATION_FROM = 1 << 30
_OFFSET_MASK = 0x00FFFFFFFFFFFE00
_COMPRESSED = 1 << 62


def in_raw(details: RawDetails, source: Source) -> Iterator[Finding]:
    """For a disk without a header: what its first sectors show."""
    if "luks2" in details.contents:
        yield finding("luks2", "the disk is encrypted by LUKS version 2, which QEMU cannot read")
    if details.partitions is None and not details.contents and source.at(510, 2) == b"\x55\xaa":
        yield finding("partition-table-odd", "the first sector is marked as a partition table, but is none")
    elif details.partitions == "gpt" and not _protected(source.at(446, 66)):
        yield finding("partition-table-odd", "the GPT's protective MBR is missing, or lists other partitions as well")
    if _ends_as_vhd(source):
        yield finding("fixed-vhd", "the last sector is the footer of a fixed VHD; its format would be vpc")


def _protected(table: bytes) -> bool:
    """Whether an MBR holds nothing but the one partition that keeps others off a GPT, as UEFI wants it."""
    entries = [table[at : at + 16] for at in range(0, 64, 16)]
    first = entries[0]
    sound = first[4] == 0xEE and first[1:4] == b"\0\x02\0" and first[8:12] == b"\x01\0\0\0"
    return sound and first[0] in (0, 0x80) and not any(entry[4] for entry in entries[1:])


def in_header(header: Header, source: Source) -> Iterator[Finding]:
    """For an image in any format but raw."""
    details = header.details
    if header.virtual_size >= HUGE_DISK:
        yield finding("huge-disk", f"the disk has {header.virtual_size} bytes")
    if isinstance(details, Qcow2Details):
        yield from _in_qcow2(header, details, source)
    elif isinstance(details, VmdkDetails):
        yield from _in_vmdk(details, source)
    elif isinstance(details, VhdxDetails) and details.log_pending:
        yield finding("log-pending", "the image names a log, which may have to be replayed first")
    elif isinstance(details, QedDetails | ParallelsDetails) and details.dirty:
        yield finding("not-closed", "the image was not closed properly")
    elif isinstance(details, VpcDetails):
        if not details.known_creator and details.size // SECTOR * SECTOR != header.virtual_size:
            yield finding("size-doubtful", f"{header.virtual_size} bytes until QEMU 9, {details.size} since")
    elif isinstance(details, LuksDetails):
        yield finding("encrypted", f"the disk is encrypted by {details.cipher}-{details.mode}")
    if isinstance(details, QcowDetails) and details.encryption:
        yield finding("encrypted", "the disk is encrypted by AES-CBC, which is weak")
    if header.format in ("qcow", "qed"):
        yield finding(
            "obsolete-format", f"{header.format} images have not been written for years: convert it to qcow2"
        )


def _in_qcow2(header: Header, details: Qcow2Details, source: Source) -> Iterator[Finding]:
    if details.unknown_incompatible:
        names = [name for name in details.features if name not in ("dirty", "corrupt", "compression-type")]
        yield finding(
            "unknown-features", f"the image needs features that QEMU does not know ({printable(', '.join(names))})"
        )
    counts = Counter(extension.type for extension in details.extensions)
    for kind, count in counts.items():
        if count > 1:
            yield finding("extension-twice", f"header extension {kind:#010x} is there {count} times")
    if details.encryption == "luks" and not counts[EXT_CRYPTO]:
        yield finding("no-crypto-header", "the image is encrypted by LUKS, but names no LUKS header")
    elif details.encryption:
        yield finding("encrypted", f"the disk is encrypted ({details.encryption})")
    if details.external_data and not counts[EXT_DATA_FILE]:
        yield finding("data-file-missing", "the image keeps its data in another file, but does not name it")
    if details.corrupt:
        yield finding("marked-corrupt", "QEMU found the image corrupt; it can be read, and repaired by check -r")
    if details.dirty:
        yield finding("not-closed", "the image was not closed properly; QEMU checks it when it next writes to it")
    if header.snapshots > MANY_SNAPSHOTS:
        yield finding("many-snapshots", f"{header.snapshots} internal snapshots")
    if details.bitmaps > MANY_BITMAPS:
        yield finding("many-bitmaps", f"{details.bitmaps} bitmaps")
    yield from _second_format(details.cluster_size, source)
    yield from _in_tables(details, source)


def _second_format(cluster_size: int, source: Source) -> Iterator[Finding]:
    """Signatures of other formats within the first cluster, which belongs to the header alone."""
    if cluster_size > 34816 and source.at(32769, 5) == b"CD001":
        yield finding("two-formats", "the qcow2 is an ISO 9660 file system as well")
    if cluster_size > 520 and source.at(512, 8) == b"EFI PART":
        yield finding("two-formats", "the qcow2 is a disk with a GPT as well")
    if _ends_as_vhd(source):
        yield finding("two-formats", "the qcow2 is a VHD of fixed size as well")


def _ends_as_vhd(source: Source) -> bool:
    return source.size_known and source.size >= SECTOR and source.at(source.size - SECTOR, 8) == b"conectix"


def _in_tables(details: Qcow2Details, source: Source) -> Iterator[Finding]:
    """Whether the tables that map the disk to the file are such as QEMU writes them, as far as they are looked at."""
    size = source.size
    places = (
        ("L1 table", details.l1_offset, details.l1_entries * 8),
        (
            "reference count table",
            details.refcount_table_offset,
            details.refcount_table_clusters * details.cluster_size,
        ),
    )
    for name, offset, length in places:
        if length and offset + (8 if name == "L1 table" else 0) > size:
            yield finding("tables-outside", f"the {name} lies at offset {offset:#x} of a file of {size} bytes")
            return
    try:
        yield from _mapped(details, source.again(2 * TABLES_LIMIT), size)
    except CutShortError:
        return  # the stream was cut short: the tables that were there are in order
    except ImageFormatError as error:
        yield finding("tables-outside", error.message)


def _mapped(details: Qcow2Details, source: Source, size: int) -> Iterator[Finding]:
    entries = _table(source, details.l1_offset, min(details.l1_entries, TABLES_LIMIT // 2 // 8))
    tables = [entry & _OFFSET_MASK for entry in entries if entry & _OFFSET_MASK]
    if len(set(tables)) != len(tables):
        yield finding("shared-clusters", "several parts of the disk are mapped by one table")
        return
    if tables and max(tables) >= size:
        yield finding("tables-outside", f"an L2 table lies at offset {max(tables):#x} of a file of {size} bytes")
        return
    per_table = details.cluster_size // (16 if details.extended_l2 else 8)
    seen: set[int] = set()
    stored, looked = 0, 0.0
    for offset in tables[: max(1, TABLES_LIMIT // 2 // details.cluster_size)]:
        table = _table(source, offset, min(per_table, TABLES_LIMIT // 2 // 16) * (2 if details.extended_l2 else 1))
        found = [entry for entry in (table[::2] if details.extended_l2 else table) if entry]
        looked += len(table) * 8 / details.cluster_size
        hosts = [
            entry if entry & _COMPRESSED else entry & _OFFSET_MASK
            for entry in found
            if entry & _COMPRESSED or entry & _OFFSET_MASK
        ]
        stored += len(hosts)
        before = len(seen)
        seen.update(hosts)
        if len(seen) - before != len(hosts) and not details.external_data:
            yield finding("shared-clusters", "several clusters of the disk lie at one place in the file")
            return
    if looked:
        unfolded = int(stored * details.cluster_size * len(tables) / looked)
        if unfolded > max(_INFLATION_FROM, INFLATION * size) and not details.external_data:
            yield finding("inflated", f"a file of {size} bytes unfolds to some {unfolded}")


def _table(source: Source, offset: int, entries: int) -> array[int]:
    table = array("Q", source.at(offset, entries * 8))
    if struct.pack("=H", 1) == b"\1\0":
        table.byteswap()
    return table


_DESCRIPTOR_TYPES = (b"monolithicSparse", b"streamOptimized")


def _in_vmdk(details: VmdkDetails, source: Source) -> Iterator[Finding]:
    """A disk in one file carries a descriptor too, which QEMU ignores and other programs obey."""
    if details.extents or not source.head.startswith(b"KDMV"):
        return
    offset, sectors = struct.unpack_from("<QQ", source.head, 28)
    text = source.at(offset * SECTOR, min(sectors * SECTOR, 64 << 10)).partition(b"\0")[0] if offset else b""
    for line in text.splitlines():
        word, _, value = line.partition(b"=")
        if word.strip() == b"createType" and value.strip().strip(b'"') not in _DESCRIPTOR_TYPES:
            yield finding("descriptor-odd", "the embedded descriptor is not one of a disk in one file")
        elif line.startswith((b"RW ", b"RDONLY ", b"NOACCESS ")) and b"/" in line:
            yield finding("descriptor-odd", "the embedded descriptor names files elsewhere")
    if source.at(56, 8) == b"\xff" * 8:
        start = source.sectors * SECTOR - 2 * SECTOR
        if source.at(start + 4, 8) != source.head[4:12] or source.at(start + 28, 16) != source.head[28:44]:
            yield finding("footer-differs", "the header at the end of the file is another one than at its beginning")
