"""`imgtool convert`, as it is typed, and as it is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imgtool.qemu.img_help import knows_zstd
from imgtool.qemu.programs import Programs

if TYPE_CHECKING:
    from tests.cli.conftest import Imgtool
    from tests.conftest import Images

pytestmark = pytest.mark.matrix


def disk(images: Images, name: str = "disk.qcow2") -> Path:
    path = images.base(name, "4M")
    images.run_io(path, "write -P 1 0 1M", "write -P 2 2M 64k")
    return path


def same(images: Images, one: Path, two: Path) -> bool:
    return b"identical" in images.qemu_img("compare", one, two)


def test_into_another_format(images: Images, imgtool: Imgtool) -> None:
    path = disk(images)
    done = imgtool("convert", "-p", "-f", "qcow2", "-O", "vmdk", "disk.qcow2", "new.vmdk", cwd=images.directory)
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout == "made new.vmdk: vmdk, 4 MiB (4194304 bytes)\n"
    assert same(images, path, images / "new.vmdk")
    words = ["-c", "-o", "cluster_size=128k", "-m", "4", "-W", "-S", "4k", "-t", "none", "-T", "writeback"]
    made = imgtool("convert", "-O", "qcow2", *words, path, images / "new.qcow2", "--output", "json").document
    assert made["path"] == str(images / "new.qcow2")
    assert made["info"]["cluster-size"] == 131072
    assert made["written"] == [str(images / "new.qcow2")]
    assert same(images, path, images / "new.qcow2")
    assert sorted(os.listdir(images.directory)) == ["disk.qcow2", "new.qcow2", "new.vmdk"]


def test_several_images_one_after_another(images: Images, imgtool: Imgtool) -> None:
    one, two = images.base("one.img", "1M", format="raw"), images.base("two.img", "2M", format="raw")
    images.run_io(two, "write -P 3 0 64k", format="raw")
    assert imgtool("convert", "-O", "raw", one, two, images / "both.img").status == 0
    assert (images / "both.img").read_bytes() == one.read_bytes() + two.read_bytes()


def test_only_what_differs_from_a_backing_file(images: Images, imgtool: Imgtool) -> None:
    images.base("base.qcow2", "4M")
    images.qemu_img("convert", "-O", "raw", disk(images), "whole.img")
    done = imgtool("convert", "-O", "qcow2", "-B", "base.qcow2", "whole.img", "top.qcow2", cwd=images.directory)
    assert done.status == 0
    assert done.stdout == "made top.qcow2: qcow2, 4 MiB (4194304 bytes), on base.qcow2\n"
    assert same(images, images / "whole.img", images / "top.qcow2")


def test_one_snapshot_of_it(images: Images, imgtool: Imgtool) -> None:
    path = disk(images)
    images.qemu_img("snapshot", "-c", "old", path)
    images.qemu_img("convert", "-O", "raw", path, "now.img")
    images.run_io(path, "write -P 9 0 1M")
    for word, name in (("old", "one.img"), ("snapshot.id=1", "two.img")):
        assert imgtool("convert", "-O", "raw", "-l", word, path, images / name).status == 0
        assert (images / name).read_bytes() == (images / "now.img").read_bytes()
    done = imgtool("convert", "-O", "raw", "-l", "odl", path, images / "no.img")
    assert done.status == 1
    assert done.stderr.splitlines()[1] == "hint: did you mean 'old'? there are old"
    assert not (images / "no.img").exists()


def test_a_target_that_exists_is_kept_unless_forced(images: Images, imgtool: Imgtool) -> None:
    path, target = disk(images), images.base("target.qcow2")
    before = target.read_bytes()
    for dry_run in ([], ["--dry-run"]):
        done = imgtool("convert", "-O", "qcow2", path, target, *dry_run)
        assert (done.status, done.stdout) == (1, "")
        assert "--force to replace it" in done.stderr
    assert target.read_bytes() == before
    assert imgtool("convert", "-O", "qcow2", path, target, "--force").status == 0
    assert same(images, path, target)


def test_with_n_an_existing_target_is_written_in_place(images: Images, imgtool: Imgtool) -> None:
    path, target = disk(images), images.base("target.qcow2", "4M")
    inode = target.stat().st_ino
    assert imgtool("convert", "-n", "-O", "qcow2", path, target).status == 0
    assert same(images, path, target)
    assert target.stat().st_ino == inode
    images.overlay("top.qcow2", "target.qcow2")
    done = imgtool("convert", "-n", "-O", "qcow2", path, target)
    assert (done.status, str(images / "top.qcow2") in done.stderr) == (1, True)


def test_what_is_read_is_never_the_target(images: Images, imgtool: Imgtool) -> None:
    path = disk(images, "base.qcow2")
    top = images.overlay("top.qcow2", "base.qcow2")
    before = path.read_bytes()
    for source in (path, top):
        done = imgtool("convert", "-O", "raw", "--force", source, path)
        assert (done.status, done.stdout) == (2, "")
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["-x.qcow2", "a,b", "nbd:foo", "json:{}", "two\nlines", "no utf-8 \udcff"])
def test_a_name_is_always_a_files(images: Images, imgtool: Imgtool, name: str) -> None:
    path = disk(images, name)
    done = imgtool("convert", "-O", "raw", "--", name, f"new {name}", cwd=images.directory)
    assert (done.status, done.stderr) == (0, "")
    assert "\n" not in done.stdout.rstrip("\n")
    assert sorted(os.listdir(images.directory)) == sorted([name, f"new {name}"])
    assert same(images, path, images / f"new {name}")


def test_a_machine_that_writes_is_not_copied(images: Images, imgtool: Imgtool) -> None:
    path = disk(images)
    words: list[str | Path] = ["convert", "-O", "raw", path, images / "copy.img"]
    with images.opened(path) as pid:
        done = imgtool(*words)
        shared = imgtool(*words, "-U")
        forced = imgtool(*words, "-U", "--force")
    assert done.status == 1
    assert f"(pid {pid})" in done.stderr
    assert shared.status == 1
    assert "would be torn" in shared.stderr
    assert forced.status == 0


def test_a_circle_of_backing_files_is_found_before_qemu_img_sees_it(images: Images, imgtool: Imgtool) -> None:
    images.base("base.qcow2")
    images.overlay("top.qcow2", "base.qcow2")
    images.rebase("base.qcow2", "top.qcow2")
    done = imgtool("convert", "-O", "raw", images / "top.qcow2", images / "new.img")
    assert done.status == 1
    assert "never ends" in done.stderr


def test_a_dry_run_prints_a_command_that_does_it(images: Images, imgtool: Imgtool) -> None:
    path, target = disk(images), images / "new.qcow2"
    plan = imgtool("convert", "-O", "qcow2", "-c", path, target, "--dry-run", "--output", "json").document
    (command,) = plan["commands"]
    zstd = ["-o", "compression_type=zstd"] if knows_zstd(Programs()) else []
    words = ["convert", "-t", "unsafe", *zstd, "-c", "-O", "qcow2", "-f", "qcow2", str(path), str(target)]
    assert command[1:] == words
    assert [(image["action"], image["path"]) for image in plan["images"]] == [
        ("create", str(target)),
        ("read", str(path)),
    ]
    assert not target.exists()
    images.qemu_img(*command[1:])
    assert same(images, path, target)


def test_compressed_it_is_by_zstd_unless_something_else_is_said(images: Images, imgtool: Imgtool) -> None:
    path = disk(images)
    newest = "zstd" if knows_zstd(Programs()) else "zlib"
    for options, compression in (
        ([], newest),
        (["-o", "compression_type=zlib"], "zlib"),
        (["-o", "compat=v2"], "zlib"),
    ):
        made = imgtool(
            "convert", "-O", "qcow2", "-c", *options, path, images / "new.qcow2", "--force", "--output", "json"
        )
        assert (made.status, made.stderr) == (0, "")
        data = made.document["info"]["format-specific"]["data"]
        assert data.get("compression-type", "zlib") == compression
        assert same(images, path, images / "new.qcow2")


def test_each_time_it_is_the_same_bytes(images: Images, imgtool: Imgtool) -> None:
    path = images.base("disk.img", "16M", format="raw")
    path.write_bytes(b"".join(f"{number:8}\n".encode() * 99 for number in range(8000)))
    names = [images / f"new-{number}.qcow2" for number in range(3)]
    for name in names:
        assert imgtool("convert", "-f", "raw", "-O", "qcow2", "-c", path, name).status == 0
    assert len({name.read_bytes() for name in names}) == 1


def test_a_backing_file_that_is_not_the_sources_own_is_refused(images: Images, imgtool: Imgtool) -> None:
    """qemu-img convert -B copies the top alone, and silently loses what lies between it and the backing file."""
    base = images.base("base.qcow2", "4M")
    images.overlay("middle.qcow2", "base.qcow2")
    images.run_io(images / "middle.qcow2", "write -P 2 1M 64k")
    images.overlay("top.qcow2", "middle.qcow2")
    images.run_io(images / "top.qcow2", "write -P 3 2M 64k")
    words = ["convert", "-O", "qcow2", "-F", "qcow2", "top.qcow2", "new.qcow2", "-B"]
    for dry_run in ([], ["--dry-run"]):
        refused = imgtool(*words, "base.qcow2", *dry_run, cwd=images.directory)
        assert (refused.status, refused.stdout) == (2, "")
        assert f"stands on {images / 'middle.qcow2'}, and not on {base}" in refused.stderr
    os.symlink("middle.qcow2", images / "link.qcow2")
    assert imgtool(*words, "link.qcow2", cwd=images.directory).status == 0
    assert same(images, images / "top.qcow2", images / "new.qcow2")


def test_progress_for_programs(images: Images, imgtool: Imgtool) -> None:
    path = disk(images)
    done = imgtool("convert", "-O", "raw", "--progress", "json", path, images / "new.img")
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert {line["task"] for line in lines} == {"convert"}
    percents = [line["percent"] for line in lines]
    assert percents == sorted(percents)
    assert percents[-1] == 100


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["disk.qcow2"], 2, "an image to read and a name for the new one"),
        (["-O", "qcow3", "disk.qcow2", "new"], 2, "no format 'qcow3'"),
        (["-O", "qcow2", "-o", "nope=1", "disk.qcow2", "new"], 2, "no option 'nope'"),
        (["-O", "raw", "-t", "fast", "disk.qcow2", "new"], 2, "'fast' is not one of"),
        (["-O", "raw", "-l", "snapshot.id=1,x=2", "disk.qcow2", "new"], 2, "names no snapshot"),
        (["-O", "raw", "--target-image-opts", "disk.qcow2", "driver=raw"], 2, "exclude each other"),
        (["-O", "raw", "gone", "new"], 1, "does not exist"),
        (["-O", "raw", "disk.qcow2", "no/where"], 1, "there is no directory"),
    ],
)
def test_what_cannot_be_done(images: Images, imgtool: Imgtool, words: list[str], status: int, said: str) -> None:
    disk(images)
    done = imgtool("convert", *words, cwd=images.directory)
    assert (done.status, done.stdout) == (status, "")
    assert said in done.stderr
    assert os.listdir(images.directory) == ["disk.qcow2"]


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_signal_while_qemu_img_starts_does_not_lose_it(images: Images) -> None:
    path = images.base("disk.img", "8M", format="raw")
    images.run_io(path, "write -P 5 0 8M", format="raw")
    code = (
        "import os, signal, sys; from imgtool.cli.main import main\n"
        "start = os.posix_spawn\n"
        "def start_and_kill(*words, **more):\n"
        "    pid = start(*words, **more); os.kill(os.getpid(), signal.SIGTERM); return pid\n"
        "os.posix_spawn = start_and_kill\n"
        "try: main(sys.argv[1:])\n"
        "finally:\n"
        "    try: os.waitpid(-1, os.WNOHANG); print('a program is left')\n"
        "    except ChildProcessError: print('none is left')"
    )
    words: list[str | Path] = ["convert", "-O", "qcow2", "-r", "1M", path, images / "new.qcow2"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (143, "none is left\n")
    assert os.listdir(images.directory) == ["disk.img"]


def gone(pid: int) -> bool:
    """Whether the process has ended; a zombie that nobody waits for has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_killed_it_leaves_no_target_and_no_process(images: Images, imgtool: Imgtool, number: signal.Signals) -> None:
    path = images.base("disk.img", "8M", format="raw")
    images.run_io(path, "write -P 5 0 8M", format="raw")
    target = images / "new.qcow2"
    words: list[str | Path] = ["convert", "-O", "qcow2", path, target]
    with subprocess.Popen(
        [sys.executable, "-m", "imgtool", *words, "-r", "1M"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as program:
        deadline = time.monotonic() + 60
        while not any(one.stat().st_size for one in images.directory.glob(".imgtool-*.tmp")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        working = children(program.pid)
        assert working
        program.send_signal(number)
        out, _ = program.communicate(timeout=60)
    assert program.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    assert out == b""
    assert not target.exists()
    while not all(gone(pid) for pid in working):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    if number != signal.SIGKILL:
        assert os.listdir(images.directory) == ["disk.img"]
    assert imgtool(*words).status == 0
    assert sorted(os.listdir(images.directory)) == ["disk.img", "new.qcow2"]
    assert same(images, path, target)


def test_a_time_limit_leaves_no_target(images: Images, imgtool: Imgtool) -> None:
    path = images.base("disk.img", "8M", format="raw")
    images.run_io(path, "write -P 5 0 8M", format="raw")
    done = imgtool("convert", "-O", "qcow2", "-r", "1M", "--timeout", "0.3", path, images / "new.qcow2")
    assert done.status == 1
    assert "was stopped after 0.3 s" in done.stderr
    assert os.listdir(images.directory) == ["disk.img"]
