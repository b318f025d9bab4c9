"""The content digest is the disk's, whatever the image: equal over formats, chains, compression, kinds of zeros."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imgtool.chain.content import digest_of
from imgtool.errors import ChainError, ImageInUseError, RefusedError
from imgtool.qemu import digest as digest_module
from imgtool.qemu.digest import CHUNK, PREFIX, ContentMap, chunk_digests, content_map, map_over
from imgtool.qemu.extents import Layer, read_extents
from imgtool.qemu.qemu_img import QemuImg
from imgtool.qemu.ranges import Range, within
from tests.qemu.disks import FORMATS, MIB, disk, write

if TYPE_CHECKING:
    from tests.conftest import Images

pytestmark = pytest.mark.matrix

COMPRESSIONS = ["zlib"] if os.environ.get("IMGTOOL_QEMU_VERSION") == "5.2" else ["zlib", "zstd"]
"""Debian built its 5.2 without zstd."""

SIZE = 5 * MIB + 64 * 1024


def plain_digest(data: bytes) -> str:
    """The definition, as plainly as it can be written."""
    whole = hashlib.sha256(b"imgtool1\n" + len(data).to_bytes(8, "big"))
    for number in range(-(-len(data) // CHUNK)):
        chunk = data[number * CHUNK : (number + 1) * CHUNK]
        if chunk.strip(b"\0"):
            whole.update(number.to_bytes(8, "big") + hashlib.sha256(chunk).digest())
    return PREFIX + whole.hexdigest()


@pytest.fixture
def raw(images: Images) -> Path:
    return write(images / "disk.raw", disk(3, SIZE))


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_of_a_disk_has_the_digest_of_the_disk(images: Images, raw: Path, format: str) -> None:
    target = images / f"disk.{format}"
    if format != "raw":
        images.qemu_img("convert", "-f", "raw", "-O", format, raw, target)
    data = raw.read_bytes()
    size = QemuImg().info(target, format=format).virtual_size  # vpc counts in cylinders
    assert digest_of(target, format=format) == plain_digest(data + bytes(size - len(data)))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_compressed_clusters_count_for_what_is_in_them(images: Images, compression: str) -> None:
    options = f"compression_type={compression}"
    raw = write(images / "disk.raw", b"compressible " * 300_000 + bytes(2 * MIB) + os.urandom(MIB))
    images.qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, raw, images / "c.qcow2")
    assert digest_of(images / "c.qcow2") == digest_of(raw)
    assert [path.name for path in images.directory.iterdir() if path.name.startswith(".")] == []


def test_a_disk_of_which_slices_are_compressed(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a compressed base with a plain overlay, where slices begin within plain extents."""
    monkeypatch.setattr(digest_module, "_SLICE", 2 * CHUNK)
    raw = write(images / "disk.raw", disk(1, 12 * MIB))
    images.qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", raw, images / "c.qcow2")
    top = images.overlay("top.qcow2", "c.qcow2")
    images.run_io(top, "write -P 5 1500k 5000k", "write -P 6 9M 1M")
    images.run_io(raw, "write -P 5 1500k 5000k", "write -P 6 9M 1M", format="raw")
    assert digest_of(top) == plain_digest(raw.read_bytes())


def test_a_chain_has_the_digest_of_what_is_read_through_it(images: Images, raw: Path) -> None:
    images.qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, images / "base.qcow2")
    middle = images.overlay("middle.qcow2", "base.qcow2")
    top = images.overlay("top.qcow2", "middle.qcow2")
    before = digest_of(raw)
    assert digest_of(top) == before
    images.run_io(middle, "write -P 1 100k 3M", "write -z 1M 1M")
    images.run_io(top, "write -P 2 200k 10k", "discard 4M 64k")
    images.run_io(raw, "write -P 1 100k 3M", "write -z 1M 1M", "write -P 2 200k 10k", "write -z 4M 64k", format="raw")
    assert digest_of(top) == plain_digest(raw.read_bytes()) != before


