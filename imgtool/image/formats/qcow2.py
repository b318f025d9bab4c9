"""qcow2, versions 2 and 3. Source: docs/interop/qcow2.txt in QEMU, and what `qemu-img info` accepts."""

from __future__ import annotations

import struct
from typing import NamedTuple

import msgspec

from imgtool.image.formats import magics
from imgtool.image.formats.base import Details, Header, bytes_of, refuse, until_nul
from imgtool.image.source import Source

_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_HEADER_BYTES = 112  # with the compression type and its padding
_COMPRESSION_TYPE_AT = 104
_EXTENSION = struct.Struct(">II")
_BITMAPS = struct.Struct(">IIQQ")
_CRYPTO = struct.Struct(">QQ")

EXT_END = 0
EXT_BACKING_FORMAT = 0xE2792ACA
EXT_FEATURE_NAMES = 0x6803F857
EXT_BITMAPS = 0x23852875
EXT_CRYPTO = 0x0537BE77
EXT_DATA_FILE = 0x44415441

MAX_EXTENSIONS = 1000
"""QEMU has no bound but the first cluster, which has room for 262,144 empty extensions; it writes at most five."""
_MAX_BACKING_NAME = 1023
_MAX_BACKING_FORMAT = 15
_MAX_DATA_FILE_NAME = 65536
_MAX_L1_BYTES = 32 << 20
_MAX_REFCOUNT_TABLE_BYTES = 8 << 20
MAX_SNAPSHOTS = 65536
_MAX_BITMAPS = 65535
_SNAPSHOT_BYTES = 40

DIRTY, CORRUPT, DATA_FILE, COMPRESSION, EXTENDED_L2 = (1 << bit for bit in range(5))
_INCOMPATIBLE = ("dirty", "corrupt", "data-file", "compression-type", "extended-l2")
_COMPATIBLE = ("lazy-refcounts",)
_AUTOCLEAR = ("bitmaps", "data-file-raw")
_ENCRYPTIONS = (None, "aes", "luks")
_LUKS = 2
_COMPRESSIONS = ("zlib", "zstd")


class Extension(msgspec.Struct, frozen=True, array_like=True):
    """A header extension: its type, and where its data lies in the file."""

    type: int
    offset: int
    length: int


