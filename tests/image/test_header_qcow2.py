"""The native qcow2 reader against qemu-img, which makes the images and says what they are."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from imgtool.errors import ImageFormatError
from imgtool.image.formats.qcow2 import Qcow2Details
from imgtool.image.header import Header, read_header
from imgtool.image.snapshot_table import read_snapshots

QEMU_IMG = os.environ.get("IMGTOOL_QEMU_IMG", "qemu-img")


def qemu_img(*words: str | Path, cwd: Path | None = None) -> str:
    return subprocess.run([QEMU_IMG, *map(str, words)], check=True, capture_output=True, text=True, cwd=cwd).stdout


def info(path: Path) -> dict[str, Any]:
    # QEMU 5.2 opens a data file for this, which is one of the current directory
    answer: dict[str, Any] = json.loads(qemu_img("info", "--output=json", path, cwd=path.parent))
    return answer


def header_of(path: Path, format: str | None = None) -> Header:
    fd = os.open(path, os.O_RDONLY)
    try:
        return read_header(fd, format=format)
    finally:
        os.close(fd)


def details_of(header: Header) -> Qcow2Details:
    assert isinstance(header.details, Qcow2Details)
    return header.details


@pytest.mark.matrix
@pytest.mark.parametrize(
    "options",
    [
        "compat=0.10",
        "compat=1.1",
        "cluster_size=512",
        "cluster_size=2M",
        "extended_l2=on,cluster_size=64k",
        "refcount_bits=1",
        "refcount_bits=64",
        "lazy_refcounts=on",
        "backing_file=base.raw,backing_fmt=raw",
        "backing_file=base.raw,backing_fmt=raw,compat=0.10",
        "data_file=ext.raw,data_file_raw=on",
    ],
)
def test_qcow2_is_read_as_qemu_img_reads_it(tmp_path: Path, options: str) -> None:
    check_qcow2(tmp_path, options)


def test_qcow2_compressed_by_zstd_is_read_as_qemu_img_reads_it(tmp_path: Path) -> None:
    check_qcow2(tmp_path, "compression_type=zstd")  # not in every version's build


def check_qcow2(tmp_path: Path, options: str) -> None:
    base = tmp_path / "base.raw"
    base.write_bytes(bytes(1 << 20))
    image = tmp_path / "image.qcow2"
    subprocess.run(
        [QEMU_IMG, "create", "-q", "-f", "qcow2", "-o", options, image.name, "1000000"], cwd=tmp_path, check=True
    )
    expected = info(image)
    specific = expected["format-specific"]["data"]
    header = header_of(image)
    details = details_of(header)
    assert header == header_of(image, "qcow2")
    assert (header.format, header.virtual_size) == ("qcow2", expected["virtual-size"])
    assert (header.backing or b"").decode() == expected.get("backing-filename", "")
    assert header.backing_format == expected.get("backing-filename-format")
    assert (header.data_file or b"").decode() == specific.get("data-file", "")
    assert details.data_file_raw == specific.get("data-file-raw", False)
    assert details.cluster_size == expected["cluster-size"]
    assert details.version == {"0.10": 2, "1.1": 3}[specific["compat"]]
    assert details.refcount_bits == specific["refcount-bits"]
    assert details.lazy_refcounts == specific.get("lazy-refcounts", False)
    assert details.extended_l2 == specific.get("extended-l2", False)
    assert details.compression == specific.get("compression-type", "zlib")
    assert details.corrupt == specific.get("corrupt", False)


@pytest.mark.matrix
def test_snapshots_are_listed_as_qemu_img_lists_them(tmp_path: Path) -> None:
    image = tmp_path / "image.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", image, "64M")
    for name in ("first", "a name with spaces", "ünïcode"):
        qemu_img("snapshot", "-c", name, image)
    expected = info(image)["snapshots"]
    with image.open("rb") as file:
        header = read_header(file.fileno())
        snapshots = read_snapshots(file.fileno(), header)
        assert read_snapshots(file.fileno(), header, most=1) == snapshots[:1]
    assert header.snapshots == 3
    assert [(s.id, s.name, s.vm_state_size, s.date_sec, s.date_nsec) for s in snapshots] == [
        (e["id"], e["name"], e["vm-state-size"], e["date-sec"], e["date-nsec"]) for e in expected
    ]
    assert {s.disk_size for s in snapshots} == {64 << 20}


@pytest.mark.matrix
def test_a_raw_file_counts_its_last_partial_sector(tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    image.write_bytes(b"x" * 600)
    assert header_of(image) == Header(format="raw", virtual_size=1024)
    assert info(image)["virtual-size"] == 1024


@pytest.mark.matrix
def test_a_qcow2_shorter_than_a_sector_is_still_one(tmp_path: Path) -> None:
    image = tmp_path / "image.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", image, "0")
    os.truncate(image, 120)
    assert header_of(image).format == "qcow2" == info(image)["format"]


@pytest.mark.matrix
def test_a_declared_format_is_never_replaced(tmp_path: Path) -> None:
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", image, "1M")
    assert header_of(image, "raw").format == "raw"
    image.write_bytes(b"no header at all")
    with pytest.raises(ImageFormatError, match="looks like raw"):
        header_of(image, "qcow2")


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("offset", "packed"),
    [
        (20, struct.pack(">I", 8)),
        (20, struct.pack(">I", 63)),
        (8, struct.pack(">Q", 1 << 63)),
        (24, struct.pack(">Q", 1 << 50)),
        (32, struct.pack(">I", 3)),
        (36, struct.pack(">I", 0xFFFFFFFF)),
        (40, struct.pack(">Q", 1)),
        (60, struct.pack(">I", 65537)),
        (100, struct.pack(">I", 103)),
        (100, struct.pack(">I", 0xFFFFFFFF)),
        (96, struct.pack(">I", 7)),
        (104, b"\x01"),
        (116, struct.pack(">I", 0xFFFFFFFF)),
    ],
)
def test_a_damaged_header_is_refused_where_qemu_img_refuses_it(tmp_path: Path, offset: int, packed: bytes) -> None:
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", image, "1G")
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(packed)
    with pytest.raises(ImageFormatError):
        header_of(image)
    assert subprocess.run([QEMU_IMG, "info", image], capture_output=True, check=False).returncode == 1


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    reading, writing = os.pipe()
    try:
        for descriptor in (fd, reading):
            with pytest.raises(ImageFormatError):
                read_header(descriptor)
    finally:
        for descriptor in (fd, reading, writing):
            os.close(descriptor)
