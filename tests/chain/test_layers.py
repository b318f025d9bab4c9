"""Who supplies what of a disk, and where disks differ: held against images of known content."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imgtool.chain.diff import diff
from imgtool.chain.layers import Part, layers
from imgtool.chain.picture import bar, to_svg
from imgtool.errors import ChainError, ImageInUseError
from imgtool.operations.overlay import new_overlay
from imgtool.qemu.ranges import Range, overlap, union
from tests.image.test_partitions import gpt, mbr
from tests.qemu.disks import write

if TYPE_CHECKING:
    from tests.conftest import Images

pytestmark = pytest.mark.matrix

MIB = 1 << 20


def chain(images: Images) -> Path:
    """16 MiB: the base has 0 to 4, the middle 2 to 3 and 8 to 9, the top 8 to 8.5 and 12 to 12.0625."""
    base = images.base("base.qcow2", "16M")
    images.run_io(base, "write -P 1 0 4M")
    middle = new_overlay(base, images / "middle.qcow2").path
    images.run_io(Path(middle), "write -P 2 2M 1M", "write -P 2 8M 1M")
    top = Path(new_overlay(middle, images / "top.qcow2").path)
    images.run_io(top, "write -P 3 8M 512k", "write -P 3 12M 64k")
    return top


def test_each_layer_supplies_what_no_other_hides(images: Images) -> None:
    found = layers(chain(images))
    assert [(Path(one.path).name, one.data) for one in found.layers] == [
        ("top.qcow2", 512 * 1024 + 65536),
        ("middle.qcow2", MIB + MIB // 2),
        ("base.qcow2", 3 * MIB),
    ]
    assert found.virtual_size == 16 * MIB
    data = [part for part in found.parts if not part.zero]
    assert data == [
        Part(0, 2 * MIB, 2, False),
        Part(2 * MIB, MIB, 1, False),
        Part(3 * MIB, MIB, 2, False),
        Part(8 * MIB, MIB // 2, 0, False),
        Part(8 * MIB + MIB // 2, MIB // 2, 1, False),
        Part(12 * MIB, 65536, 0, False),
    ]
    assert sum(part.length for part in found.parts) == 16 * MIB
    assert found.commit_bytes == 512 * 1024 + 65536
    assert found.flatten_bytes == 4 * MIB + MIB // 2


def test_what_is_promised_of_a_flatten_is_what_it_writes(images: Images) -> None:
    top = chain(images)
    promised = layers(top)
    images.qemu_img("rebase", "-f", "qcow2", "-b", "", top)
    (alone,) = layers(top).layers
    assert alone.data == promised.commit_bytes + promised.flatten_bytes


def test_a_base_has_nothing_to_commit(images: Images) -> None:
    chain(images)
    found = layers(images / "base.qcow2")
    assert (found.commit_bytes, found.flatten_bytes) == (0, 0)
    assert found.unwritten == 12 * MIB


def test_an_image_in_use_is_an_error_unless_read_all_the_same(images: Images) -> None:
    top = chain(images)
    with images.opened(top):
        with pytest.raises(ImageInUseError):
            layers(top)
        assert layers(top, force_share=True).layers[0].data


def test_the_bar_and_the_drawing(images: Images) -> None:
    found = layers(chain(images))
    assert bar(found, 16) == "ccbc....a...a..."
    svg = to_svg(found)
    assert svg.startswith("<svg xmlns=")
    assert svg.count("<text") == 4
    assert "base.qcow2: 3145728 bytes" in svg


def test_names_in_a_drawing_are_text(images: Images) -> None:
    image = images.base("a<b>&\x1b.qcow2")
    assert "a&lt;b&gt;&amp;\\x1b.qcow2" in to_svg(layers(image))


def test_a_broken_chain_is_an_error(images: Images) -> None:
    with pytest.raises(ChainError):
        layers(images.overlay("top.qcow2", "gone.qcow2", size="1M"))


def test_what_an_overlay_changed_is_known_without_reading(images: Images) -> None:
    top = chain(images)
    found = diff(images / "base.qcow2", top)
    assert found.common == str(images / "base.qcow2")
    assert not found.exact
    assert found.ranges == (Range(2 * MIB, MIB), Range(8 * MIB, MIB), Range(12 * MIB, 65536))
    assert found.bytes == 2 * MIB + 65536
    assert (found.cluster_size, found.clusters) == (65536, 33)
    assert diff(top, images / "base.qcow2").ranges == found.ranges


def test_siblings_differ_in_what_either_wrote(images: Images) -> None:
    top = chain(images)
    other = Path(new_overlay(images / "middle.qcow2", images / "other.qcow2").path)
    images.run_io(other, "write -P 3 12M 128k")
    found = diff(top, other)
    assert found.common == str(images / "middle.qcow2")
    assert found.ranges == (Range(8 * MIB, MIB // 2), Range(12 * MIB, 128 * 1024))


def test_exact_looks_at_what_may_differ_only_though_the_base_is_compressed(images: Images) -> None:
    plain = write(images / "plain.raw", b"compressible " * 100_000)
    images.qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", plain, images / "base.qcow2")
    top = images.overlay("top.qcow2", "base.qcow2")
    images.run_io(top, "write -P 7 512k 64k")
    assert diff(images / "base.qcow2", top, exact=True).ranges == (Range(512 * 1024, 64 * 1024),)


def test_exact_leaves_out_what_is_the_same(images: Images) -> None:
    top = chain(images)
    other = Path(new_overlay(images / "middle.qcow2", images / "other.qcow2").path)
    images.run_io(other, "write -P 3 12M 128k", "write -P 3 8M 512k")
    found = diff(top, other, exact=True)
    assert found.ranges == (Range(12 * MIB + 65536, 65536),)
    assert diff(top, top, exact=True).bytes == diff(top, top).bytes == 0


@pytest.mark.parametrize("format", ["raw", "qcow2", "vmdk"])
def test_images_with_nothing_in_common_are_compared(images: Images, format: str) -> None:
    top = chain(images)
    copy = images / f"copy.{format}"
    images.qemu_img("convert", "-f", "qcow2", "-O", format, top, copy)
    assert diff(top, copy, b_format=format).bytes == 0
    images.run_io(copy, "write -P 9 5M 1k", "write -z 12M 64k", format=format)
    found = diff(top, copy, b_format=format)
    assert (found.common, found.exact) == (None, True)
    assert found.ranges == (Range(5 * MIB, 65536), Range(12 * MIB, 65536))


def test_compressed_images_are_compared(images: Images) -> None:
    top = chain(images)
    images.qemu_img("convert", "-c", "-f", "qcow2", "-O", "qcow2", top, images / "c.qcow2")
    assert diff(top, images / "c.qcow2").bytes == 0


def test_the_end_of_a_larger_disk_differs(images: Images) -> None:
    base = images.base("base.qcow2", "8M")
    top = Path(new_overlay(base, images / "top.qcow2", size=16 * MIB).path)
    for exact in (False, True):
        found = diff(base, top, exact=exact)
        assert (found.a_size, found.b_size) == (8 * MIB, 16 * MIB)
        assert found.ranges == (Range(8 * MIB, 8 * MIB),)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", ["gpt", "mbr"])
def test_differences_are_told_by_partition(images: Images, kind: str, compressed: bool) -> None:
    raw = images / "disk.raw"
    if kind == "gpt":
        head = gpt([(2048, 8191, "boot"), (8192, 32767, "root")], size=32 * MIB)
    else:
        head = mbr((0x83, 2048, 6144), (0x83, 8192, 24576))
    raw.write_bytes(head.ljust(32 * MIB, b"\0"))
    options = ["-c"] if compressed else []
    images.qemu_img("convert", *options, "-f", "raw", "-O", "qcow2", raw, images / "base.qcow2")
    top = Path(new_overlay(images / "base.qcow2", images / "top.qcow2").path)
    images.run_io(top, "write -P 1 3968k 256k", "write -P 1 20M 64k")
    found = diff(images / "base.qcow2", top)
    assert found.table is not None
    assert found.table.kind == kind
    # the boundary between the two partitions lies at 4 MiB
    assert [(one.partition.number, one.bytes) for one in found.partitions] == [(1, 128 * 1024), (2, 128 * 1024)]
    assert found.elsewhere == 65536


def test_ranges() -> None:
    assert union([Range(5, 5), Range(0, 2), Range(2, 3), Range(20, 0)]) == [Range(0, 10)]
    assert overlap([Range(0, 10), Range(20, 10)], [Range(5, 20)]) == 10
    assert overlap([], [Range(0, 1)]) == 0
