"""Anchoring again, by order and after a proof."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imgtool.chain.anchors import standing
from imgtool.chain.content import digest_of
from imgtool.chain.walk import walk
from imgtool.errors import ImageInUseError, RefusedError
from imgtool.operations.anchor import AnchorRequest, anchor
from imgtool.operations.overlay import new_overlay
from imgtool.operations.plan import Touched

if TYPE_CHECKING:
    from tests.conftest import Images

pytestmark = pytest.mark.matrix


@pytest.fixture
def pair(images: Images) -> tuple[Path, Path]:
    base = images.base("base.qcow2", "8M")
    images.run_io(base, "write -P 1 1M 4M")
    return base, Path(new_overlay(base, images / "top.qcow2").path)


def state(pair: tuple[Path, Path]) -> str:
    return standing(str(pair[1]), str(pair[0])).state


def test_a_written_parent_is_taken_as_it_is_by_order(pair: tuple[Path, Path], images: Images) -> None:
    base, top = pair
    images.run_io(base, "write -P 2 1M 64k")
    before = digest_of(top)
    (done,) = anchor([top])
    assert (done.path, done.parent, done.before, done.proven) == (str(top), str(base), "written", False)
    assert state(pair) == "same"
    assert digest_of(top) == before
    images.qemu_img("check", top)


def test_deep_records_the_content_and_proves_it_later(pair: tuple[Path, Path], images: Images) -> None:
    base, top = pair
    (first,) = anchor([top], deep=True)
    assert (first.before, first.content, first.proven) == ("same", digest_of(base), False)
    images.run_io(base, "write -P 1 1M 64k")
    assert state(pair) == "written"
    (second,) = anchor([top], deep=True)
    assert (second.before, second.proven, second.content) == ("written", True, first.content)
    assert state(pair) == "same"


def test_deep_refuses_another_content(pair: tuple[Path, Path], images: Images) -> None:
    base, top = pair
    anchor([top], deep=True)
    images.run_io(base, "write -P 2 1M 64k")
    whole = top.read_bytes()
    with pytest.raises(RefusedError, match="another disk") as caught:
        anchor([top], deep=True)
    assert "--force" in str(caught.value.hint)
    assert top.read_bytes() == whole
    (done,) = anchor([top], deep=True, force=True)
    assert not done.proven
    assert state(pair) == "same"


def test_without_a_content_nothing_can_be_proven(pair: tuple[Path, Path], images: Images) -> None:
    base, top = pair
    images.run_io(base, "write -P 1 1M 64k")
    with pytest.raises(RefusedError, match="nothing can be proven"):
        anchor([top], deep=True)
    assert anchor([top], deep=True, force=True)[0].content == digest_of(base)


def test_the_content_that_is_known_is_kept_where_the_parent_is_the_same(
    pair: tuple[Path, Path], images: Images
) -> None:
    base, top = pair
    content = anchor([top], deep=True)[0].content
    assert anchor([top])[0].content == content
    images.run_io(base, "write -P 2 1M 64k")
    assert anchor([top])[0].content is None


def test_overlays_of_qemus_own_making_can_be_anchored_and_all_at_once(images: Images) -> None:
    base = images.base("base.raw", "8M", format="raw")
    tops = [images.overlay(f"{number}.qcow2", "base.raw", format="raw") for number in range(3)]
    done = anchor(tops, deep=True)
    assert [one.before for one in done] == ["none"] * 3
    assert {one.content for one in done} == {digest_of(base)}
    assert all(standing(str(top), str(base)).state == "same" for top in tops)


def test_one_that_cannot_be_anchored_leaves_all_as_they_were(images: Images) -> None:
    images.base("base.qcow2")
    top = images.overlay("top.qcow2", "base.qcow2")
    old = images / "old.qcow2"
    images.qemu_img("create", "-q", "-f", "qcow2", "-o", "compat=0.10", "-b", "base.qcow2", "-F", "qcow2", old)
    with pytest.raises(RefusedError, match="version 3") as caught:
        anchor([top, old])
    assert "amend" in str(caught.value.hint)
    assert standing(str(top), str(images / "base.qcow2")).state == "none"


def test_bases_and_images_in_use_and_sealed_ones_are_refused(pair: tuple[Path, Path], images: Images) -> None:
    base, top = pair
    with pytest.raises(RefusedError, match="is a base"):
        anchor([base])
    with images.opened(top), pytest.raises(ImageInUseError):
        anchor([top])
    top.chmod(0o444)
    with pytest.raises(RefusedError, match="read-only"):
        anchor([top])


def test_the_plan_names_what_is_read_and_written(pair: tuple[Path, Path]) -> None:
    base, top = pair
    plan = AnchorRequest([top]).plan()
    assert plan.images == (Touched(path=str(base), action="read"), Touched(path=str(top), action="write"))
    assert state(pair) == "same"


def test_an_overlay_keeps_its_own_times_so_that_those_above_it_remember_it(
    pair: tuple[Path, Path], images: Images
) -> None:
    base, top = pair
    upper = new_overlay(top, images / "upper.qcow2").path
    os.utime(base, (1, 1))
    anchor([top])
    assert standing(upper, str(top)).state == "same"
    assert [standing(one.path, one.parent or "").state for one in walk(upper)[:2]] == ["same", "same"]