class Qcow2Details(Details, frozen=True, kw_only=True, rename="kebab"):
    version: int
    cluster_size: int
    refcount_bits: int = 16
    compression: str = "zlib"
    encryption: str | None = None
    """`aes` (the old method) or `luks`."""
    incompatible: int = 0
    """Feature bits; what does not know one of these must not open the image."""
    compatible: int = 0
    autoclear: int = 0
    feature_table: bytes = b""
    """The names table as it stands: 48 bytes per feature, see `feature_names`."""
    extensions: tuple[Extension, ...] = ()
    header_length: int = 72
    l1_offset: int = 0
    l1_entries: int = 0
    refcount_table_offset: int = 0
    refcount_table_clusters: int = 0
    snapshots_offset: int = 0
    backing_offset: int = 0
    bitmaps: int = 0
    bitmap_directory: tuple[int, int] | None = None
    """Offset and bytes."""
    crypto_header: tuple[int, int] | None = None
    """Offset and bytes of the LUKS header."""

    @property
    def dirty(self) -> bool:
        return bool(self.incompatible & DIRTY)

    @property
    def corrupt(self) -> bool:
        return bool(self.incompatible & CORRUPT)

    @property
    def external_data(self) -> bool:
        return bool(self.incompatible & DATA_FILE)

    @property
    def extended_l2(self) -> bool:
        return bool(self.incompatible & EXTENDED_L2)

    @property
    def lazy_refcounts(self) -> bool:
        return bool(self.compatible & 1)

    @property
    def data_file_raw(self) -> bool:
        return bool(self.autoclear & 2)

    @property
    def unknown_incompatible(self) -> int:
        """The bits for which QEMU refuses the image."""
        return self.incompatible >> len(_INCOMPATIBLE) << len(_INCOMPATIBLE)

    @property
    def features(self) -> list[str]:
        """The names of all feature bits set; those unknown here are named by the image's own table or by number."""
        named = self.feature_names()
        found = []
        groups = ((self.incompatible, _INCOMPATIBLE), (self.compatible, _COMPATIBLE), (self.autoclear, _AUTOCLEAR))
        for kind, (mask, known) in enumerate(groups):
            for bit in range(mask.bit_length()):
                if mask >> bit & 1:
                    default = f"{('incompatible', 'compatible', 'autoclear')[kind]}-{bit}"
                    found.append(known[bit] if bit < len(known) else named.get((kind, bit), default))
        return found

    def feature_names(self) -> dict[tuple[int, int], str]:
        """The image's own names of features, by kind (0 incompatible, 1 compatible, 2 autoclear) and bit."""
        table = self.feature_table
        names = {}
        for at in range(0, min(len(table) // 48 * 48, 48 * 192), 48):
            name = until_nul(table[at + 2 : at + 48])
            if name:
                names[table[at], table[at + 1]] = name.decode("utf-8", "surrogateescape")
        return names


class _Extensions:
    """What the header extensions say, gathered while walking them."""

    __slots__ = ("backing_format", "bitmap_directory", "bitmaps", "crypto_header", "data_file", "found", "names")

    def __init__(self) -> None:
        self.found: list[Extension] = []
        self.backing_format: str | None = None
        self.data_file: bytes | None = None
        self.names = b""
        self.bitmaps = 0
        self.bitmap_directory: tuple[int, int] | None = None
        self.crypto_header: tuple[int, int] | None = None


class _Fields(NamedTuple):
    """The fixed part of the header, in the file's order."""

    magic: bytes
    version: int
    backing_offset: int
    backing_bytes: int
    cluster_bits: int
    size: int
    encryption: int
    l1_entries: int
    l1_offset: int
    refcounts_offset: int
    refcounts_clusters: int
    snapshots: int
    snapshots_offset: int
    incompatible: int
    compatible: int
    autoclear: int
    refcount_order: int
    header_length: int


def parse(source: Source) -> Header:
    """The header of a qcow2 image, refused where QEMU would refuse it for what its header says. Unknown incompatible
    features are returned, though QEMU refuses them too: `Qcow2Details.unknown_incompatible`."""
    head = source.head.ljust(_HEADER_BYTES, b"\0")
    fields = _read_fields(head)
    cluster_size = 1 << fields.cluster_bits
    compression = head[_COMPRESSION_TYPE_AT] if fields.header_length > _COMPRESSION_TYPE_AT else 0
    _check_features(fields, compression)
    if fields.backing_offset > cluster_size:
        refuse("qcow2", "its backing file's name lies outside the first cluster")
    if fields.encryption >= len(_ENCRYPTIONS):
        refuse("qcow2", f"encryption method {fields.encryption} is unknown")
    _check_tables(fields, cluster_size)
    virtual_size = bytes_of("qcow2", fields.size >> 9)
    extensions = _read_extensions(source, fields, cluster_size)
    backing = _read_backing(source, fields, cluster_size)
    return Header(
        format="qcow2",
        virtual_size=virtual_size,
        backing=backing,
        backing_format=extensions.backing_format if backing is not None else None,
        data_file=extensions.data_file if fields.incompatible & DATA_FILE else None,
        snapshots=fields.snapshots,
        details=Qcow2Details(
            version=fields.version,
            cluster_size=cluster_size,
            refcount_bits=1 << fields.refcount_order,
            compression=_COMPRESSIONS[compression],
            encryption=_ENCRYPTIONS[fields.encryption],
            incompatible=fields.incompatible,
            compatible=fields.compatible,
            autoclear=fields.autoclear,
            feature_table=extensions.names,
            extensions=tuple(extensions.found),
            header_length=fields.header_length,
            l1_offset=fields.l1_offset,
            l1_entries=fields.l1_entries,
            refcount_table_offset=fields.refcounts_offset,
            refcount_table_clusters=fields.refcounts_clusters,
            snapshots_offset=fields.snapshots_offset,
            backing_offset=fields.backing_offset,
            bitmaps=extensions.bitmaps,
            bitmap_directory=extensions.bitmap_directory,
            crypto_header=extensions.crypto_header,
        ),
    )


def _read_fields(head: bytes) -> _Fields:
    """Version 2 has no fields past the snapshot table's: they get the values it implies."""
    fields = _Fields._make(_HEADER.unpack_from(head))
    if fields.magic != magics.QCOW2:
        refuse("qcow2", "it does not begin with qcow2's magic number")
    if fields.version not in (2, 3):
        refuse("qcow2", f"version {fields.version} is unknown")
    if not 9 <= fields.cluster_bits <= 21:
        refuse("qcow2", f"clusters of 2^{fields.cluster_bits} bytes; 512 bytes to 2 MiB are possible")
    if fields.version == 2:
        return fields._replace(incompatible=0, compatible=0, autoclear=0, refcount_order=4, header_length=72)
    if not 104 <= fields.header_length <= 1 << fields.cluster_bits:
        refuse("qcow2", f"a header of {fields.header_length} bytes")
    return fields


def _check_features(fields: _Fields, compression: int) -> None:
    if compression >= len(_COMPRESSIONS):
        refuse("qcow2", f"compression type {compression} is unknown")
    if bool(fields.incompatible & COMPRESSION) != bool(compression):
        refuse("qcow2", "its compression type and the feature bit for it contradict each other")
    if fields.incompatible & EXTENDED_L2 and fields.cluster_bits < 14:
        refuse("qcow2", "clusters too small for extended L2 entries")
    if fields.refcount_order > 6:
        refuse("qcow2", f"reference counts of 2^{fields.refcount_order} bits; at most 64 are possible")


def _check_tables(fields: _Fields, cluster_size: int) -> None:
    """The sizes and places of the tables that the header names."""
    refcounts, clusters = fields.refcounts_offset, fields.refcounts_clusters
    _check_table("reference count table", refcounts, clusters, cluster_size, _MAX_REFCOUNT_TABLE_BYTES)
    most = _SNAPSHOT_BYTES * MAX_SNAPSHOTS
    _check_table("snapshot table", fields.snapshots_offset, fields.snapshots, _SNAPSHOT_BYTES, most, cluster_size)
    _check_table("L1 table", fields.l1_offset, fields.l1_entries, 8, _MAX_L1_BYTES, cluster_size)
    if not clusters:
        refuse("qcow2", "it has no reference count table")
    l1_shift = 2 * fields.cluster_bits - (4 if fields.incompatible & EXTENDED_L2 else 3)
    if fields.l1_entries < -(-fields.size >> l1_shift):
        refuse("qcow2", f"an L1 table of {fields.l1_entries} entries is too small for {fields.size} bytes")


def _check_table(what: str, offset: int, entries: int, entry_bytes: int, most: int, cluster_size: int = 0) -> None:
    """Size and place of a table; the reference count table's entries are clusters themselves."""
    if entries > most // entry_bytes:
        refuse("qcow2", f"its {what} is too large ({entries} entries)")
    if offset % (cluster_size or entry_bytes) or offset + entries * entry_bytes >= 1 << 63:
        refuse("qcow2", f"its {what} cannot lie at offset {offset:#x}")


def _read_backing(source: Source, fields: _Fields, cluster_size: int) -> bytes | None:
    offset, length = fields.backing_offset, fields.backing_bytes
    if not offset:
        return None
    if length > min(_MAX_BACKING_NAME, cluster_size - offset):
        refuse("qcow2", f"its backing file's name is too long ({length} bytes)")
    return until_nul(source.at(offset, length)) or None


def _read_extensions(source: Source, fields: _Fields, cluster_size: int) -> _Extensions:
    """They fill the space between the header and the backing file's name."""
    offset, end = fields.header_length, fields.backing_offset or cluster_size
    result = _Extensions()
    found = result.found
    while offset < end:
        kind, length = _EXTENSION.unpack(source.at(offset, 8))
        offset += 8
        if offset > end or length > end - offset:
            refuse("qcow2", f"header extension {kind:#x} is too long ({length} bytes)")
        if kind == EXT_END:
            break
        found.append(Extension(kind, offset, length))
        if len(found) > MAX_EXTENSIONS:
            refuse("qcow2", f"it has over {MAX_EXTENSIONS} header extensions")
        if kind == EXT_BACKING_FORMAT:
            result.backing_format = _read_backing_format(source, offset, length)
        elif kind == EXT_FEATURE_NAMES:
            result.names = source.at(offset, min(length, 48 * 192))
        elif kind == EXT_DATA_FILE:
            result.data_file = _read_data_file(source, offset, length)
        elif kind == EXT_BITMAPS:
            _read_bitmaps(source, offset, length, cluster_size, fields.autoclear, result)
        elif kind == EXT_CRYPTO:
            result.crypto_header = _read_crypto(source, offset, length, cluster_size, fields.encryption)
        offset += length + 7 & ~7
    return result


def _read_backing_format(source: Source, offset: int, length: int) -> str | None:
    if length > _MAX_BACKING_FORMAT:
        refuse("qcow2", f"its backing format's name is too long ({length} bytes)")
    return until_nul(source.at(offset, length)).decode("utf-8", "surrogateescape") or None


def _read_crypto(source: Source, offset: int, length: int, cluster_size: int, encryption: int) -> tuple[int, int]:
    if encryption != _LUKS or length != _CRYPTO.size:
        refuse("qcow2", "its encryption header extension is wrong")
    start, size = _CRYPTO.unpack(source.at(offset, length))
    if start % cluster_size:
        refuse("qcow2", "its encryption header does not begin at a cluster")
    return start, size


def _read_data_file(source: Source, offset: int, length: int) -> bytes:
    """QEMU bounds this name by the cluster alone; no system opens one longer than PATH_MAX."""
    name = until_nul(source.at(offset, min(length, _MAX_DATA_FILE_NAME)))
    if len(name) == _MAX_DATA_FILE_NAME:
        refuse("qcow2", f"its data file's name is too long ({length} bytes)")
    return name


def _read_bitmaps(
    source: Source, offset: int, length: int, cluster_size: int, autoclear: int, result: _Extensions
) -> None:
    if length != _BITMAPS.size:
        refuse("qcow2", "its bitmaps extension is wrong")
    if not autoclear & 1:
        return  # a program that knows no bitmaps has written since: QEMU drops them with a warning
    count, reserved, directory_bytes, directory = _BITMAPS.unpack(source.at(offset, length))
    if reserved or not 0 < count <= _MAX_BITMAPS or directory % cluster_size or directory_bytes > _MAX_BITMAPS * 1024:
        refuse("qcow2", "its bitmaps extension is wrong")
    result.bitmaps = count
    result.bitmap_directory = (directory, directory_bytes)
