"""qemu-img's JSON output as typed values: a frozen struct for each QAPI type, QAPI's names in snake case.

Source: qapi/block-core.json and qapi/crypto.json of QEMU. A field is required here when every QEMU from 5.2 on gives
it, and None when this one did not. A field no struct knows is kept in `unknown` of the struct it stood in; see
`imgtool.image.qapi_json`.
"""

# No `from __future__ import annotations`: msgspec would compile each annotation when the first answer comes in.

from collections.abc import Mapping
from typing import Any

import msgspec

UNKNOWN = "*"
"""The key `unknown` has inside msgspec; QAPI's names are made of letters, digits, `-` and `_`."""


class QapiStruct(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", omit_defaults=True):
    """The base of the types below."""

    unknown: Mapping[str, Any] = msgspec.field(default_factory=dict, name=UNKNOWN)
    """Fields of a QEMU newer than this module, by their QAPI names."""


class SnapshotInfo(QapiStruct, frozen=True, kw_only=True):
    """SnapshotInfo: one internal snapshot."""

    id: str
    """The snapshot's id within the image: a number, as text."""
    name: str
    """As the user gave it; several may share one."""
    vm_state_size: int
    """Bytes of the saved memory and devices; 0 when only the disk was saved."""
    date_sec: int
    """When it was made: seconds since 1970, UTC."""
    date_nsec: int
    """The nanoseconds that belong to `date-sec`."""
    vm_clock_sec: int
    """Seconds that the guest had run."""
    vm_clock_nsec: int
    """The nanoseconds that belong to `vm-clock-sec`."""
    icount: int | None = None
    """Instructions that the guest had executed, where record/replay counted them."""


class LuksSlot(QapiStruct, frozen=True, kw_only=True):
    """QCryptoBlockInfoLUKSSlot: one of the eight key slots."""

    active: bool
    """Whether a password opens the volume by this slot."""
    key_offset: int
    """Where its key material is: bytes from the header's beginning."""
    iters: int | None = None
    """Rounds of PBKDF2 for its key material; None when it is not in use."""
    stripes: int | None = None
    """Into how many stripes its key material is split; None when it is not in use."""


class LuksInfo(QapiStruct, frozen=True, kw_only=True):
    """QCryptoBlockInfoLUKS: the header of a LUKS volume."""

    cipher_alg: str
    """`aes-256`, …"""
    cipher_mode: str
    """`xts`, `cbc`, …"""
    ivgen_alg: str
    """How initialization vectors are made: `plain64`, `essiv`, …"""
    hash_alg: str
    """The hash of the master key: `sha256`, …"""
    payload_offset: int
    """Where the disk begins: bytes from the header's beginning."""
    master_key_iters: int
    """Rounds of PBKDF2 for the master key's digest."""
    uuid: str
    """The volume's."""
    slots: tuple[LuksSlot, ...]
    """Its key slots, eight of them."""
    ivgen_hash_alg: str | None = None
    """The hash that `essiv` needs; None for other ways."""
    detached_header: bool | None = None
    """Whether the header is in another file than the disk. Since QEMU 9.0."""


class Qcow2Encryption(QapiStruct, frozen=True, kw_only=True):
    """ImageInfoSpecificQCow2Encryption: with the `luks` format all that LuksInfo has, with `aes` nothing more."""

    format: str
    """`luks` or `aes`."""
    cipher_alg: str | None = None
    """As in LuksInfo, which has words for all that follow."""
    cipher_mode: str | None = None
    """As in LuksInfo."""
    ivgen_alg: str | None = None
    """As in LuksInfo."""
    hash_alg: str | None = None
    """As in LuksInfo."""
    payload_offset: int | None = None
    """As in LuksInfo: bytes."""
    master_key_iters: int | None = None
    """As in LuksInfo."""
    uuid: str | None = None
    """As in LuksInfo."""
    slots: tuple[LuksSlot, ...] | None = None
    """As in LuksInfo."""
    ivgen_hash_alg: str | None = None
    """As in LuksInfo."""
    detached_header: bool | None = None
    """As in LuksInfo."""

    def __post_init__(self) -> None:
        if self.format == "luks":
            for field in msgspec.structs.fields(LuksInfo):
                if field.required and getattr(self, field.name) is None:
                    raise ValueError(f"Object missing required field `{field.encode_name}`")


class Qcow2Bitmap(QapiStruct, frozen=True, kw_only=True):
    """Qcow2BitmapInfo: a persistent dirty bitmap."""

    name: str
    """Unique within the image."""
    granularity: int
    """Bytes of the disk that one bit stands for."""
    flags: tuple[str, ...]
    """`in-use`: it was not saved, and is of no use. `auto`: QEMU records writes in it."""


class Qcow2Info(QapiStruct, frozen=True, kw_only=True):
    """ImageInfoSpecificQCow2."""

    compat: str
    """The version of the format: `0.10` or `1.1`."""
    refcount_bits: int
    """Bits of one reference count."""
    compression_type: str
    """`zlib` or `zstd`."""
    data_file: str | None = None
    """The name of the external data file, as it stands in the image."""
    data_file_raw: bool | None = None
    """Whether the external data file is a raw image of the disk by itself."""
    extended_l2: bool | None = None
    """Whether clusters have subclusters. `compat` 1.1 only."""
    lazy_refcounts: bool | None = None
    """Whether reference counts may be behind after a crash. `compat` 1.1 only."""
    corrupt: bool | None = None
    """Whether QEMU found it corrupt and marked it. `compat` 1.1 only."""
    encrypt: Qcow2Encryption | None = None
    """How the disk is encrypted."""
    bitmaps: tuple[Qcow2Bitmap, ...] | None = None
    """Its persistent dirty bitmaps."""


class VmdkExtent(QapiStruct, frozen=True, kw_only=True):
    """VmdkExtentInfo (an ImageInfo before QEMU 8.0): one file of a VMDK."""

    filename: str
    """As QEMU names it."""
    format: str
    """`FLAT`, `SPARSE`, …"""
    virtual_size: int
    """Bytes of the disk that it holds."""
    cluster_size: int | None = None
    """Bytes; None for a flat one."""
    compressed: bool | None = None
    """Whether its clusters are compressed."""


class VmdkInfo(QapiStruct, frozen=True, kw_only=True):
    """ImageInfoSpecificVmdk."""

    create_type: str
    """VMDK's createType: `monolithicSparse`, `streamOptimized`, …"""
    cid: int
    """The content id."""
    parent_cid: int
    """The content id of the parent; 4294967295 for none."""
    extents: tuple[VmdkExtent, ...]
    """In the order of the disk."""


class RbdInfo(QapiStruct, frozen=True, kw_only=True):
    """ImageInfoSpecificRbd."""

    encryption_format: str | None = None
    """`luks`, `luks2` or `luks-any`; None when it is not encrypted."""


class FileInfo(QapiStruct, frozen=True, kw_only=True):
    """ImageInfoSpecificFile."""

    extent_size_hint: int | None = None
    """Bytes that the file system is asked to allocate at a time."""


FORMAT_SPECIFIC: dict[str, type[QapiStruct]] = {
    "qcow2": Qcow2Info,
    "vmdk": VmdkInfo,
    "luks": LuksInfo,
    "rbd": RbdInfo,
    "file": FileInfo,
}
"""ImageInfoSpecificKind, and the type of `data` under each."""


class FormatSpecific(QapiStruct, frozen=True, kw_only=True):
    """ImageInfoSpecific. `data` is the struct that FORMAT_SPECIFIC has for `type`, or a dict for a type not in it."""

    type: str
    """`qcow2`, `vmdk`, `luks`, `rbd`, `file`, or another format of this QEMU."""
    data: Any
    """What only images of this type have."""


class BlockNodeInfo(QapiStruct, frozen=True, kw_only=True):
    """BlockNodeInfo: one node of the block graph."""

    filename: str
    """As QEMU names it: a path, a URL or `json:{…}`."""
    format: str
    """QEMU's driver: `qcow2`, `raw`, `vmdk`, …"""
    virtual_size: int
    """Bytes of the disk that a guest sees."""
    actual_size: int | None = None
    """Bytes allocated on the host; None where that cannot be told."""
    dirty_flag: bool | None = None
    """Whether the image was not closed cleanly."""
    cluster_size: int | None = None
    """Bytes; None for a format without clusters."""
    encrypted: bool | None = None
    """Whether the image is encrypted; None is no."""
    compressed: bool | None = None
    """Whether the image is compressed as a whole; None is no."""
    backing_filename: str | None = None
    """The backing file's name as it stands in the image; None at a base."""
    full_backing_filename: str | None = None
    """Where QEMU looks for the backing file."""
    backing_filename_format: str | None = None
    """The backing format that the image names; None when it names none."""
    snapshots: tuple[SnapshotInfo, ...] | None = None
    """The internal snapshots; None when there are none."""
    format_specific: FormatSpecific | None = None
    """What only images of this format have; None when there is nothing."""
    children: "tuple[BlockChildInfo, ...] | None" = None
    """The nodes below this one, as QEMU 8.0 and later list them (BlockGraphInfo)."""

    @property
    def qcow2(self) -> Qcow2Info | None:
        """What is particular to qcow2, when this is one."""
        data = self.format_specific.data if self.format_specific else None
        return data if isinstance(data, Qcow2Info) else None

    @property
    def vmdk(self) -> VmdkInfo | None:
        """What is particular to VMDK, when this is one."""
        data = self.format_specific.data if self.format_specific else None
        return data if isinstance(data, VmdkInfo) else None


class BlockChildInfo(QapiStruct, frozen=True, kw_only=True):
    """BlockChildInfo: an edge of the block graph."""

    name: str
    """The child's role: `file`, `data-file`, …"""
    info: BlockNodeInfo
    """The child."""


class ImageInfo(BlockNodeInfo, frozen=True, kw_only=True):
    """ImageInfo: what `qemu-img info` says about an image."""

    backing_image: "ImageInfo | None" = None
    """The backing file, in answers about a whole chain."""


class ImageCheck(QapiStruct, frozen=True, kw_only=True):
    """ImageCheck: what `qemu-img check` found. A number of clusters that is 0 is left out by qemu-img, hence None."""

    filename: str
    """As QEMU names it."""
    format: str
    """QEMU's driver: `qcow2`, …"""
    check_errors: int
    """Errors that kept the check from looking at everything."""
    image_end_offset: int | None = None
    """Bytes from the file's beginning to the end of what is in use."""
    corruptions: int | None = None
    """Clusters that are wrong: what a guest reads of them may be, too."""
    leaks: int | None = None
    """Clusters that take room and belong to nothing; harmless."""
    corruptions_fixed: int | None = None
    """Of `corruptions`, those that the repair mended."""
    leaks_fixed: int | None = None
    """Of `leaks`, those that the repair gave back."""
    total_clusters: int | None = None
    """Clusters of the whole disk."""
    allocated_clusters: int | None = None
    """Clusters of the disk that the image holds."""
    fragmented_clusters: int | None = None
    """Allocated clusters that do not follow the one before them in the file."""
    compressed_clusters: int | None = None
    """Allocated clusters that are compressed."""


class MapEntry(QapiStruct, frozen=True, kw_only=True):
    """MapEntry: one range of the disk and where its bytes are."""

    start: int
    """Bytes from the disk's beginning."""
    length: int
    """Bytes."""
    depth: int
    """Which image of the chain: 0 is the topmost."""
    zero: bool
    """Whether it reads as zeros."""
    data: bool
    """Whether bytes are stored for it."""
    present: bool | None = None
    """Whether that image holds it, rather than nobody. Since QEMU 6.1."""
    compressed: bool | None = None
    """Whether it is stored compressed. Since QEMU 8.2."""
    offset: int | None = None
    """Where the bytes are in `filename`, as they are; None when they are not there as they are."""
    filename: str | None = None
    """The file that holds the bytes; None without `offset`."""


class BlockMeasureInfo(QapiStruct, frozen=True, kw_only=True):
    """BlockMeasureInfo: what a new image would need."""

    required: int
    """Bytes of the new image's file with the data there is now."""
    fully_allocated: int
    """Bytes of its file once the guest has written everything."""
    bitmaps: int | None = None
    """Bytes more for the source's bitmaps; None where they cannot be copied."""
