"""What is said and refused before a disk is resized or set back, on real images."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imgtool.chain.walk import walk
from imgtool.cli.main import main
from imgtool.errors import RefusedError
from imgtool.image.snapshot_diff import written_since
from imgtool.operations.guards import after_resize, look_at_disk, lost_by_apply, refuse_cut
from imgtool.qemu.qemu_img import QemuImg
from tests.image.test_partitions import gpt, mbr

if TYPE_CHECKING:
    from imgtool.operations.guards import Layout
    from tests.conftest import Images

pytestmark = pytest.mark.matrix

MIB = 1 << 20
SAMPLES = Path(__file__).parents[2] / "fixtures" / "images"


def disk(images: Images, head: bytes, format: str = "qcow2") -> Path:
    raw = images / "disk.raw"
    raw.write_bytes(head.ljust(64 * MIB, b"\0"))
    if format == "raw":
        return raw
    images.qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", raw, images / "disk.qcow2")
    return images / "disk.qcow2"


def look(path: Path) -> Layout:
    found = look_at_disk(walk(path), QemuImg())
    assert found is not None
    return found


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_a_disk_is_not_cut_within_its_last_partition(images: Images, format: str) -> None:
    path = disk(images, gpt([(2048, 4095, "boot"), (4096, 65535, "root")]), format)
    layout = look(path)
    refuse_cut(layout, 32 * MIB, path=str(path))
    with pytest.raises(RefusedError, match=r"partition 2 \(root\)") as caught:
        refuse_cut(layout, 32 * MIB - 512, path=str(path))
    assert "--force" in str(caught.value.hint)
    (note,) = after_resize(layout, 33 * MIB)
    assert "sgdisk -e" in note
    assert "no room left" not in note
    assert "no room left" in after_resize(layout, 32 * MIB)[0]


def test_growing_says_what_the_guest_must_do(images: Images) -> None:
    path = disk(images, mbr((0x83, 2048, 2048), (0x83, 4096, 8192)))
    (note,) = after_resize(look(path), 128 * MIB)
    assert "partition 2 still ends at byte 6291456" in note
    assert "growpart DISK 2" in note


def test_a_disk_without_partitions_is_not_cut_where_it_has_data(images: Images) -> None:
    path = images.base("disk.qcow2", "64M")
    assert after_resize(look(path), 128 * MIB) == []
    images.run_io(path, "write -P 1 4M 1M", "write -z 32M 1M")
    layout = look(path)
    refuse_cut(layout, 5 * MIB, path=str(path))
    with pytest.raises(RefusedError, match="no partitions"):
        refuse_cut(layout, 4 * MIB, path=str(path))
    assert "does not grow by itself" in after_resize(layout, 128 * MIB)[0]


def test_data_below_an_overlay_counts(images: Images) -> None:
    path = disk(images, gpt([(2048, 65535, "root")]))
    top = images.overlay("top.qcow2", path.name)
    with pytest.raises(RefusedError, match="partition 1"):
        refuse_cut(look(top), 16 * MIB, path=str(top))


def test_a_disk_that_cannot_be_seen_is_no_error(images: Images) -> None:
    path = images.base("disk.qcow2")
    with images.opened(path):
        assert look_at_disk(walk(path), QemuImg()) is None


def since(path: Path) -> dict[str, int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        return written_since(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("options", ["cluster_size=64k", "cluster_size=4k", "extended_l2=on,cluster_size=64k"])
def test_what_was_written_since_a_snapshot_is_counted(images: Images, options: str) -> None:
    path = images / "disk.qcow2"
    images.qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, "64M")
    images.run_io(path, "write -P 1 0 1M")
    images.qemu_img("snapshot", "-c", "one", path)
    assert since(path) == {"1": 0}
    images.run_io(path, "write -P 2 512k 128k", "write -P 2 32M 64k")
    images.qemu_img("snapshot", "-c", "two", path)
    assert since(path) == {"1": 192 * 1024, "2": 0}
    images.run_io(path, "write -P 3 512k 64k", "discard 0 64k")
    assert since(path) == {"1": 256 * 1024, "2": 128 * 1024}


def test_what_going_back_loses_is_said(images: Images) -> None:
    path = images.base("disk.qcow2", "8M")
    images.qemu_img("snapshot", "-c", "one", path)
    assert lost_by_apply(str(path), "1") is None
    images.run_io(path, "write -P 1 0 128k")
    assert str(lost_by_apply(str(path), "1")).startswith("131072 bytes that were written since")
    images.qemu_img("snapshot", "-c", "two", path)
    assert lost_by_apply(str(path), "1") is None
    assert lost_by_apply(str(images / "gone.qcow2"), "1") is None


@pytest.mark.parametrize(
    "words",
    ["commit top.qcow2", "chain flatten top.qcow2", "chain shorten top.qcow2", "rebase -b other.qcow2 top.qcow2"],
)
def test_a_chain_that_cannot_be_read_without_a_key_is_left_alone(
    images: Images, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    packed = (SAMPLES / "qcow2-luks.qcow2.gz").read_bytes()
    (images / "secret.qcow2").write_bytes(gzip.decompress(packed))
    images.base("other.qcow2")
    for overlay, base in (("low", "secret"), ("mid", "low"), ("top", "mid")):
        backing = ("-b", f"{base}.qcow2", "-F", "qcow2")
        images.qemu_img("create", "-q", "-u", "-f", "qcow2", *backing, images / f"{overlay}.qcow2", "1M")
    before = {path.name: path.read_bytes() for path in (images / ".").iterdir()}
    monkeypatch.chdir(images / ".")
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == 1
    assert f"{images / 'secret.qcow2'} is encrypted" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (images / ".").iterdir()} == before