def test_an_overlay_larger_or_smaller_than_its_base(images: Images, raw: Path) -> None:
    images.qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, images / "base.qcow2")
    for size in (8 * MIB, 3 * MIB):
        top = images.base("top.qcow2", str(size))
        images.rebase("top.qcow2", "base.qcow2")
        assert digest_of(top) == plain_digest((raw.read_bytes() + bytes(8 * MIB))[:size])


def test_zeros_are_zeros_written_or_not(images: Images) -> None:
    hole, written = images.base("hole.qcow2", "4M"), images.base("written.qcow2", "4M")
    allocated = images.base("allocated.raw", "4M", format="raw")
    images.run_io(written, "write -P 0 0 2M", "write -z 2M 1M")
    allocated.write_bytes(bytes(4 * MIB))
    assert digest_of(hole) == digest_of(written) == digest_of(allocated) == plain_digest(bytes(4 * MIB))
    assert digest_of(hole) != digest_of(images.base("larger.qcow2", "5M"))


def test_small_clusters_and_scattered_writes(images: Images) -> None:
    image = images / "small.qcow2"
    images.qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", image, "4M")
    raw = images.base("same.raw", "4M", format="raw")
    writes = [f"write -P {number % 250 + 1} {number * 7919 % 8000 * 512} 512" for number in range(60)]
    images.run_io(image, *writes)
    images.run_io(raw, *writes, format="raw")
    assert digest_of(image) == plain_digest(raw.read_bytes())


def test_an_external_data_file_is_read(images: Images, raw: Path) -> None:
    image, data = images / "image.qcow2", images / "data.bin"
    images.qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={data}", image, "8M")
    images.run_io(image, "write -P 1 1M 2M")
    expected = bytearray(8 * MIB)
    expected[MIB : 3 * MIB] = b"\1" * (2 * MIB)
    assert digest_of(image) == plain_digest(bytes(expected))


def test_an_odd_raw_file_is_padded_as_qemu_pads_it(images: Images) -> None:
    raw = write(images / "odd.raw", b"x" * (MIB + 100))
    assert digest_of(raw) == plain_digest(b"x" * (MIB + 100) + bytes(412))


@pytest.mark.parametrize("name", ["a,b.qcow2", "nbd:x.qcow2", "\udcff.qcow2", "json:{}.qcow2"])
def test_awkward_names_are_files(images: Images, raw: Path, name: str) -> None:
    images.qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", raw, images / name)
    assert digest_of(images / name) == digest_of(raw)


def test_a_chain_too_deep_for_a_command_line(images: Images) -> None:
    images.base("000.qcow2")
    images.run_io(images / "000.qcow2", "write -P 3 64k 64k")
    before = digest_of(images / "000.qcow2")
    template = images.overlay("template.qcow2", "000.qcow2").read_bytes()
    for number in range(1, 150):
        (images / f"{number:03}.qcow2").write_bytes(template.replace(b"000.qcow2", b"%03d.qcow2" % (number - 1)))
    assert digest_of(images / "149.qcow2") == before


def test_an_image_that_is_written_has_no_digest(images: Images) -> None:
    base = images.base("base.qcow2")
    top = images.overlay("top.qcow2", "base.qcow2")
    with images.opened(top), pytest.raises(ImageInUseError):
        digest_of(top)
    with images.opened(top):
        assert digest_of(base)


def test_an_encrypted_disk_without_its_key_is_an_error(images: Images) -> None:
    secret = write(images / "key", b"secret")
    images.qemu_img(
        *("create", "-q", "-f", "qcow2", "-o", "encrypt.format=aes,encrypt.key-secret=s"),
        *("--object", f"secret,id=s,file={secret}", images / "e.qcow2", "1M"),
    )
    with pytest.raises(RefusedError, match=r"e\.qcow2 is encrypted"):
        digest_of(images / "e.qcow2")


