"""A qcow2 of version 2 (compat=0.10): what it cannot have is refused before any work, by a dry run too, and the hint
leads on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Imgtool
    from tests.conftest import Images

pytestmark = pytest.mark.matrix

BECOMES = "`imgtool amend -o compat=1.1 {images}/old.qcow2` makes it version 3"


def old(images: Images, name: str = "old.qcow2") -> None:
    images.qemu_img("create", "-q", "-f", "qcow2", "-o", "compat=0.10", images / name, "1M")


def refused(images: Images, imgtool: Imgtool, words: str, said: str, hint: str, *, status: int = 1) -> None:
    before = {path.name: path.read_bytes() for path in images.directory.iterdir()}
    for more in ([], ["--dry-run"]):
        done = imgtool(*words.split(), *more, cwd=images.directory)
        assert done.status == status
        assert said in done.stderr
        assert f"\nhint: {hint.format(images=images.directory)}\n" in done.stderr
        assert "qemu-img:" not in done.stderr
    assert {path.name: path.read_bytes() for path in images.directory.iterdir()} == before


def test_bitmaps(images: Images, imgtool: Imgtool) -> None:
    old(images)
    refused(images, imgtool, "bitmap --add old.qcow2 b0", "of version 2 (compat=0.10), which cannot have", BECOMES)
    refused(images, imgtool, "convert --bitmaps -O qcow2 old.qcow2 x", "has no bitmaps", "leave out --bitmaps")
    assert imgtool("amend", "-o", "compat=1.1", "old.qcow2", cwd=images.directory).status == 0
    assert imgtool("bitmap", "--add", "old.qcow2", "b0", cwd=images.directory).status == 0
    hint = "-O qcow2 without compat=0.10 makes one; leave out --bitmaps to lose them"
    for target, what in (("-O qcow2 -o compat=0.10", "a qcow2 of version 2"), ("-O raw", "raw"), ("", "raw")):
        words = f"convert --bitmaps {target} old.qcow2 x"
        refused(images, imgtool, words, f"not into {what}", hint, status=2)
    assert imgtool("convert", "--bitmaps", "-O", "qcow2", "old.qcow2", "new", cwd=images.directory).status == 0


def test_another_size_than_its_snapshots(images: Images, imgtool: Imgtool) -> None:
    old(images)
    assert imgtool("snapshot", "-c", "one", "old.qcow2", cwd=images.directory).status == 0
    for words in ("resize old.qcow2 +1M", "resize --shrink old.qcow2 512k"):
        refused(images, imgtool, words, "another size than its internal snapshots", BECOMES)
    assert imgtool("amend", "-o", "compat=1.1", "old.qcow2", cwd=images.directory).status == 0
    assert imgtool("resize", "old.qcow2", "+1M", cwd=images.directory).status == 0


@pytest.mark.parametrize("option", ["lazy_refcounts=on", "refcount_bits=8"])
def test_amended_options(images: Images, imgtool: Imgtool, option: str) -> None:
    old(images)
    hint = f"-o compat=1.1,{option} makes it version 3 besides"
    said = f"is a qcow2 of version 2 (compat=0.10), which cannot have {option}"
    refused(images, imgtool, f"amend -o {option} old.qcow2", said, hint)
    assert imgtool("amend", "-o", f"compat=1.1,{option}", "old.qcow2", cwd=images.directory).status == 0
    refused(images, imgtool, f"amend -o compat=0.10,{option} old.qcow2", "becomes a qcow2 of version 2", hint)


def test_what_would_be_lost_by_becoming_one(images: Images, imgtool: Imgtool) -> None:
    """qemu-img exits 0, and the bitmaps are inconsistent afterwards."""
    images.base("bitmaps.qcow2")
    images.qemu_img("bitmap", "--add", images / "bitmaps.qcow2", "b0")
    for name, option in {"data": "data_file=data.raw", "l2": "extended_l2=on", "bits": "refcount_bits=8"}.items():
        images.qemu_img("create", "-q", "-f", "qcow2", "-o", option, f"{name}.qcow2", "1M")
    anew = "`imgtool convert -O qcow2 -o compat=0.10 {{images}}/{}.qcow2 NEW` makes an image without"
    for name, what, hint in (
        ("bitmaps", "dirty bitmaps", "`imgtool bitmap --remove {images}/bitmaps.qcow2 NAME` removes one"),
        ("bits", "refcount_bits=8", "-o compat=0.10,refcount_bits=16 changes both"),
        ("data", "an external data file", anew.format("data")),
        ("l2", "extended L2 entries", anew.format("l2")),
    ):
        refused(images, imgtool, f"amend -o compat=0.10 {name}.qcow2", f"has {what}, and", hint)
        if name in ("data", "l2"):
            words = ["convert", "-O", "qcow2", "-o", "compat=0.10", f"{name}.qcow2", f"new-{name}.qcow2"]
            assert imgtool(*words, cwd=images.directory).status == 0
    assert imgtool("bitmap", "--remove", "bitmaps.qcow2", "b0", cwd=images.directory).status == 0
    assert imgtool("amend", "-o", "compat=0.10", "bitmaps.qcow2", cwd=images.directory).status == 0
    done = imgtool("amend", "-o", "compat=0.10,refcount_bits=16", "bits.qcow2", cwd=images.directory)
    assert done.status == 0
