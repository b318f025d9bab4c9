"""Commands that are given an encrypted image by its name, where no secret can be."""

from __future__ import annotations

import gzip
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Imgtool
    from tests.conftest import Images

pytestmark = pytest.mark.matrix


SAMPLES = Path(__file__).parents[2] / "fixtures" / "images"


@pytest.fixture
def encrypted(images: Images) -> Images:
    """`disk.luks`, `disk.qcow2` and its overlay `top.qcow2`, whose secret is in the file `secret`."""
    (images / "secret").write_text("swordfish")
    for name, sample in (("disk.luks", "luks.luks.gz"), ("disk.qcow2", "qcow2-luks.qcow2.gz")):
        (images / name).write_bytes(gzip.decompress((SAMPLES / sample).read_bytes()))
    images.overlay("top.qcow2", "disk.qcow2", size="4M")
    return images


@pytest.mark.parametrize(
    ("image", "held_by"), [("disk.luks", "disk.luks"), ("disk.qcow2", "disk.qcow2"), ("top.qcow2", "disk.qcow2")]
)
def test_the_hint_holds_the_words_that_open_it(encrypted: Images, imgtool: Imgtool, image: str, held_by: str) -> None:
    done = imgtool("map", encrypted / image, "--output", "json")
    assert (done.status, done.stdout) == (1, "")
    assert done.error["code"] == "refused"
    assert f"{encrypted / held_by} is encrypted" in done.error["message"]
    words = done.error["hint"].partition("FILE: ")[2].replace("FILE", str(encrypted / "secret"))
    opened = imgtool("map", *shlex.split(words))
    assert (opened.status, opened.stderr) == (0, "")


@pytest.mark.parametrize(
    "words",
    [
        "check disk.qcow2",
        "convert -O raw disk.luks new",
        "convert -O raw top.qcow2 new",
        "measure -O raw disk.qcow2",
        "resize disk.luks 2M",
        "snapshot -c a top.qcow2",
        "bitmap --add top.qcow2 a",
        "amend -o compat=1.1 top.qcow2",
        "overlay reset top.qcow2",
        "chain layers top.qcow2",
        "chain diff disk.qcow2 top.qcow2",
        "chain flatten top.qcow2",
    ],
)
def test_what_would_read_its_disk_says_what_to_do(encrypted: Images, imgtool: Imgtool, words: str) -> None:
    before = {path.name: path.read_bytes() for path in encrypted.directory.iterdir()}
    done = imgtool(*words.split(), cwd=encrypted.directory)
    assert (done.status, done.stdout) == (1, "")
    assert "is encrypted" in done.stderr
    assert "--object secret,id=key0,file=FILE --image-opts driver=" in done.stderr
    assert "command: " not in done.stderr
    assert {path.name: path.read_bytes() for path in encrypted.directory.iterdir()} == before


def test_compare_never_says_that_it_differs(encrypted: Images, imgtool: Imgtool) -> None:
    done = imgtool("compare", encrypted / "disk.luks", encrypted / "disk.qcow2")
    assert done.status == 2
    assert "is encrypted" in done.stderr


@pytest.mark.parametrize("words", ["info", "snapshot -l", "inspect", "chain show"])
def test_what_reads_no_disk_goes_on(encrypted: Images, imgtool: Imgtool, words: str) -> None:
    assert imgtool(*words.split(), encrypted / "disk.qcow2").status == 0


def test_an_encrypted_image_can_be_read_as_the_bytes_it_is(encrypted: Images, imgtool: Imgtool) -> None:
    assert imgtool("convert", "-f", "raw", "-O", "raw", encrypted / "disk.luks", encrypted / "copy").status == 0
    assert (encrypted / "copy").read_bytes() == (encrypted / "disk.luks").read_bytes()
