"""A reader of many headers takes equal beginnings for equal headers only where nothing else was looked at."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgtool.errors import ImageFormatError
from imgtool.image.header import Header, HeaderReader, read_header
from imgtool.image.source import HEAD

SAMPLES = sorted(Path(__file__).parents[2].glob("fixtures/images/*.gz"))


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def alone(path: Path) -> Header | str:
    with opened(path) as fd:
        try:
            return read_header(fd)
        except ImageFormatError as error:
            return error.message


def by(reader: HeaderReader, path: Path) -> Header | str:
    with opened(path) as fd:
        try:
            return reader.read(fd)
        except ImageFormatError as error:
            return error.message


@pytest.fixture
def qcow2(tmp_path: Path) -> Path:
    sample = next(path for path in SAMPLES if path.name.startswith("qcow2-compressed"))
    path = tmp_path / "disk.qcow2"
    path.write_bytes(gzip.decompress(sample.read_bytes()))
    return path


@pytest.mark.parametrize("path", SAMPLES, ids=[path.name for path in SAMPLES])
def test_what_the_rest_of_the_file_decides_is_read_of_each(tmp_path: Path, path: Path) -> None:
    """The same beginning, another end: cut off, and longer by half a cluster."""
    whole = gzip.decompress(path.read_bytes())
    variants = [whole, whole[: max(HEAD, len(whole) // 2)], whole + bytes(32768), whole[:HEAD]]
    names = [tmp_path / str(number) for number in range(len(variants))]
    for name, data in zip(names, variants, strict=True):
        name.write_bytes(data)
    for order in (names, names[::-1]):
        reader = HeaderReader()
        assert [by(reader, name) for name in order] == [alone(name) for name in order]


def test_a_format_that_is_named_is_not_what_another_image_was_probed_as(qcow2: Path) -> None:
    reader = HeaderReader()
    assert by(reader, qcow2) == alone(qcow2)
    with opened(qcow2) as fd:
        assert reader.read(fd, format="raw").format == "raw"
    assert by(reader, qcow2) == alone(qcow2)


def test_more_kinds_of_images_than_it_keeps_are_each_read(tmp_path: Path, qcow2: Path) -> None:
    whole = bytearray(qcow2.read_bytes())
    names = []
    for number in range(1, 200):
        whole[24:32] = (number * 512).to_bytes(8, "big")  # the virtual size
        names.append(tmp_path / str(number))
        names[-1].write_bytes(whole)
    reader = HeaderReader()
    for _ in range(2):
        found = [by(reader, name) for name in names]
        sizes = [header.virtual_size for header in found if isinstance(header, Header)]
        assert sizes == [number * 512 for number in range(1, 200)]
