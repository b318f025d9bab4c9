"""What an image is, in words: the human answer of `imgtool info`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from imgtool.cli.render import bad, date, doubtful, fields, short_size, size, table
from imgtool.image.names import printable
from imgtool.image.qapi import ImageInfo, LuksInfo, Qcow2Bitmap, Qcow2Info, SnapshotInfo, VmdkInfo
from imgtool.image.qapi_json import to_builtins

if TYPE_CHECKING:
    from imgtool.cli.info_answer import Answer


def describe(answer: Answer) -> Iterator[str]:
    """The lines for one image: fields, then its snapshots and bitmaps as tables."""
    info = answer.info
    pairs = [("image", answer.name), *_pairs(info)]
    if answer.in_use:
        pairs.append(("in use", doubtful(answer.in_use)))
    pairs += [("problem", bad(finding)) for finding in answer.findings]
    yield from fields(pairs)
    if info.snapshots:
        yield "snapshots:"
        yield from snapshot_table(info.snapshots, indent="  ")
    qcow2 = info.qcow2
    if qcow2 is not None and qcow2.bitmaps:
        yield "bitmaps:"
        yield from bitmap_table(qcow2.bitmaps, indent="  ")
    if info.vmdk is not None and len(info.vmdk.extents) > 1:
        yield "extents:"
        extents = [(printable(one.filename), one.format, short_size(one.virtual_size)) for one in info.vmdk.extents]
        yield from table(("FILE", "TYPE", "SIZE"), extents, right=(2,), indent="  ")


def _pairs(info: ImageInfo) -> Iterator[tuple[str, str]]:
    yield "format", info.format
    yield "virtual size", size(info.virtual_size)
    if info.actual_size is not None:
        yield "disk size", size(info.actual_size)
    if info.cluster_size is not None:
        yield "cluster size", size(info.cluster_size)
    if info.backing_filename is not None:
        name, full = printable(info.backing_filename), printable(info.full_backing_filename or "")
        yield "backing file", f"{name} ({full})" if full not in ("", name) else name
        said = info.backing_filename_format
        yield "backing format", said or doubtful("not named: QEMU guesses it from the bytes")
    if info.dirty_flag:
        yield "state", doubtful("not closed cleanly, or open now")
    if info.encrypted:
        yield "encrypted", "yes"
    specific = info.format_specific
    if specific is None:
        return
    if isinstance(specific.data, Qcow2Info):
        yield from _qcow2(specific.data)
    elif isinstance(specific.data, VmdkInfo):
        yield "subformat", specific.data.create_type
    elif isinstance(specific.data, LuksInfo):
        yield from _luks(specific.data)
    elif specific.type != "file":
        yield from _plain(to_builtins(specific.data))


def _qcow2(data: Qcow2Info) -> Iterator[tuple[str, str]]:
    if data.corrupt:
        yield "state", bad("marked corrupt: `imgtool check` says more")
    if data.data_file is not None:
        yield "data file", printable(data.data_file) + (" (valid as a raw image)" if data.data_file_raw else "")
    if data.encrypt is not None:
        yield "encryption", data.encrypt.format + (f" ({data.encrypt.cipher_alg})" if data.encrypt.cipher_alg else "")
    details = [f"compat {data.compat}", f"{data.compression_type} compression", f"{data.refcount_bits}-bit refcounts"]
    details += ["lazy refcounts"] * bool(data.lazy_refcounts) + ["extended L2"] * bool(data.extended_l2)
    yield "details", ", ".join(details)


def _luks(data: LuksInfo) -> Iterator[tuple[str, str]]:
    yield "cipher", f"{data.cipher_alg}, {data.cipher_mode}, {data.ivgen_alg}, {data.hash_alg}"
    yield "uuid", printable(data.uuid)
    yield "key slots", f"{sum(slot.active for slot in data.slots)} of {len(data.slots)} in use"


def _plain(data: Any) -> Iterator[tuple[str, str]]:
    """The data of a format that imgtool knows nothing about."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            if isinstance(value, str | int | float):
                yield printable(str(key)).replace("-", " "), printable(str(value))


def bitmap_table(bitmaps: Sequence[Qcow2Bitmap], *, indent: str = "") -> Iterator[str]:
    """Persistent dirty bitmaps, and whether they record."""
    words = {"auto": "records", "in-use": "in use, or left open"}
    rows = [
        (
            printable(one.name),
            short_size(one.granularity),
            ", ".join(words.get(flag, flag) for flag in one.flags) or "disabled",
        )
        for one in bitmaps
    ]
    return table(("NAME", "GRANULARITY", "STATE"), rows, right=(1,), indent=indent)


def snapshot_table(snapshots: Sequence[SnapshotInfo], *, indent: str = "") -> Iterator[str]:
    """Internal snapshots with their dates in local time."""
    rows = [
        (
            printable(one.id),
            printable(one.name),
            short_size(one.vm_state_size) if one.vm_state_size else "-",
            date(one.date_sec),
            _clock(one.vm_clock_sec, one.vm_clock_nsec),
        )
        for one in snapshots
    ]
    return table(("ID", "NAME", "VM STATE", "DATE", "VM CLOCK"), rows, right=(0, 2, 4), indent=indent)


def _clock(seconds: int, nanoseconds: int) -> str:
    minutes, left = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{left:02d}.{nanoseconds // 1_000_000:03d}"
