"""Anchors on real overlays: QEMU does not mind them, keeps them, and a changed parent shows."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from imgtool.errors import ImageFormatError
from imgtool.image.anchor import Anchor, Verdict, compare, read_anchor, take, write_anchor
from imgtool.image.header import read_header

pytestmark = pytest.mark.matrix

QEMU_IMG = os.environ.get("IMGTOOL_QEMU_IMG", "qemu-img")
QEMU_IO = os.environ.get("IMGTOOL_QEMU_IO", "qemu-io")


def qemu_img(*words: str | Path) -> None:
    subprocess.run([QEMU_IMG, *words], check=True, stdout=subprocess.DEVNULL)


def write(image: Path, format: str, *commands: str) -> None:
    words = [word for command in commands for word in ("-c", command)]
    subprocess.run([QEMU_IO, "-f", format, *words, image], check=True, stdout=subprocess.DEVNULL)


def opened(path: Path, flags: int = os.O_RDONLY) -> int:
    return os.open(path, flags)


def anchor_to(overlay: Path, parent: Path, *, content: str | None = None) -> Anchor:
    """Anchors `overlay` to `parent` and returns what was written."""
    parent_fd, fd = opened(parent), opened(overlay, os.O_RDWR)
    try:
        anchor = take(parent_fd, read_header(fd).backing or b"", directory=str(parent.parent), content=content)
        write_anchor(fd, anchor)
    finally:
        os.close(parent_fd)
        os.close(fd)
    return anchor


def anchor_of(overlay: Path) -> Anchor | None:
    fd = opened(overlay)
    try:
        return read_anchor(fd, read_header(fd))
    finally:
        os.close(fd)


def verdict(overlay: Path, parent: Path) -> Verdict:
    anchor = anchor_of(overlay)
    assert anchor is not None
    fd, parent_fd = opened(overlay), opened(parent)
    try:
        header = read_header(parent_fd)
        return compare(anchor, read_header(fd).backing or b"", parent_fd, header, directory=str(parent.parent))
    finally:
        os.close(fd)
        os.close(parent_fd)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.qcow2"
    qemu_img("create", "-f", "qcow2", path, "8M")
    write(path, "qcow2", "write -P 1 0 2M")
    return path


@pytest.fixture
def overlay(base: Path) -> Path:
    path = base.with_name("overlay.qcow2")
    qemu_img("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", path)
    write(path, "qcow2", "write -P 2 1M 2M")
    return path


def test_an_overlay_without_an_anchor_has_none(overlay: Path) -> None:
    assert anchor_of(overlay) is None


def test_an_anchor_reads_back_and_qemu_does_not_mind_it(base: Path, overlay: Path, tmp_path: Path) -> None:
    def seen() -> bytes:
        raw = tmp_path / "seen.raw"
        qemu_img("convert", "-f", "qcow2", "-O", "raw", overlay, raw)
        return raw.read_bytes()

    before, header = seen(), read_header_of(overlay)
    anchor = anchor_to(overlay, base, content="imgtool1:abc")
    assert anchor_of(overlay) == anchor
    assert seen() == before
    assert read_header_of(overlay) == header
    qemu_img("check", "-f", "qcow2", overlay)


def read_header_of(path: Path) -> tuple[object, ...]:
    fd = opened(path)
    try:
        header = read_header(fd)
    finally:
        os.close(fd)
    return header.format, header.virtual_size, header.backing, header.backing_format


def test_taking_an_anchor_out_leaves_the_image_as_it_was(base: Path, overlay: Path) -> None:
    whole = overlay.read_bytes()
    anchor_to(overlay, base)
    assert overlay.read_bytes() != whole
    fd = opened(overlay, os.O_RDWR)
    try:
        write_anchor(fd, None)
    finally:
        os.close(fd)
    assert overlay.read_bytes() == whole


@pytest.mark.parametrize(
    "change",
    [
        lambda overlay: write(overlay, "qcow2", "write -P 3 0 64k"),
        lambda overlay: qemu_img("resize", "-f", "qcow2", overlay, "16M"),
        lambda overlay: qemu_img("snapshot", "-c", "one", overlay),
        lambda overlay: qemu_img("amend", "-f", "qcow2", "-o", "lazy_refcounts=on", overlay),
        lambda overlay: qemu_img("bitmap", "--add", "-f", "qcow2", overlay, "b0"),
        lambda overlay: qemu_img("rebase", "-f", "qcow2", "-b", "", overlay),
        lambda overlay: qemu_img("commit", "-f", "qcow2", overlay),
        lambda overlay: Path(shutil.copy(overlay, overlay.with_name("copy"))).rename(overlay),
    ],
    ids=["write", "resize", "snapshot", "amend", "bitmap", "flatten", "commit", "copy"],
)
def test_an_anchor_goes_through_what_qemu_does(base: Path, overlay: Path, change: object) -> None:
    anchor = anchor_to(overlay, base)
    assert callable(change)
    change(overlay)
    assert anchor_of(overlay) == anchor


def test_an_untouched_parent_is_the_same(base: Path, overlay: Path) -> None:
    anchor_to(overlay, base)
    assert verdict(overlay, base) == "same"


def test_a_copied_parent_is_touched(base: Path, overlay: Path) -> None:
    anchor_to(overlay, base)
    os.utime(base)
    assert verdict(overlay, base) == "touched"


def test_a_parent_that_grew_is_changed(base: Path, overlay: Path) -> None:
    anchor_to(overlay, base)
    qemu_img("resize", "-f", "qcow2", base, "16M")
    assert verdict(overlay, base) == "changed"


def test_a_parent_overwritten_in_place_is_not_the_same(base: Path, overlay: Path) -> None:
    anchor_to(overlay, base)
    write(base, "qcow2", "write -P 9 0 64k")
    assert verdict(overlay, base) in ("touched", "changed")


def test_a_raw_parent_that_another_file_of_its_size_replaced_is_changed(base: Path) -> None:
    """Its layout says nothing: raw has none."""
    raw, other = base.with_name("base.raw"), base.with_name("other.raw")
    for path, pattern in ((raw, 1), (other, 2)):
        qemu_img("create", "-f", "raw", path, "8M")
        write(path, "raw", f"write -P {pattern} 1M 4M")
    overlay = base.with_name("on-raw.qcow2")
    qemu_img("create", "-f", "qcow2", "-b", "base.raw", "-F", "raw", overlay)
    anchor_to(overlay, raw)
    other.rename(raw)
    assert verdict(overlay, raw) == "changed"


@pytest.mark.parametrize(("pattern", "expected"), [(1, "same"), (2, "changed")])
def test_another_file_of_the_same_size_and_time_is_looked_at(base: Path, pattern: int, expected: str) -> None:
    """Archives and builds that are to be repeatable give one time to many files."""
    raw, other = base.with_name("base.raw"), base.with_name("other.raw")
    for path, byte in ((raw, 1), (other, pattern)):
        qemu_img("create", "-f", "raw", path, "8M")
        write(path, "raw", f"write -P {byte} 1M 4M")
        os.utime(path, (1, 1))
    overlay = base.with_name("on-raw.qcow2")
    qemu_img("create", "-f", "qcow2", "-b", "base.raw", "-F", "raw", overlay)
    anchor_to(overlay, raw)
    other.rename(raw)
    assert verdict(overlay, raw) == expected


def test_an_overlay_put_on_another_parent_has_a_stale_anchor(base: Path, overlay: Path) -> None:
    anchor_to(overlay, base)
    other = base.with_name("other.qcow2")
    shutil.copy2(base, other)
    qemu_img("rebase", "-u", "-f", "qcow2", "-b", "other.qcow2", "-F", "qcow2", overlay)
    assert verdict(overlay, other) == "stale"


def test_a_raw_parent_can_be_anchored_to(tmp_path: Path) -> None:
    base, overlay = tmp_path / "base.raw", tmp_path / "overlay.qcow2"
    qemu_img("create", "-f", "raw", base, "1M")
    qemu_img("create", "-f", "qcow2", "-b", "base.raw", "-F", "raw", overlay)
    anchor_to(overlay, base)
    assert verdict(overlay, base) == "same"


def test_a_name_that_is_no_utf8_is_anchored_as_it_is(tmp_path: Path) -> None:
    base, overlay = Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xff.raw")), tmp_path / "overlay.qcow2"
    qemu_img("create", "-f", "raw", base, "1M")
    qemu_img("create", "-f", "qcow2", "-b", base, "-F", "raw", overlay)
    assert anchor_to(overlay, base).reference == os.fsencode(base)
    assert verdict(overlay, base) == "same"


def test_version_2_has_no_room_for_an_anchor(base: Path) -> None:
    old = base.with_name("old.qcow2")
    qemu_img("create", "-f", "qcow2", "-o", "compat=0.10", "-b", "base.qcow2", "-F", "qcow2", old)
    with pytest.raises(ImageFormatError, match="version 2"):
        anchor_to(old, base)


def test_damaged_anchors_are_no_anchors(base: Path, overlay: Path) -> None:
    anchor_to(overlay, base)
    whole = overlay.read_bytes()
    at = whole.index(b'{"reference"')
    overlay.write_bytes(whole[:at] + b"[" + whole[at + 1 :])
    assert anchor_of(overlay) is None
