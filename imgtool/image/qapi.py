"""qemu-img's JSON output as typed values: a frozen struct for each QAPI type, QAPI's names in snake case.

Source: qapi/block-core.json and qapi/crypto.json of QEMU. A field is required here when every QEMU from 5.2 on gives
it, and None when this one did not. A field no struct knows is kept in `unknown` of the struct it stood in, and
`to_builtins` and `encode` put it back there.
"""

# No `from __future__ import annotations`: msgspec would compile each annotation when the first answer comes in.

import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from imgtool.errors import DecodeError

_UNKNOWN = "*"
"""The key `unknown` has inside msgspec; QAPI's names are made of letters, digits, `-` and `_`."""


class QapiStruct(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", omit_defaults=True):
    """The base of the types below."""

    unknown: Mapping[str, Any] = msgspec.field(default_factory=dict, name=_UNKNOWN)
    """Fields of a QEMU newer than this module, by their QAPI names."""


class SnapshotInfo(QapiStruct, frozen=True, kw_only=True):
    """One internal snapshot. Times are UTC; sizes are bytes."""

    id: str
    name: str
    vm_state_size: int
    date_sec: int
    date_nsec: int
    vm_clock_sec: int
    vm_clock_nsec: int
    icount: int | None = None


class LuksSlot(QapiStruct, frozen=True, kw_only=True):
    """QCryptoBlockInfoLUKSSlot: one of the eight key slots."""

    active: bool
    key_offset: int
    iters: int | None = None
    stripes: int | None = None


class LuksInfo(QapiStruct, frozen=True, kw_only=True):
    """QCryptoBlockInfoLUKS: the header of a LUKS volume."""

    cipher_alg: str
    cipher_mode: str
    ivgen_alg: str
    hash_alg: str
    payload_offset: int
    master_key_iters: int
    uuid: str
    slots: tuple[LuksSlot, ...]
    ivgen_hash_alg: str | None = None
    detached_header: bool | None = None


class Qcow2Encryption(QapiStruct, frozen=True, kw_only=True):
    """ImageInfoSpecificQCow2Encryption: with the `luks` format all that LuksInfo has, with `aes` nothing more."""

    format: str
    cipher_alg: str | None = None
    cipher_mode: str | None = None
    ivgen_alg: str | None = None
    hash_alg: str | None = None
    payload_offset: int | None = None
    master_key_iters: int | None = None
    uuid: str | None = None
    slots: tuple[LuksSlot, ...] | None = None
    ivgen_hash_alg: str | None = None
    detached_header: bool | None = None

    def __post_init__(self) -> None:
        if self.format == "luks":
            for name in LuksInfo.__struct_fields__:
                field = _fields(LuksInfo)[name]
                if field.required and getattr(self, name) is None:
                    raise ValueError(f"Object missing required field `{field.encode_name}`")


class Qcow2Bitmap(QapiStruct, frozen=True, kw_only=True):
    """Qcow2BitmapInfo: a persistent dirty bitmap; `flags` are of `in-use` and `auto`, granularity is bytes."""

    name: str
    granularity: int
    flags: tuple[str, ...]


class Qcow2Info(QapiStruct, frozen=True, kw_only=True):
    """ImageInfoSpecificQCow2."""

    compat: str
    refcount_bits: int
    compression_type: str
    data_file: str | None = None
    data_file_raw: bool | None = None
    extended_l2: bool | None = None
    lazy_refcounts: bool | None = None
    corrupt: bool | None = None
    encrypt: Qcow2Encryption | None = None
    bitmaps: tuple[Qcow2Bitmap, ...] | None = None


class VmdkExtent(QapiStruct, frozen=True, kw_only=True):
    """VmdkExtentInfo (an ImageInfo before QEMU 8.0): one file of a VMDK."""

    filename: str
    format: str
    virtual_size: int
    cluster_size: int | None = None
    compressed: bool | None = None


class VmdkInfo(QapiStruct, frozen=True, kw_only=True):
    """ImageInfoSpecificVmdk."""

    create_type: str
    cid: int
    parent_cid: int
    extents: tuple[VmdkExtent, ...]


class RbdInfo(QapiStruct, frozen=True, kw_only=True):
    """ImageInfoSpecificRbd."""

    encryption_format: str | None = None


class FileInfo(QapiStruct, frozen=True, kw_only=True):
    """ImageInfoSpecificFile. The hint is bytes."""

    extent_size_hint: int | None = None


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
    data: Any


class BlockNodeInfo(QapiStruct, frozen=True, kw_only=True):
    """One node of the block graph; sizes are bytes."""

    filename: str
    format: str
    virtual_size: int
    actual_size: int | None = None
    dirty_flag: bool | None = None
    cluster_size: int | None = None
    encrypted: bool | None = None
    compressed: bool | None = None
    backing_filename: str | None = None
    full_backing_filename: str | None = None
    backing_filename_format: str | None = None
    snapshots: tuple[SnapshotInfo, ...] | None = None
    format_specific: FormatSpecific | None = None
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
    """An edge of the block graph: `name` is the child's role, such as `file` or `data-file`."""

    name: str
    info: BlockNodeInfo


class ImageInfo(BlockNodeInfo, frozen=True, kw_only=True):
    """What `qemu-img info` says about an image."""

    backing_image: "ImageInfo | None" = None


class ImageCheck(QapiStruct, frozen=True, kw_only=True):
    """What `qemu-img check` found. Numbers are of clusters, but `image_end_offset` is bytes; one that is 0 is left
    out by qemu-img, hence None."""

    filename: str
    format: str
    check_errors: int
    image_end_offset: int | None = None
    corruptions: int | None = None
    leaks: int | None = None
    corruptions_fixed: int | None = None
    leaks_fixed: int | None = None
    total_clusters: int | None = None
    allocated_clusters: int | None = None
    fragmented_clusters: int | None = None
    compressed_clusters: int | None = None


class MapEntry(QapiStruct, frozen=True, kw_only=True):
    """One range of the disk and where its bytes are. Offsets and lengths are bytes; `depth` counts images from the
    top. `present` is there from QEMU 6.1 on, `compressed` from 8.2 on."""

    start: int
    length: int
    depth: int
    zero: bool
    data: bool
    present: bool | None = None
    compressed: bool | None = None
    offset: int | None = None
    filename: str | None = None


class BlockMeasureInfo(QapiStruct, frozen=True, kw_only=True):
    """What a new image would need, in bytes."""

    required: int
    fully_allocated: int
    bitmaps: int | None = None


T = TypeVar("T")


def decode(kind: type[T], data: bytes) -> T:
    """The value of `kind` (a struct above, or list[…] of one) that the JSON text `data` holds.

    DecodeError, naming the type and the field, when it is no JSON, a field is missing or of another type.
    """
    name = _name(kind)
    try:
        tree = msgspec.json.decode(data.decode("utf-8", errors="replace"))
    except msgspec.DecodeError as error:
        raise DecodeError(f"{name}: not JSON: {error}") from error
    try:
        return msgspec.convert(_gather(kind, tree), kind)
    except msgspec.ValidationError as error:
        raise DecodeError(f"{name}: {error}") from error


def prepare(*kinds: type) -> None:
    """Finds out what `decode` has to know of these struct types before there is something to decode."""
    for kind in kinds:
        msgspec.json.Decoder(kind)
        _shape(kind)


def to_builtins(value: Any) -> Any:
    """`value` (structs above, or anything that holds them) as dicts, lists and plain values with QAPI's names."""
    return _scatter(msgspec.to_builtins(value))


def encode(value: Any) -> bytes:
    """`value` as one JSON text. Bytes of a file name that are no UTF-8 become \\udcXX, which Python reads back."""
    tree = to_builtins(value)
    try:
        return msgspec.json.encode(tree)
    except UnicodeEncodeError:
        import json

        return json.dumps(tree, separators=(",", ":")).encode()


def _name(hint: Any) -> str:
    inner = typing.get_args(hint)
    return f"list of {_name(inner[0])}" if inner else str(hint.__name__)


class _Shape(msgspec.Struct, frozen=True):
    """What `_gather` has to know of a struct: its fields' QAPI names, and the struct types found under them."""

    known: frozenset[str]
    nested: Mapping[str, Any]


_shapes: dict[type, _Shape] = {}
_field_tables: dict[type, dict[str, msgspec.structs.FieldInfo]] = {}


def _fields(struct: type) -> dict[str, msgspec.structs.FieldInfo]:
    if struct not in _field_tables:
        _field_tables[struct] = {field.name: field for field in msgspec.structs.fields(struct)}
    return _field_tables[struct]


def _shape(struct: type) -> _Shape:
    if struct not in _shapes:
        known = {field.encode_name: field.type for field in _fields(struct).values() if field.name != "unknown"}
        nested = {name: inner for name, hint in known.items() if (inner := _struct_in(hint)) is not None}
        _shapes[struct] = _Shape(frozenset(known), nested)
    return _shapes[struct]


def _struct_in(hint: Any) -> type | None:
    """The struct type inside `X`, `X | None`, `tuple[X, ...]` or `list[X]`."""
    if isinstance(hint, type) and not isinstance(hint, types.GenericAlias):
        return hint if issubclass(hint, QapiStruct) else None
    return next((found for arg in typing.get_args(hint) if (found := _struct_in(arg)) is not None), None)


def _gather(hint: Any, tree: Any) -> Any:
    """`tree` with every field that its struct does not know moved under `unknown`."""
    struct = _struct_in(hint)
    if struct is None:
        return tree
    if isinstance(tree, list):
        return [_gather(struct, item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    shape = _shape(struct)
    gathered: dict[str, Any] = {}
    unknown: dict[str, Any] = {}
    for key, value in tree.items():
        if key not in shape.known:
            unknown[key] = value
        else:
            gathered[key] = _gather(shape.nested[key], value) if key in shape.nested else value
    if unknown:
        gathered[_UNKNOWN] = unknown
    if struct is FormatSpecific:
        _decode_specific(gathered)
    return gathered


def _decode_specific(specific: dict[str, Any]) -> None:
    kind = specific.get("type")
    struct = FORMAT_SPECIFIC.get(kind) if isinstance(kind, str) else None
    if struct is not None and "data" in specific:
        try:
            specific["data"] = msgspec.convert(_gather(struct, specific["data"]), struct)
        except msgspec.ValidationError as error:
            raise DecodeError(f"{struct.__name__}: {error}") from error


def _scatter(tree: Any) -> Any:
    """The opposite of `_gather`."""
    if isinstance(tree, dict):
        scattered = {key: _scatter(value) for key, value in tree.items() if key != _UNKNOWN}
        unknown = tree.get(_UNKNOWN)
        if isinstance(unknown, dict):
            scattered.update(unknown)
        return scattered
    if isinstance(tree, list | tuple):
        return [_scatter(item) for item in tree]
    return tree
