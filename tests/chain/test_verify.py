"""Every defect, made on real images: its code, whom it hurts, and what is said to mend it."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imgtool.chain.anchors import standing
from imgtool.chain.findings import KINDS
from imgtool.chain.hidden import hidden_findings
from imgtool.chain.scan import scan
from imgtool.chain.verify import Defect, verify
from imgtool.errors import ImageNotFoundError
from imgtool.image.policy import Policy, in_force
from imgtool.operations.anchor import anchor
from imgtool.operations.overlay import new_overlay
from imgtool.operations.repair import repair
from imgtool.operations.transaction import Transaction

if TYPE_CHECKING:
    from tests.conftest import Images

pytestmark = pytest.mark.matrix


def defects(images: Images, *, deep: bool = False, paths: list[Path] | None = None) -> list[Defect]:
    found = verify(paths or [images.directory], deep=deep)
    assert found.errors == sum(one.severity == "error" for one in found.defects)
    assert found.warnings == sum(one.severity == "warning" for one in found.defects)
    for one in found.defects:
        assert one.severity == KINDS[one.code].severity
        assert one.repair is None or one.repair[0] == "imgtool"
    return list(found.defects)


def only(found: Sequence[Defect], code: str) -> Defect:
    (one,) = [one for one in found if one.code == code]
    return one


def codes(found: list[Defect]) -> list[str]:
    return [one.code for one in found]


def set_feature(path: Path, offset: int, value: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes([value]))


def forget_format(path: Path) -> Path:
    """Since 6.1 qemu-img makes no image without a backing format: the extension's type becomes an unknown one."""
    whole = path.read_bytes()
    path.write_bytes(whole.replace(bytes.fromhex("e2792aca"), bytes.fromhex("e2792acb"), 1))
    return path


INCOMPATIBLE = 79
"""The lowest byte of a qcow2's incompatible features: docs/interop/qcow2.txt."""


def test_a_healthy_store_has_no_defects(images: Images) -> None:
    base = images.base("base.qcow2", "8M")
    new_overlay(base, images / "top.qcow2")
    images.base("plain.raw", format="raw")
    images.base("old.vmdk", format="vmdk")
    assert defects(images, deep=True) == []


def test_a_missing_parent_hurts_all_above_it(images: Images) -> None:
    images.overlay("middle.qcow2", "gone.qcow2", size="1M")
    images.overlay("top.qcow2", "middle.qcow2", size="1M")
    found = defects(images)
    assert codes(found) == ["missing-parent"]
    assert found[0].path == str(images / "middle.qcow2")
    assert found[0].images == (str(images / "middle.qcow2"), str(images / "top.qcow2"))
    assert found[0].repair is None
    assert "imgtool rebase" in str(found[0].hint)


def test_a_parent_that_was_moved_is_found_by_its_anchor(images: Images) -> None:
    base = images.base("base.qcow2", "8M")
    images.run_io(base, "write -P 1 0 1M")
    top = new_overlay(base, images / "top.qcow2").path
    (images / "bases").mkdir()
    base.rename(images / "bases/other-name.qcow2")
    images.base("decoy.qcow2", "8M")
    found = only(defects(images), "missing-parent")
    assert found.repair == ("imgtool", "chain", "repair", "--only", "missing-parent", top)
    assert found.automatic


def test_a_file_of_the_right_name_is_proposed_and_not_more(images: Images) -> None:
    top = images.overlay("top.qcow2", "gone.qcow2", size="1M")
    other = images.base("elsewhere/gone.qcow2")
    found = only(defects(images), "missing-parent")
    assert found.repair == ("imgtool", "rebase", "-u", "--force", "-b", str(other), "-F", "qcow2", str(top))
    assert not found.automatic


def test_circles(images: Images) -> None:
    images.overlay("one.qcow2", "two.qcow2", size="1M")
    images.overlay("two.qcow2", "one.qcow2", size="1M")
    images.overlay("own.qcow2", "own.qcow2", size="1M")
    found = defects(images, deep=True)
    assert sorted(codes(found)) == ["cycle", "cycle", "self-reference"]
    assert all(one.hint and "rebase -u" in one.hint for one in found)


