"""`imgtool resize`, as it is typed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.image.test_partitions import gpt

if TYPE_CHECKING:
    from tests.cli.conftest import Imgtool
    from tests.conftest import Images

pytestmark = pytest.mark.matrix


def test_larger_and_smaller(images: Images, imgtool: Imgtool) -> None:
    images.base("disk.qcow2", "1G")
    done = imgtool("resize", "disk.qcow2", "+1G", cwd=images.directory)
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout == "disk.qcow2: 1 GiB (1073741824 bytes) before, 2 GiB (2147483648 bytes) now\n"
    changed = imgtool("resize", "--shrink", images / "disk.qcow2", "-1.5G", "--output", "json").document
    assert changed["before"]["virtual-size"] == 2 << 30
    assert changed["after"]["virtual-size"] == 1 << 29
    assert changed["written"] == [str(images / "disk.qcow2")]
    done = imgtool("resize", "-q", "-f", "qcow2", "--preallocation=metadata", images / "disk.qcow2", "1G")
    assert (done.status, done.stdout) == (0, "")


def test_a_disk_is_cut_off_only_when_asked(images: Images, imgtool: Imgtool) -> None:
    path = images.base("disk.img", "2M", format="raw")
    for size in ("1M", "-1M"):
        done = imgtool("resize", path, size)
        assert (done.status, done.stdout) == (1, "")
        assert "would cut off 1 MiB (1048576 bytes) of its end" in done.stderr
        assert "--shrink" in done.stderr
    assert path.stat().st_size == 2 << 20


@pytest.mark.parametrize("format", ["vmdk", "vdi", "vhdx", "vpc", "qcow"])
def test_a_format_that_cannot_be_resized_is_refused_before_anything_is_copied(
    images: Images, imgtool: Imgtool, format: str
) -> None:
    path = images.base("disk.x", "8M", format=format)
    for words in (["16M"], ["--shrink", "1M"], ["16M", "--dry-run"]):
        done = imgtool("resize", "-f", format, path, *words, "--output", "json")
        assert (done.status, done.stdout) == (1, "")
        assert (done.error["code"], done.error["command"]) == ("refused", None)
        assert f"QEMU cannot resize {format} images" in done.error["message"]
        assert f"imgtool convert -f {format} -O qcow2 {path} " in done.error["hint"]


def test_a_qed_image_only_grows(images: Images, imgtool: Imgtool) -> None:
    path = images.base("disk.qed", "8M", format="qed")
    done = imgtool("resize", path, "4M")
    assert done.status == 1
    assert "QEMU cannot make qed images smaller" in done.stderr
    assert "--shrink" not in done.stderr
    assert imgtool("resize", path, "16M").status == 0


def test_a_backing_file_keeps_its_size_unless_forced(images: Images, imgtool: Imgtool) -> None:
    path = images.base("base.qcow2", "1M")
    images.overlay("top.qcow2", "base.qcow2")
    done = imgtool("resize", path, "2M")
    assert done.status == 1
    assert str(images / "top.qcow2") in done.stderr
    assert "--force" in done.stderr
    assert imgtool("resize", path, "2M", "--force").status == 0
    assert imgtool("resize", images / "top.qcow2", "2M").status == 0


def test_a_file_that_holds_the_data_of_another_image_keeps_its_size(images: Images, imgtool: Imgtool) -> None:
    images.qemu_img("create", "-q", "-f", "qcow2", "-o", "data_file=data.img", "disk.qcow2", "1M")
    done = imgtool("resize", "--shrink", "--force", images / "data.img", "512K")
    assert done.status == 1
    assert f"holds the data of {images / 'disk.qcow2'}" in done.stderr
    assert (images / "data.img").stat().st_size == 1 << 20


def test_a_dry_run_says_from_what_to_what(images: Images, imgtool: Imgtool) -> None:
    path = images.base("disk.qcow2", "1M")
    before = path.read_bytes()
    plan = imgtool("resize", path, "+1M", "--dry-run", "--output", "json").document
    assert plan["commands"][0][1:] == ["resize", "-q", "-f", "qcow2", str(path), "2097152"]
    assert plan["notes"] == [
        "from 1 MiB (1048576 bytes) to 2 MiB (2097152 bytes)",
        "the command works on a copy beside the image, which then takes its place",
    ]
    assert path.read_bytes() == before


def test_an_image_in_use_is_left_alone(images: Images, imgtool: Imgtool) -> None:
    path = images.base("disk.qcow2", "1M")
    with images.opened(path) as pid:
        done = imgtool("resize", path, "2M", "--output", "json")
    assert (done.status, done.stdout) == (1, "")
    assert done.error["code"] == "image-in-use"
    assert f"(pid {pid})" in done.error["message"]


def test_requests_that_make_no_sense(images: Images, imgtool: Imgtool) -> None:
    path = images.base("disk.qcow2", "1M")
    for words in (
        [path],
        [path, "5X"],
        [path, "-2M", "--shrink"],
        ["--nope", path, "1M"],
        ["-f", "qcow3", path, "2M"],
    ):
        done = imgtool("resize", *words)
        assert (done.status, done.stdout) == (2, ""), words
        assert "imgtool: error: " in done.stderr
    assert imgtool("resize", images / "gone", "1M").status == 1


def test_a_partition_is_cut_off_only_by_force(images: Images, imgtool: Imgtool) -> None:
    raw = images / "disk.raw"
    raw.write_bytes(gpt([(2048, 65535, "root")]).ljust(64 << 20, b"\0"))
    images.qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, images / "disk.qcow2")
    done = imgtool("resize", "--shrink", images / "disk.qcow2", "16M")
    assert (done.status, done.stdout) == (1, "")
    assert "partition 1 (root)" in done.stderr
    assert "--force" in done.stderr
    done = imgtool("resize", images / "disk.qcow2", "128M")
    assert done.status == 0
    assert "growpart DISK 1" in done.stderr
    plan = imgtool("resize", images / "disk.qcow2", "256M", "--dry-run", "--output", "json").document
    assert "growpart" in plan["notes"][1]
    assert imgtool("resize", "--shrink", "--force", images / "disk.qcow2", "16M").status == 0
