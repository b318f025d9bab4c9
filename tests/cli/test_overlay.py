"""`imgtool overlay new` and `imgtool overlay list`, as they are typed."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Imgtool
    from tests.conftest import Images

pytestmark = pytest.mark.matrix


def test_the_new_path_is_printed_for_a_script_to_use(images: Images, imgtool: Imgtool) -> None:
    images.base("base.qcow2")
    done = imgtool("overlay", "new", "base.qcow2", cwd=images.directory)
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout == f"{images / 'base-overlay-1.qcow2'}\n"
    done = imgtool("overlay", "new", "base.qcow2", "top\n\udcff.qcow2", cwd=images.directory)
    assert done.stdout == f"{images.directory}/top\n\udcff.qcow2\n"


def test_json_says_what_was_made(images: Images, imgtool: Imgtool) -> None:
    base = images.base("base.qcow2", "1M")
    (images / "vms").mkdir()
    done = imgtool("overlay", "new", base, images / "vms/top.qcow2", "--size", "2M", "--output", "json")
    assert done.document["path"] == str(images / "vms/top.qcow2")
    assert done.document["virtual-size"] == 2 << 20
    assert done.document["parent"] == str(base)
    assert done.document["backing"] == {
        "reference": "../base.qcow2",
        "format": "qcow2",
        "kind": "file",
        "path": str(base),
    }


def test_a_dry_run_prints_the_plan_and_changes_nothing(images: Images, imgtool: Imgtool) -> None:
    base = images.base("base.qcow2")
    done = imgtool("overlay", "new", base, images / "a b.qcow2", "-o", "cluster_size=128k", "--dry-run")
    assert done.status == 0
    program = os.environ.get("IMGTOOL_QEMU_IMG", "qemu-img")
    read, create, run = done.stdout.splitlines()
    assert read == f"read    {base}"
    assert create == f"create  {images / 'a b.qcow2'}"
    assert os.path.basename(program) + " create" in run
    assert run.endswith(f"-b base.qcow2 -F qcow2 -o cluster_size=128k '{images / 'a b.qcow2'}'")
    plan = imgtool("overlay", "new", base, "--dry-run", "--output", "json").document
    assert plan["commands"][0][1:3] == ["create", "-q"]
    assert [image["action"] for image in plan["images"]] == ["read", "create"]
    assert os.listdir(images.directory) == ["base.qcow2"]


def test_options_reach_the_overlay(images: Images, imgtool: Imgtool) -> None:
    base = images.base("plain", format="raw")
    done = imgtool("overlay", "new", "-F", "raw", "--absolute", base, images / "top.qcow2", "--output", "json")
    assert done.document["backing"] == {
        "reference": str(base),
        "format": "raw",
        "kind": "file",
        "path": str(base),
    }


def test_refusals_name_the_way_out_and_exit_with_1(images: Images, imgtool: Imgtool) -> None:
    base = images.base("base.qcow2", "8M")
    small = imgtool("overlay", "new", base, "--size", "1M")
    assert (small.status, small.stdout) == (1, "")
    assert "hint: --allow-smaller" in small.stderr
    assert imgtool("overlay", "new", base, "--size", "1M", "--allow-smaller").status == 0
    exists = imgtool("overlay", "new", base, base, "--output", "json")
    assert (exists.status, exists.error["code"]) == (1, "image-exists")
    with images.opened(base):
        busy = imgtool("overlay", "new", base, "--output", "json")
        assert (busy.status, busy.error["code"]) == (1, "image-in-use")
        assert "--force" in busy.error["hint"]
        assert imgtool("overlay", "new", base, "--force").status == 0
    missing = imgtool("overlay", "new", images / "gone.qcow2", "--output", "json")
    assert (missing.status, missing.error["code"]) == (1, "image-not-found")
    assert imgtool("overlay", "new", base, "--size", "lots").status == 2


def test_a_base_after_its_overlay_is_told_its_place(images: Images, imgtool: Imgtool) -> None:
    images.base("base.qcow2")
    done = imgtool("overlay", "new", "a b.qcow2", "base.qcow2", cwd=images.directory)
    assert done.status == 1
    assert done.stderr == (
        f"imgtool: error: base {images / 'a b.qcow2'} does not exist\n"
        "hint: BASE stands first: `imgtool overlay new base.qcow2 'a b.qcow2'`\n"
    )


def test_overlays_are_listed(images: Images, imgtool: Imgtool) -> None:
    base = images.base("base.qcow2")
    images.overlay("a.qcow2", "base.qcow2")
    images.overlay("b.qcow2", "a.qcow2")
    done = imgtool("overlay", "list", "base.qcow2", cwd=images.directory)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["overlay", "a.qcow2"]
    everything = imgtool("overlay", "list", "--all", base, "--output", "json")
    assert [image["path"] for image in everything.document] == [str(images / "a.qcow2"), str(images / "b.qcow2")]
    none = imgtool("overlay", "list", images / "b.qcow2")
    assert (none.status, none.stdout, none.stderr) == (0, "", "imgtool: note: no overlays found\n")
    assert imgtool("overlay", "list", images / "b.qcow2", "--output", "json").document == []
    assert imgtool("overlay", "list", images / "gone.qcow2").status == 1


def test_many_at_once_are_printed_a_line_each(images: Images, imgtool: Imgtool) -> None:
    images.base("base.qcow2")
    (images / "vms").mkdir()
    done = imgtool("overlay", "new", "base.qcow2", "vms/web-{n}.qcow2", "--count", "3", cwd=images.directory)
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [str(images / f"vms/web-{number}.qcow2") for number in (1, 2, 3)]
    made = imgtool("overlay", "new", "base.qcow2", "vms", "--count", "1", "--output", "json", cwd=images.directory)
    assert [image["path"] for image in made.document] == [str(images / "vms/base-overlay-1.qcow2")]
    plan = imgtool("overlay", "new", "base.qcow2", "--count", "2", "--dry-run", cwd=images.directory)
    assert plan.stdout.splitlines()[:3] == [
        f"read    {images / 'base.qcow2'}",
        f"create  {images / 'base-overlay-1.qcow2'}",
        f"create  {images / 'base-overlay-2.qcow2'}",
    ]
    assert len(os.listdir(images / "vms")) == 4
    refused = imgtool("overlay", "new", "base.qcow2", "one.qcow2", "--count", "2", cwd=images.directory)
    assert refused.status == 2
    assert "{n}" in refused.stderr


DYING = """
import os
from imgtool.operations.overlays import new_overlays
link = os.link
def dying(source, target, **words):
    if target.endswith("overlay-2.qcow2"):
        os._exit(9)
    link(source, target, **words)
os.link = dying
new_overlays("base.qcow2", 3)
"""


@pytest.mark.parametrize("output", ["human", "json"])
def test_many_that_could_not_be_made_to_the_end_are_told(images: Images, imgtool: Imgtool, output: str) -> None:
    """The run was killed, and somebody took one of the names before the next."""
    images.base("base.qcow2")
    died = subprocess.run([sys.executable, "-c", DYING], cwd=images.directory, check=False)
    assert died.returncode == 9
    taken = images / "base-overlay-3.qcow2"
    taken.write_bytes(b"precious")
    done = imgtool("overlay", "new", "base.qcow2", "new.qcow2", "--output", output, cwd=images.directory)
    assert done.status == 0
    assert f"a change that was broken off earlier could not be finished: {taken}: File exists." in done.stderr
    assert taken.read_bytes() == b"precious"
    done = imgtool("overlay", "new", "base.qcow2", "newer.qcow2", "--output", output, cwd=images.directory)
    assert (done.status, done.stderr) == (0, "")
