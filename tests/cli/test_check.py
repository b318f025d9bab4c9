"""`imgtool check`, as it is typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Imgtool
    from tests.conftest import Images

pytestmark = pytest.mark.matrix


def number(file: BinaryIO, offset: int) -> int:
    file.seek(offset)
    return int.from_bytes(file.read(8)) & 0x00FFFFFFFFFFFE00


def l2_table(file: BinaryIO) -> int:
    return number(file, number(file, 40))


def leaking(images: Images, name: str) -> Path:
    """A qcow2 with a cluster that is counted as used and that nothing refers to."""
    path = images.base(name)
    images.run_io(path, "write -P 1 0 128k")
    with path.open("r+b") as file:
        file.seek(l2_table(file) + 8)
        file.write(bytes(8))
    return path


def corrupt(images: Images, name: str) -> Path:
    """A qcow2 with a cluster in use that is counted as free."""
    path = images.base(name)
    images.run_io(path, "write -P 1 0 64k")
    with path.open("r+b") as file:
        cluster = number(file, l2_table(file)) >> 16
        file.seek(number(file, number(file, 48)) + 2 * cluster)
        file.write(bytes(2))
    return path


def test_a_clean_image(images: Images, imgtool: Imgtool) -> None:
    images.base("disk.qcow2", "1M")
    images.run_io(images / "disk.qcow2", "write 0 128k")
    done = imgtool("check", "disk.qcow2", cwd=images.directory)
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout.splitlines()[:2] == [
        "disk.qcow2: no errors found",
        "allocated:  2 of 16 clusters (12.50%)",
    ]
    done = imgtool("check", "-q", "disk.qcow2", cwd=images.directory)
    assert (done.status, done.stdout) == (0, "")


def test_leaks_are_said_with_the_command_that_gives_the_space_back(images: Images, imgtool: Imgtool) -> None:
    path = leaking(images, "my disk.qcow2")
    done = imgtool("check", path.name, cwd=images.directory)
    assert done.status == 3
    assert "1 leaked cluster, space lost but no data harmed" in done.stdout
    advice = next(line for line in done.stdout.splitlines() if line.startswith("give the space back: "))
    program, *words = shlex.split(advice.partition(": ")[2])
    assert program == "imgtool"
    done = imgtool(*words, cwd=images.directory)
    assert done.status == 0
    assert done.stdout.splitlines()[:2] == ["repaired: 1 leak", "my disk.qcow2: no errors found"]


def test_corruption_is_said_with_a_copy_before_the_repair(images: Images, imgtool: Imgtool) -> None:
    path = corrupt(images, "disk.qcow2")
    done = imgtool("check", path)
    assert done.status == 2
    assert re.search(r"disk.qcow2: [12] errors?, the data may be damaged", done.stdout)
    lines = done.stdout.splitlines()
    assert lines[1].startswith("copy it first: cp ")
    assert lines[2] == f"then repair:   imgtool check -r all -f qcow2 {path}"
    answer = imgtool("check", path, "--output", "json")
    assert answer.status == 2
    assert answer.document["corruptions"] >= 1
    assert imgtool("check", "-r", "all", path).status == 0


def test_the_repair_of_an_image_that_others_stand_on_is_refused(images: Images, imgtool: Imgtool) -> None:
    path = corrupt(images, "base.qcow2")
    images.overlay("top.qcow2", "base.qcow2")
    before = path.read_bytes()
    done = imgtool("check", "-r", "all", path)
    assert done.status == 1
    assert f"is the backing file of {images / 'top.qcow2'}" in done.stderr
    assert path.read_bytes() == before
    assert imgtool("check", "-r", "all", "--force", path).status == 0


def test_a_format_without_a_check(images: Images, imgtool: Imgtool) -> None:
    path = images.base("disk.img", format="raw")
    done = imgtool("check", "-f", "raw", path)
    assert (done.status, done.stdout) == (63, f"{path}: raw images have nothing that could be checked\n")
    done = imgtool("check", path, "--output", "json")
    assert (done.status, done.document) == (63, {"filename": str(path), "status": "unsupported"})


def test_whatever_cannot_be_checked_is_1(images: Images, imgtool: Imgtool) -> None:
    """2 would say that the image is corrupt."""
    path = images.base("disk.qcow2")
    for words in (["gone"], ["--nope", path], [], ["-f", "qcow3", path], ["-r", "some", path]):
        done = imgtool("check", *words)
        assert (done.status, done.stdout) == (1, ""), words
        assert "hint: " in done.stderr, words


def test_a_circle_of_backing_files_is_found_before_qemu_img_sees_it(images: Images, imgtool: Imgtool) -> None:
    images.base("base.qcow2")
    images.overlay("top.qcow2", "base.qcow2")
    images.rebase("base.qcow2", "top.qcow2")
    done = imgtool("check", images / "top.qcow2", "--output", "json")
    assert (done.status, done.stdout) == (1, "")
    assert done.error["code"] == "chain"


def test_a_dry_run_repairs_nothing(images: Images, imgtool: Imgtool) -> None:
    path = leaking(images, "disk.qcow2")
    before = path.read_bytes()
    plan = imgtool("check", "-r", "leaks", path, "--dry-run", "--output", "json").document
    assert plan["commands"][0][1:] == ["check", "--output=json", "-r", "leaks", "-f", "qcow2", str(path)]
    assert [(image["path"], image["action"]) for image in plan["images"]] == [(str(path), "write")]
    assert path.read_bytes() == before


def test_an_image_in_use_needs_force_share(images: Images, imgtool: Imgtool) -> None:
    path = images.base("disk.qcow2")
    with images.opened(path):
        done = imgtool("check", path)
        shared = imgtool("check", "-U", path)
    assert done.status == 1
    assert "is in use by" in done.stderr
    assert shared.status == 0
