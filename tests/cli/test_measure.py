"""`imgtool measure`, as it is typed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Imgtool
    from tests.conftest import Images

pytestmark = pytest.mark.matrix


def test_the_size_of_a_new_image(images: Images, imgtool: Imgtool) -> None:
    path = images.base("disk.img", "1M", format="raw")
    images.run_io(path, "write -P 1 0 64k", format="raw")
    done = imgtool("measure", "-O", "qcow2", path)
    assert (done.status, done.stderr) == (0, "")
    required, full = done.stdout.splitlines()[:2]
    assert required == "required size:        384 KiB (393216 bytes)"
    assert full.startswith("fully allocated size: 1.3 MiB (")
    said = json.loads(images.qemu_img("measure", "-O", "qcow2", "-f", "raw", "--output=json", path))
    assert imgtool("measure", "-O", "qcow2", path, "--output", "json").document == said


def test_for_an_empty_disk(imgtool: Imgtool) -> None:
    small = imgtool("measure", "--size", "1T", "-O", "qcow2", "-o", "cluster_size=2M", "--output", "json").document
    large = imgtool("measure", "--size", "1T", "-O", "qcow2", "--output", "json").document
    assert small["required"] < large["required"]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["-O", "qcow2"], 2, "needs an image, or --size"),
        (["-O", "qcow3", "--size", "1M"], 2, "no format 'qcow3'"),
        (["-O", "qcow2", "-o", "nope=1", "--size", "1M"], 2, "no option 'nope'"),
        (["-O", "qcow2", "gone"], 1, "does not exist"),
        (["-O", "qcow2", "-l", "s1", "disk.qcow2"], 1, "has no snapshot 's1'"),
    ],
)
def test_what_cannot_be_measured(images: Images, imgtool: Imgtool, words: list[str], status: int, said: str) -> None:
    images.base("disk.qcow2")
    done = imgtool("measure", *words, cwd=images.directory)
    assert (done.status, done.stdout) == (status, "")
    assert said in done.stderr
