"""`imgtool compare`, as it is typed."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Imgtool
    from tests.conftest import Images

pytestmark = pytest.mark.matrix


def test_the_same_disk_in_two_formats(images: Images, imgtool: Imgtool) -> None:
    images.base("one.qcow2", "1M")
    images.run_io(images / "one.qcow2", "write -P 7 64k 64k")
    images.qemu_img("convert", "-O", "vmdk", "one.qcow2", "two.vmdk")
    done = imgtool("compare", "one.qcow2", "two.vmdk", cwd=images.directory)
    assert (done.status, done.stdout, done.stderr) == (0, "one.qcow2 and two.vmdk: the same disk\n", "")
    done = imgtool("compare", "one.qcow2", "two.vmdk", "--output", "json", cwd=images.directory)
    assert (done.status, done.document["identical"], done.document["offset"]) == (0, True, None)


def test_different_disks_and_where(images: Images, imgtool: Imgtool) -> None:
    one, two = images.base("one.qcow2", "4M"), images.base("two.qcow2", "4M")
    images.run_io(two, "write -P 7 1M 64k")
    done = imgtool("compare", one, two)
    assert (done.status, done.stderr) == (1, "")
    assert done.stdout.splitlines() == [
        f"{one} and {two}: different disks",
        "first difference at byte 1048576 (1 MiB)",
    ]
    done = imgtool("compare", one, two, "--output", "json")
    assert (done.status, done.document["identical"], done.document["offset"]) == (1, False, 1048576)
    done = imgtool("compare", "-q", one, two)
    assert (done.status, done.stdout, done.stderr) == (1, "", "")


def test_a_small_offset_is_not_said_twice(images: Images, imgtool: Imgtool) -> None:
    one, two = images.base("one.qcow2"), images.base("two.qcow2")
    images.run_io(two, "write -P 7 0 64k")
    assert imgtool("compare", one, two).stdout.splitlines()[1] == "first difference at byte 0"


def test_sizes_count_only_when_strict(images: Images, imgtool: Imgtool) -> None:
    one, two = images.base("one.qcow2", "1M"), images.base("two.qcow2", "2M")
    done = imgtool("compare", one, two)
    assert done.status == 0
    assert "sizes differ: 1 MiB (1048576 bytes) and 2 MiB (2097152 bytes); what is over is zeros" in done.stdout
    assert imgtool("compare", "-s", one, two).status == 1


def test_formats_that_are_given_are_used(images: Images, imgtool: Imgtool) -> None:
    path = images.base("one.qcow2")
    assert imgtool("compare", "-f", "qcow2", "-F", "raw", path, path).status == 1
    assert imgtool("compare", "-f", "raw", "-F", "raw", path, path).status == 0


def test_what_cannot_be_opened_is_never_different(images: Images, imgtool: Imgtool) -> None:
    path = images.base("one.qcow2")
    (images / "stump.qcow2").write_bytes(path.read_bytes()[:60])
    images.overlay("a.qcow2", "one.qcow2")
    images.overlay("b.qcow2", "a.qcow2")
    images.rebase("a.qcow2", "b.qcow2")
    for words in ([path, "gone"], [path, "stump.qcow2"], ["a.qcow2", path], ["-f", "qcow3", path, path], [path]):
        done = imgtool("compare", *words, cwd=images.directory)
        assert (done.status, done.stdout) == (2, ""), words
        assert done.stderr.startswith("imgtool: error: ")


def test_a_dry_run_reads_nothing(images: Images, imgtool: Imgtool) -> None:
    one, two = images.base("one.qcow2"), images.base("two.img", format="raw")
    images.run_io(one, "write -P 7 0 64k")
    done = imgtool("compare", one, two, "--dry-run", "--output", "json")
    assert done.status == 0
    assert done.document["commands"][0][1:] == ["compare", "-f", "qcow2", "-F", "raw", str(one), str(two)]
    assert {image["action"] for image in done.document["images"]} == {"read"}


def test_who_started_imgtool_without_minding_children_gets_the_true_answer(images: Images) -> None:
    one, two = images.base("one.qcow2", "1M"), images.base("two.qcow2", "1M")
    images.run_io(two, "write -P 7 0 64k")
    code = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN);"
        "os.execv(sys.executable, [sys.executable, '-m', 'imgtool', *sys.argv[1:]])"
    )
    done = subprocess.run([sys.executable, "-c", code, "compare", one, two], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (1, b"")
    assert b"different disks" in done.stdout