def test_backing_formats(images: Images) -> None:
    images.base("base.qcow2")
    images.base("base.raw", format="raw")
    top = images.overlay("top.qcow2", "base.qcow2", format="vmdk", size="1M")
    bare = forget_format(images.overlay("bare.qcow2", "base.raw", format="raw"))
    images.overlay("doubtful.qcow2", "base.qcow2", format="raw")
    found = defects(images)
    wrong, missing = only(found, "backing-format-wrong"), only(found, "backing-format-missing")
    assert (wrong.path, missing.path) == (str(top), str(bare))
    assert wrong.automatic
    assert missing.automatic
    assert not only(found, "backing-format-doubtful").automatic


def test_sizes_of_overlays_and_bases(images: Images) -> None:
    images.base("base.qcow2", "8M")
    small = images.overlay("small.qcow2", "base.qcow2", size="4M")
    images.overlay("large.qcow2", "base.qcow2", size="16M")
    found = defects(images)
    assert only(found, "overlay-smaller").repair == ("imgtool", "resize", str(small), str(8 << 20))
    assert only(found, "overlay-larger").severity == "info"


def test_parents_that_are_not_what_they_were(images: Images) -> None:
    for name in ("written", "copied", "changed", "stale"):
        base = images.base(f"{name}.qcow2", "8M")
        images.run_io(base, "write -P 1 1M 4M")
        new_overlay(base, images / f"on-{name}.qcow2")
    images.run_io(images / "written.qcow2", "write -P 2 1M 64k")
    shutil.copy(images / "copied.qcow2", images / "copy")
    (images / "copy").rename(images / "copied.qcow2")
    os.utime(images / "copied.qcow2", (1, 1))
    images.qemu_img("resize", "-q", "-f", "qcow2", images / "changed.qcow2", "16M")
    images.rebase("on-stale.qcow2", "copied.qcow2")
    found = {one.code: one for one in defects(images)}
    named = {code: os.path.basename(one.path or "") for code, one in found.items()}
    assert named["parent-written"] == "on-written.qcow2"
    assert named["parent-copied"] == "on-copied.qcow2"
    assert named["parent-changed"] == "on-changed.qcow2"
    assert named["anchor-stale"] == "on-stale.qcow2"
    for code in ("parent-written", "parent-copied", "parent-changed", "anchor-stale"):
        assert found[code].repair == ("imgtool", "chain", "anchor", found[code].path)
        assert not found[code].automatic


def test_deep_reads_what_anchors_remember(images: Images) -> None:
    for name in ("rewritten", "touched", "same"):
        base = images.base(f"{name}.qcow2", "8M")
        images.run_io(base, "write -P 1 1M 4M")
        anchor([new_overlay(base, images / f"on-{name}.qcow2").path], deep=True)
    images.run_io(images / "rewritten.qcow2", "write -P 2 1M 64k")
    images.run_io(images / "touched.qcow2", "write -P 1 1M 64k")
    found = defects(images)
    assert codes(found) == ["parent-written", "parent-written"]
    assert found[0].repair == ("imgtool", "chain", "anchor", "--deep", found[0].path)
    found = defects(images, deep=True)
    assert [(one.code, os.path.basename(one.path or "")) for one in found] == [
        ("parent-changed", "on-rewritten.qcow2"),
        ("parent-copied", "on-touched.qcow2"),
    ]


