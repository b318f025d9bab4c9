"""`imgtool amend`, as it is typed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Imgtool
    from tests.conftest import Images

pytestmark = pytest.mark.matrix


def test_options_of_an_existing_image(images: Images, imgtool: Imgtool) -> None:
    images.base("disk.qcow2")
    done = imgtool("amend", "-o", "lazy_refcounts=on", "disk.qcow2", cwd=images.directory)
    assert (done.status, done.stdout, done.stderr) == (0, "disk.qcow2: lazy_refcounts=on\n", "")
    changed = imgtool("amend", "-o", "compat=0.10", images / "disk.qcow2", "--output", "json").document
    assert changed["before"]["format-specific"]["data"]["lazy-refcounts"] is True
    assert changed["after"]["format-specific"]["data"]["compat"] == "0.10"


def test_a_dry_run_changes_nothing(images: Images, imgtool: Imgtool) -> None:
    path = images.base("disk.qcow2")
    before = path.read_bytes()
    plan = imgtool("amend", "-o", "compat=0.10", path, "--dry-run", "--output", "json").document
    assert plan["commands"][0][1:] == ["amend", "-o", "compat=0.10", "-f", "qcow2", str(path)]
    assert path.read_bytes() == before


def test_a_data_file_gets_a_name_that_leads_to_one(images: Images, imgtool: Imgtool) -> None:
    """QEMU writes any name, and could not open the image afterwards even to write another."""
    images.qemu_img("create", "-q", "-f", "qcow2", "-o", "data_file=data.raw", "disk.qcow2", "1M")
    images.base("plain.qcow2")
    before = (images / "disk.qcow2").read_bytes()
    for name, image, said in (
        ("", "disk.qcow2", f"{images.directory} is no file"),
        ("gone.raw", "disk.qcow2", f"{images / 'gone.raw'} is no file"),
        ("data.raw", "plain.qcow2", "has no external data file"),
    ):
        for more in ([], ["--dry-run"]):
            done = imgtool("amend", "-o", f"data_file={name}", images / image, *more)
            assert done.status == 1
            assert said in done.stderr
    assert (images / "disk.qcow2").read_bytes() == before
    (images / "data.raw").rename(images / "other.raw")
    assert imgtool("amend", "--force", "-o", "data_file=other.raw", images / "disk.qcow2").status == 1
    (images / "data.raw").symlink_to("other.raw")
    assert imgtool("amend", "-o", "data_file=other.raw", images / "disk.qcow2").status == 0
    (images / "data.raw").unlink()
    assert imgtool("check", images / "disk.qcow2", cwd=images.directory).status == 0


def test_what_can_be_amended_is_listed(imgtool: Imgtool) -> None:
    done = imgtool("amend", "-f", "qcow2", "-o", "help")
    assert done.status == 0
    assert "lazy_refcounts=" in done.stdout
    assert "cluster_size=" not in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-o", "lazyrefcounts=on", "disk.qcow2"], "did you mean 'lazy_refcounts'?"),
        (["-o", "compat=1.1", "disk.img"], "raw images have no options that can be amended"),
        (["-o", "=1", "disk.qcow2"], "not a list of options"),
        (["disk.qcow2"], "nothing to change was given"),
        (["-o", "compat=1.1"], "name of the image is missing"),
    ],
)
def test_requests_that_make_no_sense(images: Images, imgtool: Imgtool, words: list[str], said: str) -> None:
    images.base("disk.qcow2")
    images.base("disk.img", format="raw")
    done = imgtool("amend", *words, cwd=images.directory)
    assert (done.status, done.stdout) == (2, "")
    assert said in done.stderr
