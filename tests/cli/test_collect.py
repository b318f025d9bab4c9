"""`imgtool chain collect`, as it is typed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from imgtool.operations.overlay import new_overlay

if TYPE_CHECKING:
    from tests.cli.conftest import Imgtool
    from tests.conftest import Images

pytestmark = pytest.mark.matrix


def test_away_back_and_gone(images: Images, imgtool: Imgtool) -> None:
    base = images.base("base.qcow2")
    for name in ("web", "old"):
        new_overlay(base, images / f"{name}.qcow2")
    plan = imgtool("chain", "collect", ".", "--keep", "web.qcow2", "--dry-run", cwd=images.directory)
    assert plan.status == 0
    assert plan.stdout.startswith(f"rename  {images / 'old.qcow2'} to ")
    size = (images / "old.qcow2").stat().st_blocks * 512
    assert f"\ntotal   {size // 1024} KiB ({size} bytes)\nnote    needed, and staying: 2\n" in plan.stdout
    assert (images / "old.qcow2").exists()
    done = imgtool("chain", "collect", ".", "--keep", "web.qcow2", cwd=images.directory)
    assert done.status == 0
    assert done.stdout.startswith("put away: old.qcow2, ")
    assert "2 images needed" in done.stdout
    assert not (images / "old.qcow2").exists()
    assert "1 image, " in imgtool("chain", "collect", ".", "--list", cwd=images.directory).stdout
    assert imgtool("chain", "collect", ".", "--undo", cwd=images.directory).stdout.startswith("brought back: old")
    assert (images / "old.qcow2").exists()
    away = imgtool("chain", "collect", ".", "-k", "web.qcow2", "--output", "json", cwd=images.directory).document
    for words in (["--undo"], ["--purge"]):
        planned = imgtool("chain", "collect", ".", *words, "--dry-run", "--output", "json", cwd=images.directory)
        assert planned.document["total"] == size
    assert [file["path"] for file in away["files"]] == [str(images / "old.qcow2")]
    gone = imgtool("chain", "collect", ".", "--purge", "--id", away["id"], cwd=images.directory)
    assert gone.stdout.startswith("deleted: old.qcow2")
    assert sorted(path.name for path in images.directory.iterdir()) == ["base.qcow2", "web.qcow2"]


def test_a_kept_image_counts_by_whatever_name_it_is_kept(images: Images, imgtool: Imgtool) -> None:
    for name in ("web", "old"):
        images.base(f"store/{name}.qcow2")
    (images / "link").symlink_to("store")
    (images / "web").symlink_to("store/web.qcow2")
    for directory, keep in (("link", "link/web.qcow2"), ("store", "link/web.qcow2"), ("link", "web")):
        words = ["chain", "collect", directory, "--keep", keep, "--dry-run", "--output", "json"]
        plan = imgtool(*words, cwd=images.directory).document
        assert [image["path"] for image in plan["images"]] == [str(images / "store/old.qcow2")]
        assert plan["notes"][0] == "needed, and staying: 1"


def test_what_makes_no_sense_is_refused(images: Images, imgtool: Imgtool) -> None:
    images.base("base.qcow2")
    assert imgtool("chain", "collect", images.directory).status == 2
    assert imgtool("chain", "collect", images.directory, "--undo", "--purge").status == 2
    assert imgtool("chain", "collect", images.directory, "--undo").status == 1
    assert imgtool("chain", "collect", images / "gone", "--keep", "x").status == 1
    assert imgtool("schema", "chain-collect").status == 0