def test_content_that_changed_without_a_trace_is_found_by_deep(images: Images) -> None:
    base = images.base("base.raw", "8M", format="raw")
    images.run_io(base, "write -P 1 1M 4M", format="raw")
    top = new_overlay(base, images / "top.qcow2").path
    anchor([top], deep=True)
    before = base.stat()
    images.run_io(base, "write -P 2 2M 512", format="raw")
    os.utime(base, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert defects(images) == []
    assert only(defects(images, deep=True), "parent-changed").images == (top,)


def test_marks_in_the_header(images: Images) -> None:
    for name, value in (("dirty", 1), ("corrupt", 2), ("future", 0x40)):
        set_feature(images.base(f"{name}.qcow2"), INCOMPATIBLE, value)
    found = defects(images)
    assert sorted(codes(found)) == ["corrupt", "dirty", "unknown-feature"]
    corrupt = only(found, "corrupt")
    assert corrupt.repair == ("imgtool", "check", "-r", "all", "-f", "qcow2", str(images / "corrupt.qcow2"))
    assert not corrupt.automatic
    assert only(found, "dirty").automatic
    told = {image.path: [one.code for one in image.findings] for image in scan([images.directory]).images}
    assert told == {
        str(images / "corrupt.qcow2"): ["corrupt"],
        str(images / "dirty.qcow2"): ["dirty"],
        str(images / "future.qcow2"): ["unknown-feature"],
    }


def test_an_image_that_is_written_is_not_closed_yet(images: Images) -> None:
    path = images.base("disk.qcow2")
    with images.opened(path):
        set_feature(path, INCOMPATIBLE, 1)
        assert codes(defects(images)) == ["in-use"]
        assert [image.findings for image in scan([path]).images] == [()]


@pytest.mark.parametrize("cluster", ["512", "64k", "2M"])
def test_a_file_cut_short(images: Images, cluster: str) -> None:
    path = images / "cut.qcow2"
    images.qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster}", path, "16M")
    images.run_io(path, "write -P 1 0 8M")
    assert defects(images) == []
    os.truncate(path, path.stat().st_size - (4 << 20))
    assert codes(defects(images)) == ["truncated"]


@pytest.mark.parametrize(
    "options", ["preallocation=metadata", "preallocation=falloc", "lazy_refcounts=on", "refcount_bits=1"]
)
def test_images_that_only_look_short_are_whole(images: Images, options: str) -> None:
    path = images / "whole.qcow2"
    images.qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, "16M")
    images.run_io(path, "write -P 1 1M 1M", "write -z 4M 1M", "discard 1M 64k")
    assert defects(images) == []


def test_a_compressed_image_is_whole(images: Images) -> None:
    base = images.base("base.raw", "8M", format="raw")
    images.run_io(base, "write -P 1 0 7M", format="raw")
    images.qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", base, images / "c.qcow2")
    assert defects(images) == []


def test_a_data_file_that_is_gone(images: Images) -> None:
    path = images / "top.qcow2"
    images.qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={images / 'data.raw'}", path, "1M")
    (images / "data.raw").unlink()
    found = defects(images)
    assert codes(found) == ["data-file-missing"]
    assert found[0].images == (str(path),)


def test_an_overlay_that_cannot_be_checked_is_told_why_and_is_not_counted(images: Images) -> None:
    images.base("base.qcow2")
    data, path = images / "data.raw", images / "top.qcow2"
    words = ("-b", images / "base.qcow2", "-F", "qcow2", "-o", f"data_file={data}")
    images.qemu_img("create", "-q", "-f", "qcow2", *words, path)
    data.unlink()
    found = verify([images.directory], deep=True)
    message = only(found.defects, "check-failed").message
    assert message.startswith("it was not checked: qemu-img: Could not open ")
    assert "deprecated" not in message
    assert (found.images, found.checked) == (2, 1)


def test_a_parent_outside_of_the_store(images: Images) -> None:
    base = images.base("bases/base.qcow2")
    images.overlay("vms/top.qcow2", "../bases/base.qcow2")
    found = only(defects(images, paths=[images / "vms"]), "outside-store")
    assert found.repair == ("imgtool", "chain", "move", str(base), f"{images / 'vms'}/")
    assert defects(images, paths=[images / "vms", images / "bases"]) == []
    assert codes(defects(images, paths=[images / "vms/top.qcow2"])) == ["not-trusted"]
    with in_force(Policy(files=(str(base),))):
        assert defects(images, paths=[images / "vms/top.qcow2"]) == []


