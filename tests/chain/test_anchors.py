"""What overlays remember of their parents, on real images: what is said, and what is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imgtool.chain.anchors import refuse_changed, standing
from imgtool.chain.verify import verify
from imgtool.chain.walk import walk
from imgtool.errors import RefusedError
from imgtool.machine.disks import Use, learn_disks
from imgtool.operations.move import move
from imgtool.operations.overlay import new_overlay

if TYPE_CHECKING:
    from tests.conftest import Images

pytestmark = pytest.mark.matrix


@pytest.fixture(params=["qcow2", "raw", "data file"])
def pair(images: Images, request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """A base of either format, or a qcow2 with an external data file, with data, and an anchored overlay."""
    format = "raw" if request.param == "raw" else "qcow2"
    base = images.base(f"base.{format}", "8M", format=format)
    if request.param == "data file":
        data = images / "base.data"
        images.qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={data}", base, "8M")
    images.run_io(base, "write -P 1 1M 4M", format=format)
    top = Path(new_overlay(base, images / "top.qcow2", base_format=format).path)
    return base, top


def state(pair: tuple[Path, Path]) -> str:
    base, top = pair
    return standing(str(top), str(base)).state


def test_a_parent_nobody_wrote_is_the_same(pair: tuple[Path, Path], images: Images) -> None:
    _, top = pair
    images.run_io(top, "write -P 2 0 64k", "read -P 1 2M 64k")
    assert state(pair) == "same"
    assert refuse_changed(walk(top)) == []


def test_a_store_copied_without_its_times_goes_on_working(pair: tuple[Path, Path], images: Images) -> None:
    copy = images / "copy"
    copy.mkdir()
    copied = tuple(Path(shutil.copyfile(path, copy / path.name)) for path in pair)
    os.utime(copied[0], (1, 1))
    assert standing(str(copied[1]), str(copied[0])).state == "copied"
    (note,) = refuse_changed(walk(copied[1]))
    assert "a copy of it" in note


def test_a_parent_written_in_place_is_refused_until_told_otherwise(pair: tuple[Path, Path], images: Images) -> None:
    base, top = pair
    images.run_io(base, "write -P 1 1M 64k", format=base.suffix[1:])
    assert state(pair) == "written"
    assert [defect.code for defect in verify(top).defects if defect.severity == "error"] == ["parent-written"]
    with pytest.raises(RefusedError, match="written after") as caught:
        refuse_changed(walk(top))
    assert "imgtool chain anchor" in str(caught.value.hint)
    assert "--force" in str(caught.value.hint)
    assert refuse_changed(walk(top), force=True) == [standing(str(top), str(base)).message]


def test_another_disk_under_the_parents_name_is_refused(pair: tuple[Path, Path], images: Images) -> None:
    base, top = pair
    format = base.suffix[1:]
    other = images.base(f"other.{format}", "8M", format=format)
    images.run_io(other, "write -P 9 1M 4M", format=format)
    other.rename(base)
    assert state(pair) == "changed"
    with pytest.raises(RefusedError, match="not the disk"):
        refuse_changed(walk(top))


def test_a_parent_deeper_down_is_looked_at_too(pair: tuple[Path, Path], images: Images) -> None:
    base, top = pair
    upper = new_overlay(top, images / "upper.qcow2").path
    images.run_io(base, "write -P 1 1M 64k", format=base.suffix[1:])
    with pytest.raises(RefusedError, match="written after"):
        refuse_changed(walk(upper))


def test_an_overlay_put_elsewhere_by_hand_remembers_nothing_of_its_new_parent(images: Images) -> None:
    base = images.base("base.qcow2", "8M")
    images.base("other.qcow2", "8M")
    top = new_overlay(base, images / "top.qcow2").path
    images.rebase("top.qcow2", "other.qcow2")
    assert standing(top, str(images / "other.qcow2")).state == "stale"
    (note,) = refuse_changed(walk(top))
    assert "by hand" in note


def test_overlays_that_remember_nothing_are_let_pass(images: Images) -> None:
    images.base("base.qcow2")
    top = images.overlay("top.qcow2", "base.qcow2")
    assert standing(str(top), str(images / "base.qcow2")).state == "none"
    assert refuse_changed(walk(top)) == []


def test_an_anchor_with_impossible_samples_is_only_wrong(images: Images) -> None:
    base = images.base("base.qcow2", "8M")
    images.run_io(base, "write -P 1 1M 4M")
    top = Path(new_overlay(base, images / "top.qcow2").path)
    whole = top.read_bytes()
    at = whole.index(b'"samples":[') + 11
    top.write_bytes(whole[:at] + b"-9" + whole[at + 2 :])
    os.utime(base, (1, 1))
    assert standing(str(top), str(base)).state == "changed"


def test_a_machine_does_not_start_on_a_parent_that_was_written(pair: tuple[Path, Path], images: Images) -> None:
    base, top = pair
    use = Use(str(top), None, writes=True)
    assert learn_disks([use]).disks
    images.run_io(base, "write -P 1 1M 64k", format=base.suffix[1:])
    with pytest.raises(RefusedError, match="written after"):
        learn_disks([use])
    assert learn_disks([use], force=True).disks


def test_a_data_file_that_moves_along_is_remembered(images: Images, tmp_path: Path) -> None:
    base, data = images / "base.qcow2", images / "base.data"
    images.qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={data}", base, "8M")
    top = Path(new_overlay(base, images / "top.qcow2").path)
    (images / "far").mkdir()
    move([base], images / "far")
    assert not data.exists()
    assert standing(str(top), str(images / "far/base.qcow2")).state == "same"
    move([images / "far/base.data"], images / "renamed.data")
    assert standing(str(top), str(images / "far/base.qcow2")).state == "same"
    (images / "renamed.data").rename(images / "away")
    assert standing(str(top), str(images / "far/base.qcow2")).state == "changed"
