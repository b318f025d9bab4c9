"""Partition tables: those that sfdisk would write, and bytes that only look like one."""

from __future__ import annotations

import random
import struct
import uuid

from hypothesis import given
from hypothesis import strategies as st

from imgtool.image.partitions import Partition, Table, read_table

MIB = 1 << 20
LINUX = "0fc63daf-8483-4772-8e79-3d69d8477de4"


def mbr_entry(kind: int, first: int, count: int) -> bytes:
    return struct.pack("<B3xB3xII", 0x80, kind, first, count)


def mbr(*entries: tuple[int, int, int]) -> bytes:
    """A boot sector with (type, first sector, sectors)."""
    table = b"".join(mbr_entry(*entry) for entry in entries)
    return bytes(446) + table.ljust(64, b"\0") + b"\x55\xaa"


def gpt(parts: list[tuple[int, int, str]], *, sector: int = 512, size: int = 64 * MIB) -> bytes:
    """The beginning of a disk with (first, last, name) partitions."""
    last = size // sector - 1
    head = struct.pack(
        "<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, 1, last, 34, last - 33, bytes(16), 2, 128, 128, 0
    )
    kind = uuid.UUID(LINUX).bytes_le
    entries = b"".join(
        struct.pack("<16s16sQQQ72s", kind, bytes(15) + bytes([number]), first, end, 0, name.encode("utf-16-le"))
        for number, (first, end, name) in enumerate(parts, 1)
    )
    disk = mbr((0xEE, 1, last)).ljust(sector, b"\0") + head.ljust(sector, b"\0") + entries
    return disk.ljust(MIB, b"\0")


def table_of(disk: bytes) -> Table | None:
    return read_table(lambda offset, length: disk[offset : offset + length])


def test_a_gpt() -> None:
    found = table_of(gpt([(2048, 4095, "EFI System"), (4096, 100000, "root")]))
    assert found == Table(
        kind="gpt",
        partitions=(
            Partition(number=1, start=MIB, end=2 * MIB, type=LINUX, name="EFI System"),
            Partition(number=2, start=2 * MIB, end=100001 * 512, type=LINUX, name="root"),
        ),
    )
    assert found.end == 100001 * 512


def test_a_gpt_of_large_sectors() -> None:
    found = table_of(gpt([(256, 511, "x")], sector=4096))
    assert found is not None
    assert [(one.start, one.end) for one in found.partitions] == [(MIB, 2 * MIB)]


def test_an_mbr_with_logical_partitions() -> None:
    disk = bytearray(8 * MIB)
    disk[:512] = mbr((0x83, 2048, 2048), (0x05, 4096, 8192))
    first = 4096 * 512
    disk[first : first + 512] = mbr((0x83, 63, 1000), (0x05, 2048, 1500))
    second = (4096 + 2048) * 512
    disk[second : second + 512] = mbr((0x82, 63, 900))
    found = table_of(bytes(disk))
    assert found is not None
    assert [(one.number, one.start // 512, one.end // 512, one.type) for one in found.partitions] == [
        (1, 2048, 4096, "83"),
        (2, 4096, 12288, "05"),
        (5, 4159, 5159, "83"),
        (6, 6207, 7107, "82"),
    ]
    assert found.end == 12288 * 512


def test_logical_partitions_that_go_in_a_circle_end() -> None:
    disk = bytearray(8 * MIB)
    disk[:512] = mbr((0x05, 4096, 8192))
    disk[4096 * 512 : 4097 * 512] = mbr((0x83, 63, 1000), (0x05, 0, 1500))
    found = table_of(bytes(disk))
    assert found is not None
    assert len(found.partitions) == 2


def test_what_is_no_table() -> None:
    assert table_of(b"") is None
    assert table_of(bytes(MIB)) is None
    assert table_of(mbr()) is None
    fat = bytearray(mbr((0x83, 2048, 2048)))
    fat[446] = 0x33  # code, where a table has a flag
    assert table_of(bytes(fat)) is None


@given(st.integers(0, 2**32), st.sampled_from(["mbr", "gpt"]))
def test_any_bytes_are_taken(seed: int, kind: str) -> None:
    noise = random.Random(seed)
    disk = bytearray(noise.randbytes(16384))
    disk[510:512] = b"\x55\xaa"
    if kind == "gpt":
        disk[512:520] = b"EFI PART"
    else:
        for at in range(446, 510, 16):
            disk[at] = 0
    found = table_of(bytes(disk))
    assert found is None or all(one.start <= one.end for one in found.partitions)
