"""`imgtool snapshot`, as it is typed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Imgtool
    from tests.conftest import Images

pytestmark = pytest.mark.matrix


def test_made_listed_applied_and_deleted(images: Images, imgtool: Imgtool) -> None:
    path = images.base("disk.qcow2", "1M")
    images.run_io(path, "write -P 1 0 64k")
    done = imgtool("snapshot", "-c", "before", "disk.qcow2", cwd=images.directory)
    assert (done.status, done.stdout, done.stderr) == (0, "disk.qcow2: snapshot before made, 1 snapshot now\n", "")
    images.run_io(path, "write -P 2 0 64k")
    done = imgtool("snapshot", "-l", path)
    head, row = done.stdout.splitlines()
    assert head.split() == ["ID", "NAME", "VM", "STATE", "DATE", "VM", "CLOCK"]
    assert re.fullmatch(r" 1  before\s+-  \d{4}-\d\d-\d\d \d\d:\d\d:\d\d  00:00:00\.000", row)
    (listed,) = imgtool("snapshot", path, "--output", "json").document
    assert (listed["id"], listed["name"]) == ("1", "before")
    done = imgtool("snapshot", "-a", "before", path)
    assert done.stdout == f"{path}: set back to snapshot before\n"
    images.run_io(path, "read -P 1 0 64k")
    changed = imgtool("snapshot", "-d", "1", path, "--output", "json").document
    assert len(changed["before"]["snapshots"]) == 1
    assert "snapshots" not in changed["after"]
    assert imgtool("snapshot", path).stdout == f"{path} has no snapshots\n"


def test_a_snapshot_that_is_not_there(images: Images, imgtool: Imgtool) -> None:
    path = images.base("disk.qcow2")
    for name in ("before-upgrade", "evil\x1b[31m"):
        images.qemu_img("snapshot", "-c", name, path)
    before = path.read_bytes()
    for letter in ("-a", "-d"):
        done = imgtool("snapshot", letter, "before-upgrad", path)
        assert (done.status, done.stdout) == (1, "")
        assert done.stderr == (
            f"imgtool: error: {path} has no snapshot 'before-upgrad'\n"
            "hint: did you mean 'before-upgrade'? there are before-upgrade, evil\\x1b[31m\n"
        )
    assert path.read_bytes() == before


def test_a_second_snapshot_of_one_name_is_refused(images: Images, imgtool: Imgtool) -> None:
    path = images.base("disk.qcow2")
    images.qemu_img("snapshot", "-c", "one", path)
    done = imgtool("snapshot", "-c", "one", path)
    assert done.status == 1
    assert "--force" in done.stderr
    assert imgtool("snapshot", "-c", "one", "--force", path).status == 0
    done = imgtool("snapshot", "-d", "2", path)
    assert (done.status, "deletes by name" in done.stderr) == (1, True)


def test_applying_one_to_a_backing_file_is_refused(images: Images, imgtool: Imgtool) -> None:
    path = images.base("base.qcow2")
    images.qemu_img("snapshot", "-c", "one", path)
    images.overlay("top.qcow2", "base.qcow2")
    done = imgtool("snapshot", "-a", "one", path)
    assert done.status == 1
    assert str(images / "top.qcow2") in done.stderr
    assert imgtool("snapshot", "-a", "one", "--force", path).status == 0


def test_a_format_that_holds_none(images: Images, imgtool: Imgtool) -> None:
    images.qemu_img("create", "-q", "-f", "qcow2", "-o", "data_file=data.raw,data_file_raw=on", "disk.qcow2", "1M")
    before = {path.name: path.read_bytes() for path in images.directory.iterdir()}
    for name, said in (("data.raw", "is raw"), ("disk.qcow2", "keeps its data in another file")):
        for more in ([], ["--dry-run"]):
            done = imgtool("snapshot", "-c", "one", name, *more, cwd=images.directory)
            assert (done.status, done.stdout) == (1, "")
            assert said in done.stderr
            assert f"`imgtool overlay new {images / name}` keeps the disk as it is" in done.stderr
            assert "qemu-img:" not in done.stderr
    assert {path.name: path.read_bytes() for path in images.directory.iterdir()} == before
    assert imgtool("overlay", "new", images / "disk.qcow2", "top.qcow2", cwd=images.directory).status == 0
    assert imgtool("snapshot", "-c", "one", "top.qcow2", cwd=images.directory).status == 0
    for words in (
        ["snapshot", "-f", "qcow3", "-c", "one", "disk.qcow2"],
        ["bitmap", "-f", "qcow3", "--add", "disk.qcow2", "b"],
    ):
        done = imgtool(*words, cwd=images.directory)
        assert done.status == 2
        assert "this qemu-img has no format 'qcow3'" in done.stderr


def test_listing_needs_neither_parents_nor_the_lock(images: Images, imgtool: Imgtool) -> None:
    path = images.overlay("top.qcow2", "gone.qcow2", size="1M")
    assert imgtool("snapshot", "-l", path).status == 0
    disk = images.base("disk.qcow2")
    with images.opened(disk):
        assert imgtool("snapshot", "-l", disk).status == 0
        assert imgtool("snapshot", "-c", "one", disk).status == 1


def test_a_dry_run_changes_nothing(images: Images, imgtool: Imgtool) -> None:
    path = images.base("disk.qcow2")
    before = path.read_bytes()
    plan = imgtool("snapshot", "-c", "one", path, "--dry-run", "--output", "json").document
    (command,) = plan["commands"]
    assert command[1:5] == ["snapshot", "-q", "-c", "one"]
    assert path.read_bytes() == before
    images.qemu_img(*command[1:])
    assert path.read_bytes() != before


def test_requests_that_make_no_sense(images: Images, imgtool: Imgtool) -> None:
    path = images.base("disk.qcow2")
    for words in (["-c", "a", "-d", "b", path], ["-l", "-c", "a", path], ["-c", "", path], ["-c", "a"]):
        done = imgtool("snapshot", *words)
        assert (done.status, done.stdout) == (2, ""), words


def test_applying_says_what_is_lost(images: Images, imgtool: Imgtool) -> None:
    path = images.base("disk.qcow2", "8M")
    images.qemu_img("snapshot", "-c", "one", path)
    images.run_io(path, "write -P 1 0 128k")
    plan = imgtool("snapshot", "-a", "one", path, "--dry-run", "--output", "json").document
    assert "131072 bytes" in plan["notes"][0]
    done = imgtool("snapshot", "-a", "one", path)
    assert done.status == 0
    assert "131072 bytes that were written since that snapshot are lost" in done.stderr
    done = imgtool("snapshot", "-a", "one", path)
    assert (done.status, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "words", [["snapshot", "-a", "1"], ["snapshot", "-d", "1"], ["convert", "-l", "1"]], ids=" ".join
)
def test_the_name_of_one_that_is_the_id_of_another_means_neither(
    images: Images, imgtool: Imgtool, words: list[str]
) -> None:
    """qemu-img takes it for the ID when it applies, and for the name when it deletes."""
    path = images.base("disk.qcow2")
    for name in ("first", "1"):
        images.qemu_img("snapshot", "-c", name, path)
    before = path.read_bytes()
    refused = imgtool(*words, path, *[images / "new"] * (words[0] == "convert"), "--output", "json")
    assert refused.status == 1
    assert refused.error["hint"] == "say first or 2"
    assert path.read_bytes() == before
    assert imgtool("snapshot", "-d", "2", path).status == 0
    assert imgtool("snapshot", "-a", "1", path).status == 0
