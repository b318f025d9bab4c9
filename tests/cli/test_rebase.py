"""`imgtool rebase`, as it is typed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Imgtool
    from tests.conftest import Images

pytestmark = pytest.mark.matrix


def two_bases(images: Images) -> None:
    for name, pattern in (("old.qcow2", 1), ("new.qcow2", 2)):
        images.base(name, "1M")
        images.run_io(images / name, f"write -P {pattern} 0 128k")
    images.overlay("top.qcow2", "old.qcow2")
    images.run_io(images / "top.qcow2", "write -P 3 64k 64k")


def test_what_a_guest_reads_stays(images: Images, imgtool: Imgtool) -> None:
    two_bases(images)
    done = imgtool("rebase", "-b", "new.qcow2", "-F", "qcow2", "top.qcow2", cwd=images.directory)
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout == "top.qcow2 stands on new.qcow2 now, on old.qcow2 before\n"
    images.run_io(images / "top.qcow2", "read -P 1 0 64k", "read -P 3 64k 64k")
    changed = imgtool("rebase", "-b", "", images / "top.qcow2", "--output", "json").document
    assert (changed["before"], changed["backing"], changed["proven"]) == ("new.qcow2", None, True)
    images.run_io(images / "top.qcow2", "read -P 1 0 64k", "read -P 3 64k 64k")


def test_only_the_name_is_changed_with_u(images: Images, imgtool: Imgtool) -> None:
    two_bases(images)
    (images / "moved.qcow2").write_bytes((images / "old.qcow2").read_bytes())
    done = imgtool("rebase", "-u", "-b", "moved.qcow2", "top.qcow2", cwd=images.directory)
    assert done.status == 0
    assert done.stdout == "top.qcow2 stands on moved.qcow2 now, on old.qcow2 before: only the name was changed\n"
    assert done.stderr == "imgtool: note: the backing file's format is qcow2, by its header\n"
    images.run_io(images / "top.qcow2", "read -P 1 0 64k")


def test_a_backing_file_that_is_called_raw_and_is_not_is_warned_of(images: Images, imgtool: Imgtool) -> None:
    two_bases(images)
    for option in ([], ["-u", "--force"], ["--dry-run"]):
        done = imgtool("rebase", *option, "-b", "new.qcow2", "-F", "raw", "top.qcow2", cwd=images.directory)
        assert done.status == 0
        assert f"{images / 'new.qcow2'} is named raw, but begins like a qcow2" in done.stderr


def test_a_new_backing_file_that_cannot_be_right_is_refused(images: Images, imgtool: Imgtool) -> None:
    two_bases(images)
    images.base("small.qcow2", "64k")
    before = (images / "top.qcow2").read_bytes()
    for name, said in (("gone.qcow2", "does not exist"), ("small.qcow2", "holds something else than the old one")):
        words = ["rebase", "-u", "-b", name, "-F", "qcow2", "top.qcow2"]
        done = imgtool(*words, cwd=images.directory)
        assert (done.status, done.stdout) == (1, "")
        assert said in done.stderr
        assert "--force" in done.stderr
        assert (images / "top.qcow2").read_bytes() == before
    done = imgtool(*words, "--force", cwd=images.directory)
    assert done.status == 0
    assert "it was not checked that a guest reads the same data" in done.stdout


def test_a_circle_is_never_made(images: Images, imgtool: Imgtool) -> None:
    two_bases(images)
    before = (images / "old.qcow2").read_bytes()
    for options in (["-u"], []):
        for name in ("top.qcow2", "old.qcow2"):
            done = imgtool("rebase", *options, "-b", name, "-F", "qcow2", "old.qcow2", cwd=images.directory)
            assert (done.status, done.stdout) == (1, "")
            assert "cannot have the backing file" in done.stderr
    assert (images / "old.qcow2").read_bytes() == before


def test_u_takes_a_circle_apart_by_force(images: Images, imgtool: Imgtool) -> None:
    two_bases(images)
    images.rebase("old.qcow2", "top.qcow2")
    words = ["rebase", "-u", "-b", "new.qcow2", "-F", "qcow2", "top.qcow2"]
    done = imgtool(*words, cwd=images.directory)
    assert (done.status, "--force" in done.stderr) == (1, True)
    assert imgtool(*words, "--force", cwd=images.directory).status == 0
    assert imgtool("check", images / "top.qcow2").status == 0


def test_a_dry_run_changes_nothing(images: Images, imgtool: Imgtool) -> None:
    two_bases(images)
    before = (images / "top.qcow2").read_bytes()
    words = ["rebase", "-b", "new.qcow2", "-F", "qcow2", "top.qcow2", "--dry-run", "--output", "json"]
    plan = imgtool(*words, cwd=images.directory).document
    top = str(images / "top.qcow2")
    assert plan["commands"][0][1:] == [
        *("rebase", "-t", "unsafe", "-b", "new.qcow2", "-F", "qcow2", "-f", "qcow2", top)
    ]
    assert [(image["action"], image["path"].rpartition("/")[2]) for image in plan["images"]] == [
        ("replace", "top.qcow2"),
        ("read", "old.qcow2"),
        ("read", "new.qcow2"),
    ]
    assert (images / "top.qcow2").read_bytes() == before


def test_requests_that_make_no_sense(images: Images, imgtool: Imgtool) -> None:
    two_bases(images)
    for words in (["top.qcow2"], ["-b", "new.qcow2"], ["-b", "new.qcow2", "-F", "qcow3", "top.qcow2"]):
        done = imgtool("rebase", *words, cwd=images.directory)
        assert (done.status, done.stdout) == (2, ""), words
    assert imgtool("rebase", "-b", "new.qcow2", "gone", cwd=images.directory).status == 1


def test_the_reference_can_be_made_absolute_or_relative(images: Images, imgtool: Imgtool) -> None:
    two_bases(images)
    for option, name, reference in (
        ("--absolute", "new.qcow2", str(images / "new.qcow2")),
        ("--relative", str(images / "new.qcow2"), "new.qcow2"),
    ):
        done = imgtool("rebase", option, "-b", name, images / "top.qcow2", "--output", "json")
        assert done.document["backing"] == reference
    assert imgtool("rebase", "--relative", "--absolute", "-b", "new.qcow2", images / "top.qcow2").status == 2


def test_an_image_given_by_its_options_is_qemu_imgs_own(images: Images, imgtool: Imgtool) -> None:
    two_bases(images)
    options = f"driver=qcow2,file.driver=file,file.filename={images / 'top.qcow2'}"
    words = ["rebase", "--image-opts", "-b", str(images / "new.qcow2"), "-F", "qcow2", options]
    done = imgtool(*words)
    assert (done.status, "--force" in done.stderr) == (1, True)
    assert imgtool(*words, "--force").status == 0
    images.run_io(images / "top.qcow2", "read -P 1 0 64k")
