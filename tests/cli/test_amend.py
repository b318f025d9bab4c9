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
