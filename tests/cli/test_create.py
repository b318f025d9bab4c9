"""`imgtool create`, as it is typed."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imgtool.cli.create import parent_of
from imgtool.errors import ImageNotFoundError

if TYPE_CHECKING:
    from tests.cli.conftest import Imgtool
    from tests.conftest import Images

pytestmark = pytest.mark.matrix

ODD_NAMES = ["-x.qcow2", "a,b", "nbd:foo", "json:{}", "two\nlines", "no utf-8 \udcff"]


def test_an_image_is_made_and_said(images: Images, imgtool: Imgtool) -> None:
    done = imgtool("create", "-f", "qcow2", "-o", "cluster_size=2M", "disk.qcow2", "10G", cwd=images.directory)
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout == "made disk.qcow2: qcow2, 10 GiB (10737418240 bytes)\n"
    assert b"cluster_size: 2097152" in images.qemu_img("info", "disk.qcow2")
    done = imgtool("create", "-q", images / "disk.img", "1M")
    assert (done.status, done.stdout, done.stderr) == (0, "", "")
    assert (images / "disk.img").stat().st_size == 1 << 20


def test_json_says_what_was_made(images: Images, imgtool: Imgtool) -> None:
    path = images / "disk.vmdk"
    made = imgtool("create", "-f", "vmdk", path, "1G", "--output", "json").document
    assert made["path"] == str(path)
    assert made["written"] == [str(path)]
    assert made["info"]["format"] == "vmdk"
    assert made["info"]["virtual-size"] == 1 << 30


def test_what_exists_is_kept_unless_forced(images: Images, imgtool: Imgtool) -> None:
    path = images.base("disk.qcow2")
    before = path.read_bytes()
    for dry_run in ([], ["--dry-run"]):
        done = imgtool("create", "-f", "qcow2", path, "1G", *dry_run)
        assert (done.status, done.stdout) == (1, "")
        assert done.stderr == (
            f"imgtool: error: {path} already exists\nhint: choose another name, or --force to replace it\n"
        )
    assert path.read_bytes() == before
    assert imgtool("create", "-f", "qcow2", path, "1G", "--force").status == 0
    assert path.read_bytes() != before


def test_an_overlay_names_the_format_of_its_backing_file(images: Images, imgtool: Imgtool) -> None:
    images.base("base.qcow2", "1G")
    done = imgtool("create", "-f", "qcow2", "-b", "base.qcow2", "top.qcow2", cwd=images.directory)
    assert done.status == 0
    assert done.stdout == "made top.qcow2: qcow2, 1 GiB (1073741824 bytes), on base.qcow2\n"
    assert "format is qcow2, by its header" in done.stderr
    assert b"backing file format: qcow2" in images.qemu_img("info", "top.qcow2")
    done = imgtool("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "raw", "raw.qcow2", cwd=images.directory)
    assert (done.status, len(done.stderr.splitlines())) == (0, 1)
    assert f"warning: {images / 'base.qcow2'} is named raw, but begins like a qcow2" in done.stderr
    assert b"backing file format: raw" in images.qemu_img("info", "raw.qcow2")


def test_the_backing_name_starts_in_the_images_directory(images: Images, imgtool: Imgtool) -> None:
    images.base("base.qcow2")
    (images / "sub").mkdir()
    done = imgtool("create", "-f", "qcow2", "-b", "base.qcow2", "sub/top.qcow2", cwd=images.directory)
    assert done.status == 1
    assert f"there is no {images / 'sub/base.qcow2'}" in done.stderr
    assert "-b ../base.qcow2" in done.stderr
    done = imgtool("create", "-f", "qcow2", "-b", "../base.qcow2", "sub/top.qcow2", cwd=images.directory)
    assert done.status == 0
    done = imgtool(
        "create", "-u", "-f", "qcow2", "-b", "gone", "-F", "raw", "later.qcow2", "1M", cwd=images.directory
    )
    assert done.status == 0


def test_an_overlay_smaller_than_its_backing_file_is_refused(images: Images, imgtool: Imgtool) -> None:
    images.base("base.qcow2", "1G")
    words = ["create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2", "1M"]
    done = imgtool(*words, cwd=images.directory)
    assert done.status == 1
    assert "--force makes it anyway" in done.stderr
    assert not (images / "top.qcow2").exists()
    assert imgtool(*words, "--force", cwd=images.directory).status == 0


def test_an_image_is_never_its_own_backing_file(images: Images, imgtool: Imgtool) -> None:
    path = images.base("base.qcow2")
    before = path.read_bytes()
    done = imgtool("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", path, "--force")
    assert done.status == 1
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_is_always_a_files(images: Images, imgtool: Imgtool, name: str) -> None:
    done = imgtool("create", "-f", "qcow2", "-q", "--", name, "1M", cwd=images.directory)
    assert (done.status, done.stdout, done.stderr) == (0, "", "")
    assert [path.name for path in images.directory.iterdir()] == [name]
    done = imgtool("create", "-f", "qcow2", "-F", "qcow2", f"--backing={name}", "top", cwd=images.directory)
    assert done.status == 0
    assert b"backing file format: qcow2" in images.qemu_img("info", "--backing-chain", "top")


def test_a_dry_run_prints_a_command_that_does_it(images: Images, imgtool: Imgtool) -> None:
    images.base("base.qcow2", "1M")
    words = ["create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "it's top.qcow2", "--dry-run"]
    done = imgtool(*words, cwd=images.directory)
    assert done.status == 0
    assert [path.name for path in images.directory.iterdir()] == ["base.qcow2"]
    plan = imgtool(*words, "--output", "json", cwd=images.directory).document
    top = str(images / "it's top.qcow2")
    assert plan["images"] == [
        {"path": top, "action": "create", "bytes": None, "to": None},
        {"path": str(images / "base.qcow2"), "action": "read", "bytes": None, "to": None},
    ]
    (command,) = plan["commands"]
    shown = next(line for line in done.stdout.splitlines() if line.startswith("run"))
    assert shlex.split(shown)[1:] == command
    images.qemu_img(*command[1:])
    assert (images / "it's top.qcow2").exists()


def test_the_options_of_a_format_are_listed(imgtool: Imgtool) -> None:
    done = imgtool("create", "-f", "qcow2", "-o", "help")
    assert done.status == 0
    assert "cluster_size=<size>" in done.stdout
    assert "lazy_refcounts" in imgtool("create", "-f", "qcow2", "-o", "help", "--output", "json").document


@pytest.mark.parametrize(
    ("words", "said", "hint"),
    [
        (["-f", "qcow3", "x", "1M"], "no format 'qcow3'", "did you mean 'qcow"),
        (
            ["-f", "qcow2", "-o", "clustersize=1M", "x", "1M"],
            "no option 'clustersize'",
            "did you mean 'cluster_size'?",
        ),
        (["-f", "qcow2", "x", "10X"], "'10X' is not a size", "64k"),
        (["1G", "x.qcow2"], "'x.qcow2' is not a size", "write `imgtool create [OPTIONS] FILE [SIZE]`"),
        (["-f", "qcow2", "x"], "needs a size", ""),
        (["-f", "qcow2", "-u", "-b", "y", "x", "1M"], "needs its format named", "-F"),
        ([], "name of the image is missing", "--help"),
    ],
)
def test_requests_that_make_no_sense(
    images: Images, imgtool: Imgtool, words: list[str], said: str, hint: str
) -> None:
    done = imgtool("create", *words, cwd=images.directory)
    assert (done.status, done.stdout) == (2, "")
    assert said in done.stderr
    assert hint in done.stderr
    assert list(images.directory.iterdir()) == []


def test_a_name_that_promises_another_format_is_remarked_on(images: Images, imgtool: Imgtool) -> None:
    done = imgtool("create", "disk.qcow2", "1M", cwd=images.directory)
    assert done.status == 0
    assert done.stderr == (
        f"imgtool: warning: {images / 'disk.qcow2'} becomes a raw image: "
        "no format is given; -f qcow2 makes what it says\n"
    )


@pytest.mark.parametrize("words", [["create", "-f"], ["convert", "other.qcow2", "-O"]], ids=["create", "convert"])
def test_what_a_backing_file_stands_on_is_not_replaced_by_its_overlay(
    images: Images, imgtool: Imgtool, words: list[str]
) -> None:
    base = images.base("base.qcow2")
    images.overlay("mid.qcow2", "base.qcow2")
    images.overlay("top.qcow2", "mid.qcow2")
    images.base("other.qcow2")
    before = base.read_bytes()
    done = imgtool(*words, "qcow2", "base.qcow2", "-o", "backing_file=top.qcow2", "--force", cwd=images.directory)
    assert done.status == 1
    assert "stands on it" in done.stderr
    assert base.read_bytes() == before


@pytest.mark.parametrize("words", [["create", "-f"], ["convert", "other.qcow2", "-O"]], ids=["create", "convert"])
def test_replacing_a_base_by_force_names_who_stood_on_it(images: Images, imgtool: Imgtool, words: list[str]) -> None:
    images.base("base.qcow2")
    top = images.overlay("top.qcow2", "base.qcow2")
    images.base("other.qcow2")
    size = ["1M"] if words[0] == "create" else []
    done = imgtool(*words, "qcow2", "base.qcow2", *size, "--force", cwd=images.directory)
    assert done.status == 0
    assert f"warning: {top} stands on" in done.stderr
    again = imgtool(*words, "qcow2", "top.qcow2", *size, "--force", cwd=images.directory)
    assert (again.status, again.stderr) == (0, "")


def test_a_raw_image_has_the_options_of_files(images: Images, imgtool: Imgtool) -> None:
    path = images / "full.img"
    refused = imgtool("create", "-f", "raw", "-o", "preallocation=all", path, "1M")
    assert refused.status == 1
    assert "no option" not in refused.stderr
    assert "all" in refused.stderr
    assert imgtool("create", "-f", "raw", "-o", "preallocation=full", path, "1M").status == 0
    assert path.stat().st_blocks * 512 >= 1 << 20
    assert "preallocation" in imgtool("create", "-f", "raw", "-o", "help").stdout


@pytest.mark.parametrize(
    "words",
    [["create", "-f", "qcow2", "-b"], ["overlay", "new"], ["overlay", "new", "--count", "2"]],
    ids=["create", "overlay new", "overlay new --count"],
)
def test_a_base_that_is_called_raw_and_is_not_is_warned_of(
    images: Images, imgtool: Imgtool, words: list[str]
) -> None:
    images.base("base.qcow2")
    images.base("base.img", format="raw")
    done = imgtool(*words, "base.qcow2", "-F", "raw", "top-{n}.qcow2", cwd=images.directory)
    assert done.status == 0
    assert "named raw, but begins like a qcow2" in done.stderr
    assert imgtool(*words, "base.img", "-F", "raw", "new-{n}.qcow2", cwd=images.directory).stderr == ""


@pytest.mark.parametrize("words", [[], ["-f", "raw"], ["-f", "vdi"]])
def test_an_overlay_in_a_format_that_has_none_is_refused(images: Images, imgtool: Imgtool, words: list[str]) -> None:
    images.base("base.qcow2")
    refused = imgtool("create", *words, "-b", "base.qcow2", "top", cwd=images.directory)
    assert refused.status == 2
    assert "image has no backing file" in refused.stderr
    assert "-f qcow2 makes an overlay" in refused.stderr
    assert not (images / "top").exists()


@pytest.mark.parametrize(
    ("words", "option"),
    [(["-f", "luks"], "key-secret"), (["-f", "qcow2", "-o", "encrypt.format=luks"], "encrypt.key-secret")],
)
def test_who_forgot_the_key_is_told_how_to_give_one(
    images: Images, imgtool: Imgtool, words: list[str], option: str
) -> None:
    failed = imgtool("create", *words, "secret", "1M", cwd=images.directory)
    assert failed.status == 1
    hint = next(line for line in failed.stderr.splitlines() if line.startswith("hint: "))
    (images / "FILE").write_bytes(b"open sesame")
    given = shlex.split(hint.partition(": ")[2].partition(": ")[2])
    assert given[-1] == f"{option}=key"
    for _ in range(60):  # see tests.qemu.disks.patiently
        made = imgtool("create", *words, *given, "secret", "1M", cwd=images.directory)
        if "CPU usage" not in made.stderr:
            break
    assert made.status == 0, made.stderr


@pytest.mark.parametrize("what", ["rm base.qcow2", "mv other.qcow2 base.qcow2"])
@pytest.mark.parametrize("words", ["create -f qcow2 -b base.qcow2", "convert -O qcow2 -B base.qcow2 mid.qcow2"])
def test_what_is_no_more_the_backing_file_gets_no_overlay(
    images: Images, imgtool: Imgtool, tmp_path: Path, words: str, what: str
) -> None:
    """Another imgtool put it away, or changed it, while qemu-img worked."""
    images.base("base.qcow2")
    images.base("other.qcow2")
    images.overlay("mid.qcow2", "base.qcow2")
    program = os.environ.get("IMGTOOL_QEMU_IMG", "qemu-img")
    slow = tmp_path / "qemu-img"
    verb = words.split()[0]
    slow.write_text(f'#!/bin/sh\n{program} "$@" && [ "$1" != {verb} ] || {{ cd {images.directory} && {what}; }}\n')
    slow.chmod(0o755)
    before = sorted(os.listdir(images.directory))
    done = imgtool(*words.split(), "new.qcow2", cwd=images.directory, IMGTOOL_QEMU_IMG=str(slow))
    assert done.status == 1
    assert "base.qcow2 was" in done.stderr
    assert "by another program in the meantime" in done.stderr
    assert "hint: nothing was changed here; run the command again" in done.stderr
    assert sorted(os.listdir(images.directory)) == [name for name in before if name != what.split()[1]]


@pytest.mark.parametrize(
    "words", [["create", "-f", "raw", "new.raw", "10M"], ["convert", "-O", "raw", "old", "new.raw"]]
)
def test_a_file_that_is_too_large_for_its_place_has_a_hint(images: Images, words: list[str]) -> None:
    """qemu-img says only that the size is too large for the format."""
    images.qemu_img("create", "-q", "-f", "qcow2", "old", "10M")
    limited = ["sh", "-c", 'ulimit -f 2000; exec "$0" "$@"', sys.executable, "-m", "imgtool", *words]
    done = subprocess.run(limited, cwd=images.directory, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        "hint: the format, the file system (FAT: below 4 GiB) or `ulimit -f` allows no file as large" in done.stderr
    )
    assert sorted(os.listdir(images.directory)) == ["old"]


def test_a_block_device_stands_on_what_was_looked_at_before_it_is_written(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal afterwards would come too late."""
    images.base("base.qcow2")
    parent = parent_of(str(images / "new.qcow2"), "base.qcow2", None)
    assert parent.seen is not None
    (images / "base.qcow2").rename(images / "moved.qcow2")
    with contextlib.ExitStack() as stack:
        assert parent.second_look(stack, str(images / "new.qcow2")) is not None
        monkeypatch.setattr("imgtool.qemu.img_make.is_device", lambda _: True)
        with pytest.raises(ImageNotFoundError):
            parent.second_look(stack, "/dev/a-device")
