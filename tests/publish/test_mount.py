"""The files of images, by FUSE and a loop device; where these are not to be had, what is missing is said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import imgtool
from imgtool.errors import ImageInUseError, ProgramError, RefusedError, UsageError
from imgtool.publish.mount import Mount, MountRequest, daemon_argv, mount_argv, unmount
from imgtool.qemu.programs import Programs
from tests.conftest import Images
from tests.publish.held import held_for_writing

ROOT = os.geteuid() == 0
FUSE = os.access("/dev/fuse", os.R_OK | os.W_OK)
MIB = 1 << 20


@pytest.fixture
def disk(images: Images) -> Images:
    """disk.qcow2 with an ext4 in its second partition, web.qcow2 on it; plain.qcow2 is an ext4 without a table."""
    (images / "hello").write_text("hello\n")
    for name, offset in (("disk", 4 * MIB), ("plain", 0)):
        raw = images / f"{name}.raw"
        with open(raw, "wb") as file:
            file.truncate(offset + 16 * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-E", f"offset={offset}", raw, "16M"], check=True)
        target = f"{raw}?offset={offset}"
        subprocess.run(["debugfs", "-w", "-R", f"write {images / 'hello'} hello", target], check=True)
        if offset:
            with open(raw, "r+b") as file:
                for place, start, sectors in ((0, 2048, 2048), (1, offset // 512, 32768)):
                    file.seek(446 + 16 * place)
                    file.write(bytes([0, 0, 0, 0, 0x83, 0, 0, 0]))
                    file.write(start.to_bytes(4, "little") + sectors.to_bytes(4, "little"))
                file.seek(510)
                file.write(b"\x55\xaa")
        images.qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, images / f"{name}.qcow2")
    images.overlay("web.qcow2", "disk.qcow2")
    (images / "mnt").mkdir()
    return images


def mountable(images: Images, name: str, **options: object) -> MountRequest | None:
    """The request; None where this host cannot mount, which it then says."""
    if ROOT and FUSE:
        return MountRequest(images / name, images / "mnt", Programs(), **options)  # type: ignore[arg-type]
    with pytest.raises(ProgramError, match=r"only root|/dev/fuse"):
        MountRequest(images / name, images / "mnt", Programs(), **options)  # type: ignore[arg-type]
    return None


def test_the_files_of_a_partition_are_read_through_a_chain(disk: Images) -> None:
    request = mountable(disk, "web.qcow2", partition=2)
    if request is None:
        return
    made = request.make()
    try:
        assert (disk / "mnt" / "hello").read_text() == "hello\n"
        assert (made.offset, made.size) == (4 * MIB, 16 * MIB)
        with pytest.raises(OSError, match="Read-only"):
            (disk / "mnt" / "new").touch()
        with pytest.raises(RefusedError, match="something is mounted"):
            MountRequest(disk / "plain.qcow2", disk / "mnt", Programs())
    finally:
        unmount(disk / "mnt")
    assert list((disk / "mnt").iterdir()) == []
    assert made.pid is not None
    assert not os.path.exists(made.view)
    with pytest.raises(RefusedError, match="mounted nothing"):
        unmount(disk / "mnt")


def test_a_disk_without_partitions_is_written_where_that_was_asked_for(disk: Images) -> None:
    disk.overlay("over.qcow2", "plain.qcow2")
    for writable, text in ((True, "more\n"), (False, "more\n")):
        request = mountable(disk, "over.qcow2", writable=writable)
        if request is None:
            return
        request.make()
        try:
            if writable:
                (disk / "mnt" / "more").write_text(text)
            assert (disk / "mnt" / "more").read_text() == text
        finally:
            unmount(disk / "mnt")


def test_a_partition_that_is_not_named_or_not_there_is_refused(disk: Images) -> None:
    for options, words in (({}, "has 2 partitions"), ({"partition": 7}, "has no partition 7")):
        request = mountable(disk, "disk.qcow2", **options)
        if request is None:
            return
        with pytest.raises(RefusedError, match=words):
            request.make()
        assert not os.path.ismount(disk / "mnt")
        assert not os.path.exists(request.folder)


def test_a_daemon_that_was_killed_is_cleared_away(disk: Images) -> None:
    request = mountable(disk, "plain.qcow2")
    if request is None:
        return
    made = request.make()
    assert made.pid is not None
    os.kill(made.pid, 9)
    unmount(disk / "mnt")
    assert not os.path.ismount(disk / "mnt")
    again = mountable(disk, "plain.qcow2")
    assert again is not None
    again.make()
    unmount(disk / "mnt")


KILLED = """
import os, sys
from imgtool.publish import mount
mount.ProcessId.of = lambda _: os._exit(9)
mount.mount(sys.argv[1], sys.argv[2], raw=True)
"""


def test_a_mount_that_was_killed_once_its_daemon_ran_is_ended_by_unmount(disk: Images) -> None:
    view = disk / "view.raw"
    if not FUSE:
        with pytest.raises(ProgramError, match="/dev/fuse"):
            MountRequest(disk / "web.qcow2", view, Programs(), raw=True)
        return
    done = subprocess.run([sys.executable, "-c", KILLED, disk / "web.qcow2", view], check=False)
    assert done.returncode == 9
    unmount(view)
    assert not os.path.lexists(view)
    running = subprocess.run(["pgrep", "-f", f"mountpoint={view}"], capture_output=True, check=False)
    assert running.stdout == b""


def test_the_whole_disk_is_a_raw_file(disk: Images) -> None:
    view = disk / "view.raw"
    if not FUSE:
        with pytest.raises(ProgramError, match="/dev/fuse"):
            MountRequest(disk / "web.qcow2", view, Programs(), raw=True)
        return
    imgtool.mount(disk / "web.qcow2", view, raw=True)
    try:
        assert view.read_bytes() == (disk / "disk.raw").read_bytes()
    finally:
        unmount(view)
    assert not view.exists()
    with pytest.raises(RefusedError, match="already exists"):
        MountRequest(disk / "web.qcow2", disk / "hello", Programs(), raw=True)


def test_a_file_that_somebody_puts_in_the_view_s_place_is_left_alone(disk: Images) -> None:
    """After the look at it, or once the daemon was killed and its mount taken away."""
    view, secret = disk / "view.raw", disk / "hello"
    if not FUSE:
        with pytest.raises(ProgramError, match="/dev/fuse"):
            MountRequest(disk / "web.qcow2", view, Programs(), raw=True)
        return
    request = MountRequest(disk / "web.qcow2", view, Programs(), raw=True)
    view.symlink_to(secret)
    with pytest.raises(RefusedError, match="already exists"):
        request.make()
    assert (view.readlink(), secret.read_text()) == (secret, "hello\n")
    assert not os.path.exists(request.folder)
    view.unlink()
    made = request.make()
    assert made.pid is not None
    os.kill(made.pid, 9)
    subprocess.run(["umount", "--lazy", view], check=True)
    view.write_text("mine")
    unmount(view)
    assert view.read_text() == "mine"


def test_what_is_in_use_or_stood_on_is_refused(disk: Images) -> None:
    with held_for_writing(disk / "plain.qcow2"), pytest.raises(ImageInUseError):
        MountRequest(disk / "plain.qcow2", disk / "mnt", Programs())
    with pytest.raises(RefusedError, match="is the backing file of"):
        MountRequest(disk / "disk.qcow2", disk / "mnt", Programs(), writable=True)
    with pytest.raises(RefusedError, match="is no directory"):
        MountRequest(disk / "plain.qcow2", disk / "hello", Programs())
    with pytest.raises(UsageError):
        MountRequest(disk / "plain.qcow2", disk / "x", Programs(), raw=True, partition=1)


def test_the_command_lines_are_what_they_should_be() -> None:
    assert daemon_argv("/qsd", "driver=raw,file.filename=/a", "/v,w", writable=False) == [
        *("/qsd", "--blockdev", "driver=raw,file.filename=/a,node-name=disk,read-only=on"),
        *("--export", "type=fuse,id=view,node-name=disk,mountpoint=/v,,w,writable=off"),
    ]
    made = Mount(image="/a", at="/m", view="/v", writable=False, raw=False, offset=512, size=1024)
    assert mount_argv(made) == ["mount", "-o", "ro,loop,nosuid,nodev,offset=512,sizelimit=1024", "--", "/v", "/m"]
    whole = Mount(image="/a", at="/m", view="/v", writable=True, raw=False)
    assert mount_argv(whole) == ["mount", "-o", "rw,loop,nosuid,nodev", "--", "/v", "/m"]


def test_the_place_of_the_mount_may_be_named_in_any_way(disk: Images, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(disk / "mnt")
    request = mountable(disk, "plain.qcow2")
    if request is None:
        return
    request.make()
    unmount(tmp_path / "link")
    assert not os.path.ismount(disk / "mnt")
