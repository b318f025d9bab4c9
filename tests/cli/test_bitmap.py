"""`imgtool bitmap`, as it is typed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from imgtool.cli.bitmap import actions_in
from imgtool.qemu.img_argv import Merge

if TYPE_CHECKING:
    from tests.cli.conftest import Imgtool
    from tests.conftest import Images

pytestmark = pytest.mark.matrix


def bitmaps(changed: Any) -> dict[str, list[str]]:
    found = changed["after"]["format-specific"]["data"].get("bitmaps", [])
    return {one["name"]: one["flags"] for one in found}


def test_actions_keep_their_order() -> None:
    words = ["--disable", "--merge", "--add", "-f", "qcow2", "--merge=b", "--clear", "--", "--remove"]
    assert actions_in(words) == ["disable", Merge("--add"), Merge("b"), "clear"]


def test_made_merged_and_removed(images: Images, imgtool: Imgtool) -> None:
    path = images.base("disk.qcow2")
    done = imgtool("bitmap", "--add", "-g", "1M", path, "monday")
    assert (done.status, done.stderr) == (0, "")
    assert [line.split() for line in done.stdout.splitlines()] == [
        [f"{path}:", "1", "bitmap", "now"],
        ["NAME", "GRANULARITY", "STATE"],
        ["monday", "1", "MiB", "records"],
    ]
    words: list[str | Path] = ["bitmap", "--add", "--disable", "--merge", "monday", path, "all", "--output", "json"]
    assert bitmaps(imgtool(*words).document) == {"monday": ["auto"], "all": []}
    done = imgtool("bitmap", "--remove", path, "monday", "-q")
    assert (done.status, done.stdout) == (0, "")
    assert "monday" not in imgtool("info", path).stdout


def test_merged_from_another_image(images: Images, imgtool: Imgtool) -> None:
    old, new = images.base("old.qcow2"), images.base("new.qcow2")
    images.qemu_img("bitmap", "--add", old, "b0")
    images.qemu_img("bitmap", "--add", new, "b0")
    plan = imgtool("bitmap", "--merge", "b0", "-b", old, new, "b0", "--dry-run", "--output", "json").document
    assert [(image["path"], image["action"]) for image in plan["images"]] == [
        (str(new), "replace"),
        (str(old), "read"),
    ]
    assert imgtool("bitmap", "--merge", "b0", "-b", old, "-F", "qcow2", new, "b0").status == 0


@pytest.mark.parametrize("name", [b"mon\xffday", b"mon\xc3(day", "Montag ü".encode()])
def test_a_bitmap_may_have_any_name(images: Images, imgtool: Imgtool, name: bytes) -> None:
    path = images.base("disk.qcow2")
    assert imgtool("bitmap", "--add", path, name).status == 0
    done = imgtool("bitmap", "--remove", path, name)
    assert (done.status, done.stdout) == (0, f"{path}: 0 bitmaps now\n")
    assert imgtool("bitmap", "--remove", path, name).status == 1


def test_a_bitmap_that_is_not_there(images: Images, imgtool: Imgtool) -> None:
    path = images.base("disk.qcow2")
    images.qemu_img("bitmap", "--add", path, "monday")
    done = imgtool("bitmap", "--clear", path, "munday")
    assert (done.status, done.stdout) == (1, "")
    assert done.stderr == (
        f"imgtool: error: {path} has no bitmap 'munday'\nhint: did you mean 'monday'? there are monday\n"
    )


@pytest.mark.parametrize("format", ["raw", "vmdk"])
def test_an_image_that_can_keep_no_bitmaps(images: Images, imgtool: Imgtool, format: str) -> None:
    path = images / f"disk.{format}"
    images.qemu_img("create", "-q", "-f", format, path, "1M")
    for words in (["--add"], ["--clear"], ["--add", "--dry-run"]):
        done = imgtool("bitmap", *words, path, "monday")
        assert (done.status, done.stdout) == (1, ""), words
        assert done.stderr == (
            f"imgtool: error: QEMU keeps bitmaps in qcow2 images only, and {path} is {format}\n"
            f"hint: convert it first: `imgtool convert -f {format} -O qcow2 {path} {path}.qcow2`\n"
        )


def test_requests_that_make_no_sense(images: Images, imgtool: Imgtool) -> None:
    path = images.base("disk.qcow2")
    for words in ([path, "b0"], ["--add", path], ["--add", "-g", "x", path, "b0"], ["--merge"]):
        done = imgtool("bitmap", *words)
        assert (done.status, done.stdout) == (2, ""), words