def test_smaller_chunks_say_where_disks_differ(images: Images) -> None:
    one, other = images.base("one.qcow2", "4M"), images.base("other.raw", "4M", format="raw")
    images.run_io(one, "write -P 1 1M 1M")
    images.run_io(other, "write -P 1 1M 1M", "write -P 2 1200k 1k", format="raw")
    size, chunk = 4 * MIB, 64 * 1024
    found = [
        chunk_digests(QemuImg(), [Layer(str(path), path.suffix[1:])], size, chunk=chunk) for path in (one, other)
    ]
    assert len(found[0]) == len(found[1]) == 16
    assert [number for number in found[0] if found[0][number] != found[1][number]] == [1200 * 1024 // chunk]


def test_chunks_of_a_part_of_the_disk_are_those_of_that_part_alone(images: Images) -> None:
    """Though qemu-img unpacks more than was asked for."""
    raw = write(images / "disk.raw", disk(1, 8 * MIB))
    images.qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", raw, images / "c.qcow2")
    layers = [Layer(str(images / "c.qcow2"), "qcow2")]
    whole = chunk_digests(QemuImg(), layers, 8 * MIB)
    number = max(whole)
    part = within(read_extents(QemuImg(), layers), [Range(number * MIB, MIB)])
    assert chunk_digests(QemuImg(), layers, 8 * MIB, extents=list(part)) == {number: whole[number]}


CHANGES = {
    "nothing": [],
    "a cluster": ["write -P 1 1M 64k"],
    "a cluster across chunks": ["write -P 1 1020k 8k"],
    "zeros": ["write -z 1M 1M"],
    "zeros in a chunk of zeros": ["write -z 3M 1M"],
    "data, and then zeros": ["write -P 1 2M 1M", "write -z 2M 1M"],
    "a discard": ["write -P 1 0 2M", "discard 512k 1M"],
    "the last byte": [f"write -P 1 {SIZE - 512} 512"],
    "everything": [f"write -P 9 0 {SIZE}"],
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("size", [SIZE, SIZE + 100 * 1024, SIZE + 3 * MIB, 8 * MIB, SIZE - 100 * 1024, 2 * MIB])
@pytest.mark.parametrize("change", CHANGES)
def test_a_map_made_over_that_of_the_parent_is_that_of_the_disk(
    images: Images, raw: Path, change: str, size: int, packed: bool
) -> None:
    images.qemu_img("convert", *(["-c"] if packed else []), "-f", "raw", "-O", "qcow2", raw, images / "base.qcow2")
    top = images.overlay("top.qcow2", "base.qcow2", size=str(size))
    fitting = [words for words in CHANGES[change] if size >= SIZE or words.split()[-2] in ("0", "512k")]
    images.run_io(top, *(words.replace(f"0 {SIZE}", f"0 {min(size, SIZE)}") for words in fitting))
    layers = [Layer(str(top), "qcow2"), Layer(str(images / "base.qcow2"), "qcow2")]
    below = content_map(QemuImg(), layers[1:], SIZE)
    assert map_over(QemuImg(), layers, size, below) == content_map(QemuImg(), layers, size)


def test_what_the_topmost_image_does_not_hold_is_not_read_again(images: Images, raw: Path) -> None:
    images.qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, images / "base.qcow2")
    top = images.overlay("top.qcow2", "base.qcow2")
    images.run_io(top, "write -P 1 1M 64k")
    layers = [Layer(str(top), "qcow2"), Layer(str(images / "base.qcow2"), "qcow2")]
    claimed = ContentMap(SIZE, {number: bytes([number]) * 32 for number in range(5)})
    found = map_over(QemuImg(), layers, SIZE, claimed).chunks
    assert {number for number in claimed.chunks if found[number] != claimed.chunks[number]} == {1}


def test_a_map_is_read_back_for_its_own_disk_only(images: Images, raw: Path) -> None:
    found = content_map(QemuImg(), [Layer(str(raw), "raw")], SIZE)
    assert found.digest == digest_of(raw, format="raw")
    assert ContentMap.decoded(found.encoded(), found.digest) == found
    for damaged in (b"", found.encoded()[:-1], found.encoded() + bytes(40), bytes(len(found.encoded()))):
        assert ContentMap.decoded(damaged, found.digest) is None


def test_a_broken_chain_is_an_error(images: Images) -> None:
    with pytest.raises(ChainError):
        digest_of(images.overlay("top.qcow2", "gone.qcow2", size="1M"))