def test_who_uses_an_image_is_said(images: Images) -> None:
    top = images.base("top.qcow2")
    with images.opened(top) as pid:
        found = only(defects(images, deep=True), "in-use")
        assert f"pid {pid}" in found.message
        assert only(defects(images, deep=True), "check-failed").path == str(top)


def test_names_and_snapshots(images: Images) -> None:
    path = images.base("disk.qcow2")
    images.qemu_img("snapshot", "-c", "one", path)
    os.link(path, images / "again.qcow2")
    found = defects(images)
    assert sorted(codes(found)) == ["duplicate-name", "snapshots"]
    kept = only(found, "snapshots")
    assert kept.repair is None  # nothing is broken
    assert f"imgtool snapshot -l {kept.path}" in (kept.hint or "")


def test_a_chain_too_deep(images: Images) -> None:
    images.base("c000.qcow2")
    template = images.overlay("c999.qcow2", "c000.qcow2").read_bytes()
    for number in range(1, 203):
        below = f"c{number - 1:03}.qcow2".encode()
        (images / f"c{number:03}.qcow2").write_bytes(template.replace(b"c000.qcow2", below))
    found = defects(images)
    assert codes(found) == ["too-deep"] * 3
    assert found[0].repair == ("imgtool", "chain", "flatten", str(images / "c200.qcow2"))


def test_what_only_qemu_sees(images: Images) -> None:
    leaky, damaged = images.base("leaky.qcow2", "8M"), images.base("damaged.qcow2", "8M")
    for path in (leaky, damaged):
        images.run_io(path, "write -P 1 0 1M")
        # with its L2 table forgotten, the clusters are leaked; with its entries changed, they are used twice
        with path.open("r+b") as file:
            file.seek(40)
            l1 = int.from_bytes(file.read(8))
            file.seek(l1)
            l2 = int.from_bytes(file.read(8)) & 0x00FFFFFFFFFFFE00
            if path == leaky:
                file.seek(l1)
                file.write(bytes(8))
            else:
                file.seek(l2 + 8)
                second = file.read(8)
                file.seek(l2)
                file.write(second)
    assert defects(images) == []
    found = defects(images, deep=True)
    leaks = only([one for one in found if one.path == str(leaky)], "leaks")
    assert leaks.repair == ("imgtool", "chain", "repair", "--only", "leaks", str(leaky))
    assert only(found, "damaged").path == str(damaged)
    assert not only(found, "damaged").automatic


DYING = """
import os, sys
from imgtool.operations import steps
from imgtool.operations.transaction import Transaction
path = os.path.abspath(sys.argv[1])
with Transaction(path) as change:
    change.replace(path, change.stage(path, copy_of=path))
    if sys.argv[2] == "decided":
        steps._do = lambda step, later: os._exit(9)
        change.commit()
    os._exit(9)
"""


@pytest.mark.parametrize(("when", "code"), [("decided", "unfinished-change"), ("before", "leftover")])
def test_a_change_that_was_broken_off(images: Images, when: str, code: str) -> None:
    path = images.base("disk.qcow2")
    subprocess.run([sys.executable, "-c", DYING, path, when], check=False)
    found = only(defects(images), code)
    assert found.repair == ("imgtool", "chain", "repair", "--only", code, str(images.directory))
    assert found.automatic
    with Transaction(str(path)) as running:
        assert running.journal not in [one.path for one in defects(images)]


