"""`imgtool map`, as it is typed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Imgtool
    from tests.conftest import Images

pytestmark = pytest.mark.matrix


def family(images: Images) -> None:
    images.base("base.qcow2", "4M")
    images.run_io(images / "base.qcow2", "write -P 1 0 1M")
    images.overlay("top.qcow2", "base.qcow2")
    images.run_io(images / "top.qcow2", "write -P 2 1M 128k", "write -z 2M 64k")


def test_a_table_of_the_disk(images: Images, imgtool: Imgtool) -> None:
    family(images)
    done = imgtool("map", images / "top.qcow2")
    assert (done.status, done.stderr) == (0, "")
    head, first, second, *_ = (line.split() for line in done.stdout.splitlines())
    assert head == ["START", "LENGTH", "SIZE", "CONTENT", "IN", "AT"]
    assert first[:6] == ["0", "1048576", "1", "MiB", "data", str(images / "base.qcow2")]
    assert second[:6] == ["1048576", "131072", "128", "KiB", "data", str(images / "top.qcow2")]
    assert done.stdout.splitlines()[-1] == ("data: 1.1 MiB (1179648 bytes) in 2 ranges, of 4 MiB (4194304 bytes)")


def test_json_is_what_qemu_img_says(images: Images, imgtool: Imgtool) -> None:
    family(images)
    done = imgtool("map", images / "top.qcow2", "--output", "json")
    assert done.document == json.loads(images.qemu_img("map", "--output=json", "-f", "qcow2", images / "top.qcow2"))


def test_a_part_of_the_disk(images: Images, imgtool: Imgtool) -> None:
    family(images)
    entries = imgtool("map", "-s", "1M", "-l", "64k", images / "top.qcow2", "--output", "json").document
    assert [(entry["start"], entry["length"], entry["depth"]) for entry in entries] == [(1 << 20, 65536, 0)]


def test_what_cannot_be_mapped(images: Images, imgtool: Imgtool) -> None:
    family(images)
    images.rebase("base.qcow2", "top.qcow2")
    done = imgtool("map", images / "top.qcow2")
    assert (done.status, done.stdout) == (1, "")
    assert "never ends" in done.stderr
    assert imgtool("map", images / "gone").status == 1
    assert imgtool("map").status == 2
    assert imgtool("map", "-s", "x", images / "top.qcow2").status == 2
