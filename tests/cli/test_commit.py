"""`imgtool commit`, as it is typed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Imgtool
    from tests.conftest import Images

pytestmark = pytest.mark.matrix


def chain(images: Images) -> None:
    """base ← mid ← top, each with a part of its own."""
    images.base("base.qcow2", "1M")
    images.run_io(images / "base.qcow2", "write -P 1 0 64k")
    images.overlay("mid.qcow2", "base.qcow2")
    images.run_io(images / "mid.qcow2", "write -P 2 64k 64k")
    images.overlay("top.qcow2", "mid.qcow2")
    images.run_io(images / "top.qcow2", "write -P 3 128k 64k")


def test_changes_go_into_the_backing_file(images: Images, imgtool: Imgtool) -> None:
    chain(images)
    done = imgtool("commit", "top.qcow2", cwd=images.directory)
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == f"top.qcow2: committed into {images / 'mid.qcow2'}, and emptied"
    images.run_io(images / "mid.qcow2", "read -P 2 64k 64k", "read -P 3 128k 64k")
    images.run_io(images / "top.qcow2", "write -P 4 192k 64k")
    result = imgtool("commit", "-d", "-t", "writethrough", images / "top.qcow2", "--output", "json").document
    assert result["path"] == str(images / "top.qcow2")
    assert result["base"] == str(images / "mid.qcow2")
    assert result["base-size-before"] == result["base-size-after"] == 1 << 20
    assert result["emptied"] is False
    images.run_io(images / "mid.qcow2", "read -P 4 192k 64k")


def test_into_an_image_further_down(images: Images, imgtool: Imgtool) -> None:
    chain(images)
    plan = imgtool(
        "commit", "-b", images / "base.qcow2", images / "top.qcow2", "--dry-run", "--output", "json"
    ).document
    assert [(image["path"].rpartition("/")[2], image["action"]) for image in plan["images"]] == [
        ("base.qcow2", "replace"),
        ("top.qcow2", "read"),
        ("mid.qcow2", "read"),
    ]
    assert f"{images / 'mid.qcow2'} will read the committed data as well" in plan["notes"]
    done = imgtool("commit", "-b", "base.qcow2", "top.qcow2", cwd=images.directory)
    assert done.status == 0
    assert f"{images / 'mid.qcow2'} reads the committed data as well" in done.stdout
    images.run_io(images / "base.qcow2", "read -P 2 64k 64k", "read -P 3 128k 64k")
    done = imgtool("commit", "-b", "top.qcow2", "mid.qcow2", cwd=images.directory)
    assert done.status == 1
    assert f"hint: it stands on {images / 'base.qcow2'}" in done.stderr


def test_a_sibling_would_be_damaged(images: Images, imgtool: Imgtool) -> None:
    chain(images)
    images.overlay("sibling.qcow2", "base.qcow2")
    before = (images / "base.qcow2").read_bytes()
    done = imgtool("commit", images / "mid.qcow2")
    assert (done.status, done.stdout) == (1, "")
    assert str(images / "sibling.qcow2") in done.stderr
    for way in ("--preserve-siblings", "imgtool convert", "--force"):
        assert way in done.stderr
    assert imgtool("commit", "-b", images / "base.qcow2", images / "top.qcow2").status == 1
    assert (images / "base.qcow2").read_bytes() == before
    done = imgtool("overlay", "commit", "--preserve-siblings", images / "mid.qcow2")
    assert done.status == 0
    assert f"{images / 'sibling.qcow2'} reads what it did before" in done.stdout
    images.run_io(images / "sibling.qcow2", "read -P 0 64k 64k")
    assert imgtool("commit", "--force", images / "mid.qcow2").status == 0


def test_a_dry_run_changes_nothing(images: Images, imgtool: Imgtool) -> None:
    chain(images)
    before = {path.name: path.read_bytes() for path in images.directory.iterdir()}
    done = imgtool("commit", "top.qcow2", "--dry-run", cwd=images.directory)
    assert done.status == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["replace", "replace", "run", "note"]
    assert {path.name: path.read_bytes() for path in images.directory.iterdir()} == before


def test_what_cannot_be_committed(images: Images, imgtool: Imgtool) -> None:
    chain(images)
    done = imgtool("commit", images / "base.qcow2")
    assert (done.status, "has no backing file" in done.stderr) == (1, True)
    with images.opened(images / "top.qcow2"):
        done = imgtool("commit", images / "top.qcow2")
    assert (done.status, "is in use for writing by" in done.stderr) == (1, True)
    (images / "base.qcow2").unlink()
    done = imgtool("commit", images / "top.qcow2")
    assert (done.status, "is broken" in done.stderr) == (1, True)
    assert imgtool("commit").status == 2


def test_an_image_given_by_its_options_is_qemu_imgs_own(images: Images, imgtool: Imgtool) -> None:
    chain(images)
    options = f"driver=qcow2,file.driver=file,file.filename={images / 'top.qcow2'}"
    done = imgtool("commit", "--image-opts", options)
    assert (done.status, done.stdout) == (1, "")
    assert "--force" in done.stderr
    plan = imgtool("commit", "--image-opts", "--force", options, "--dry-run", "--output", "json").document
    assert plan["commands"][0][1:] == ["commit", "--image-opts", options]
    assert imgtool("commit", "--image-opts", "--force", options).status == 0
    images.run_io(images / "mid.qcow2", "read -P 3 128k 64k")
    done = imgtool("commit", "--object", "secret,id=s,data=x", images / "top.qcow2")
    assert (done.status, "--image-opts" in done.stderr) == (2, True)


def test_a_progress_is_shown_to_programs(images: Images, imgtool: Imgtool) -> None:
    chain(images)
    done = imgtool("commit", "--progress", "json", images / "top.qcow2")
    assert done.status == 0
    assert '"task": "commit"' in done.stderr
