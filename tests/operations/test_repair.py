"""What is mended reads as before, and what cannot be mended safely is left alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imgtool.chain.anchors import standing
from imgtool.chain.content import digest_of
from imgtool.chain.verify import verify
from imgtool.errors import UsageError
from imgtool.operations.anchor import anchor
from imgtool.operations.overlay import new_overlay
from imgtool.operations.repair import RepairRequest, repair
from imgtool.qemu.qemu_img import QemuImg
from tests.chain.test_verify import DYING, INCOMPATIBLE, forget_format, set_feature

if TYPE_CHECKING:
    from tests.conftest import Images

pytestmark = pytest.mark.matrix


def left(images: Images) -> list[str]:
    return [one.code for one in verify([images.directory]).defects]


def leak(path: Path) -> None:
    """Forgets an L2 table of the image, and with it what it led to."""
    with path.open("r+b") as file:
        file.seek(40)
        l1 = int.from_bytes(file.read(8))
        file.seek(l1)
        file.write(bytes(8))


@pytest.mark.parametrize("compat", ["1.1", "0.10"])
def test_a_backing_format_is_named(images: Images, compat: str) -> None:
    base = images.base("base.qcow2", "4M")
    images.run_io(base, "write -P 1 0 1M")
    top = images / "top.qcow2"
    images.qemu_img("create", "-q", "-f", "qcow2", "-o", f"compat={compat}", "-b", "base.qcow2", "-F", "qcow2", top)
    images.run_io(top, "write -P 2 0 64k")
    before = digest_of(top)
    forget_format(top)
    upper = new_overlay(top, images / "upper.qcow2").path
    done = repair([images.directory])
    assert [(one.code, one.done) for one in done.mended] == [("backing-format-missing", True)]
    assert QemuImg().info(top).backing_filename_format == "qcow2"
    assert digest_of(top) == before
    assert left(images) == []
    assert standing(upper, str(top)).state == "same"


def test_a_wrong_backing_format_is_put_right(images: Images) -> None:
    images.base("base.qcow2", "4M")
    top = images.overlay("top.qcow2", "base.qcow2", format="vmdk", size="4M")
    assert [one.done for one in repair([images.directory]).mended] == [True]
    assert QemuImg().info(top).backing_filename_format == "qcow2"
    assert left(images) == []


def test_a_doubtful_format_is_left_alone(images: Images) -> None:
    images.base("base.img", "4M")
    top = images.overlay("top.qcow2", "base.img", format="raw")
    assert repair([images.directory]).mended == ()
    assert QemuImg().info(top).backing_filename_format == "raw"


@pytest.mark.parametrize("absolute", [True, False])
def test_a_moved_parent_is_found_again(images: Images, absolute: bool) -> None:
    base = images.base("base.qcow2", "8M")
    images.run_io(base, "write -P 1 0 1M")
    top = new_overlay(base, images / "top.qcow2", absolute=absolute).path
    anchor([top], deep=True)
    before = digest_of(top)
    (images / "bases").mkdir()
    moved = base.rename(images / "bases/renamed.qcow2")
    (done,) = repair([images.directory]).mended
    assert done.done
    backing = QemuImg().info(top).backing_filename
    assert backing == (str(moved) if absolute else "bases/renamed.qcow2")
    found = standing(top, str(moved))
    assert found.state == "same"
    assert found.anchor is not None
    assert found.anchor.content == digest_of(moved)
    assert digest_of(top) == before
    assert left(images) == []


@pytest.mark.parametrize("times", [(1, 1), None])
def test_a_file_that_may_be_the_parent_is_proposed_and_not_taken(
    images: Images, times: tuple[int, int] | None
) -> None:
    """A copy with another time, and another disk of the same size and time, as out of an archive."""
    base = images.base("base.img", "8M", format="raw")
    images.run_io(base, "write -P 1 0 1M", "write -P 5 6M 4k", format="raw")
    os.utime(base, times)
    top = new_overlay(base, images / "top.qcow2").path
    other = images / "other.img"
    shutil.copyfile(base, other)
    if times is not None:
        images.run_io(other, "write -P 2 4k 4k", format="raw")  # where the anchor took no sample
    os.utime(other, times or (2, 2))
    base.unlink()
    done = repair([images.directory])
    assert done.mended == ()
    (defect,) = [one for one in done.left.defects if one.code == "missing-parent"]
    assert defect.repair == ("imgtool", "rebase", "-u", "--force", "-b", str(other), "-F", "raw", top)


def test_a_file_that_only_has_the_right_name_is_not_taken(images: Images) -> None:
    images.overlay("top.qcow2", "gone.qcow2", size="1M")
    images.base("elsewhere/gone.qcow2")
    done = repair([images.directory])
    assert done.mended == ()
    assert done.left.errors == 1


def test_leaked_clusters_are_given_back_and_overlays_remember_the_base(images: Images) -> None:
    base = images.base("base.qcow2", "8M")
    images.run_io(base, "write -P 1 0 1M")
    leak(base)
    top = new_overlay(base, images / "top.qcow2").path
    plan = RepairRequest([images.directory], deep=QemuImg()).plan("qemu-img")
    assert [(image.path, image.action) for image in plan.images] == [(str(base), "replace"), (top, "write")]
    done = repair([images.directory], deep=True)
    assert [(one.code, one.done) for one in done.mended] == [("leaks", True)]
    assert "16 leaked" in done.mended[0].message or "17 leaked" in done.mended[0].message
    assert done.left.defects == ()
    assert standing(top, str(base)).state == "same"
    images.qemu_img("check", base)


def test_a_dirty_image_is_mended_on_a_copy(images: Images) -> None:
    path = images / "dirty.qcow2"
    images.qemu_img("create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", path, "4M")
    io = os.environ.get("IMGTOOL_QEMU_IO", "qemu-io")
    subprocess.run([io, "-f", "qcow2", "-c", "write -P 1 0 1M", "-c", "sigraise 9", path], check=False)
    assert left(images) == ["dirty"]
    before = digest_of(path)
    assert [one.done for one in repair([images.directory]).mended] == [True]
    assert left(images) == []
    assert digest_of(path) == before
    images.qemu_img("check", path)


def test_damage_is_never_touched(images: Images) -> None:
    path = images.base("corrupt.qcow2")
    set_feature(path, INCOMPATIBLE, 2)
    whole = path.read_bytes()
    done = repair([images.directory], deep=True)
    assert done.mended == ()
    assert done.left.errors >= 1
    assert path.read_bytes() == whole


def test_a_parent_written_with_the_same_is_proven_and_one_with_other_bytes_is_not(images: Images) -> None:
    for name in ("same", "other"):
        base = images.base(f"{name}.qcow2", "8M")
        images.run_io(base, "write -P 1 1M 4M")
        anchor([new_overlay(base, images / f"on-{name}.qcow2").path], deep=True)
    images.run_io(images / "same.qcow2", "write -P 1 1M 64k")
    images.run_io(images / "other.qcow2", "write -P 2 1M 64k")
    done = repair([images.directory])
    assert {os.path.basename(one.path): one.done for one in done.mended} == {
        "on-same.qcow2": True,
        "on-other.qcow2": False,
    }
    assert left(images) == ["parent-written"]


@pytest.mark.parametrize("when", ["decided", "before"])
def test_a_change_that_was_broken_off_is_finished_or_cleared_away(images: Images, when: str) -> None:
    path = images.base("disk.qcow2")
    subprocess.run([sys.executable, "-c", DYING, path, when], check=False)
    before = digest_of(path)
    assert [one.done for one in repair([images.directory]).mended] == [True]
    assert [entry.name for entry in images.directory.iterdir()] == ["disk.qcow2"]
    assert digest_of(path) == before


def test_old_scratch_files_go_and_young_ones_stay(images: Images) -> None:
    images.base("disk.qcow2")
    for name, age in (("old", 1), ("young", None)):
        directory = images / f".imgtool-{name}"
        directory.mkdir()
        (directory / "0").write_bytes(b"x")
        if age is not None:
            os.utime(directory, (age, age))
    repair([images.directory])
    assert {entry.name for entry in images.directory.iterdir()} == {"disk.qcow2", ".imgtool-young"}


def test_an_image_in_use_is_said_and_the_others_are_mended(images: Images) -> None:
    images.base("base.qcow2", "4M")
    tops = [forget_format(images.overlay(f"{number}.qcow2", "base.qcow2")) for number in range(2)]
    with images.opened(tops[0]):
        done = {one.path: one for one in repair([images.directory]).mended}
    assert not done[str(tops[0])].done
    assert "in use" in done[str(tops[0])].message
    assert done[str(tops[1])].done


def test_only_what_is_named_is_mended_and_the_plan_changes_nothing(images: Images) -> None:
    images.base("base.qcow2", "4M")
    top = forget_format(images.overlay("top.qcow2", "base.qcow2"))
    whole = top.read_bytes()
    request = RepairRequest([images.directory])
    assert [touched.path for touched in request.plan("qemu-img").images] == [str(top)]
    assert repair([images.directory], only=["leaks"]).mended == ()
    assert top.read_bytes() == whole
    with pytest.raises(UsageError, match="not a defect code"):
        repair([images.directory], only=["nonsense"])