def test_a_change_that_was_broken_off_elsewhere_is_nobodys_and_can_be_cleared_away(
    images: Images, tmp_path: Path
) -> None:
    """The directory was copied, or lies on a file system that numbers files anew each time it is mounted."""
    path = images.base("disk.qcow2")
    subprocess.run([sys.executable, "-c", DYING, path, "decided"], check=False)
    copy = tmp_path / "copy"
    shutil.copytree(images.directory, copy)
    found = defects(images, paths=[copy])
    assert {one.code for one in found} == {"leftover"}
    assert len(found) == 2
    before = (copy / "disk.qcow2").read_bytes()
    repair([copy])
    assert defects(images, paths=[copy]) == []
    assert os.listdir(copy) == ["disk.qcow2"]
    assert (copy / "disk.qcow2").read_bytes() == before


def test_what_a_killed_run_left_of_a_new_image_is_told_at_once(images: Images) -> None:
    left = [images / ".imgtool-0123456789abcdef.lock", images / ".imgtool-0123456789abcdef.tmp"]
    for path in left:
        path.touch()
    assert {(one.path, one.code) for one in defects(images)} == {(str(path), "leftover") for path in left}
    with left[0].open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert defects(images) == []


HALTING = """
import sys
from imgtool.operations import steps
from imgtool.operations.move import move
from imgtool.operations.inplace import CopyRequest
from imgtool.qemu.qemu_img import QemuImg

sync_names = steps._sync_names

def halt(done):
    sync_names(done)
    if any(step.verb in sys.argv[2] for step in done):
        steps._sync_names = sync_names
        print("between", flush=True)
        sys.stdin.readline()

steps._sync_names = halt
img = QemuImg()
if sys.argv[2] == "link":
    move(sys.argv[1], sys.argv[3])
else:
    CopyRequest(sys.argv[1]).make(img, lambda copy: img.snapshot_create(copy, "one"))
"""
"""Moves an image or makes a snapshot of it, and halts after the first step of the kind named."""


@pytest.mark.parametrize("step", ["link", "replace"])
def test_what_is_seen_between_two_steps_of_a_change_is_no_defect(
    images: Images, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = images.base("base.qcow2")
    overlay = new_overlay(base, images / "top.qcow2").path
    words = [sys.executable, "-c", HALTING, str(base), step, str(images / "moved.qcow2")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as change:
        assert change.stdin is not None
        assert change.stdout is not None
        assert change.stdout.readline() == b"between\n"
        assert base.stat().st_nlink == (2 if step == "link" else 1)
        assert standing(overlay, str(base)).state == ("same" if step == "link" else "changed")
        waits = []

        def wait(_: float) -> None:
            waits.append(change.poll())
            change.communicate(b"\n", timeout=60)

        monkeypatch.setattr("imgtool.chain.steady.sleep", wait)
        found = [one.code for one in defects(images)]
    assert change.returncode == 0
    assert waits[0] is None, "it was looked at between the steps"
    assert found == ([] if step == "link" else ["snapshots"])


def test_a_journal_that_goes_meanwhile_was_left_by_nobody(images: Images) -> None:
    gone = str(images / ".imgtool-0123456789ab.journal")
    assert list(hidden_findings([gone])) == []


def test_what_cannot_be_found_is_an_error_not_a_defect(images: Images) -> None:
    with pytest.raises(ImageNotFoundError):
        verify([images / "gone.qcow2"])


def test_all_at_once(images: Images) -> None:
    """One pass over a store with one of each: nothing hides another."""
    base = images.base("base.qcow2", "8M")
    new_overlay(base, images / "written.qcow2")
    images.run_io(base, "write -P 2 1M 64k")
    images.overlay("orphan.qcow2", "gone.qcow2", size="1M")
    images.overlay("one.qcow2", "two.qcow2", size="1M")
    images.overlay("two.qcow2", "one.qcow2", size="1M")
    set_feature(images.base("dirty.qcow2"), INCOMPATIBLE, 1)
    (images / "liar.vmdk").write_bytes(bytes(4096))
    found = defects(images)
    assert set(codes(found)) >= {"missing-parent", "cycle", "dirty", "name-misleads"}
    assert {"parent-written", "parent-changed"} & set(codes(found))
    grades = [one.severity for one in found]
    assert grades == sorted(grades, key=["error", "warning", "info"].index)
