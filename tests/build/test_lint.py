"""Looking for what clones must not share, in real file systems made by mke2fs, and that sealing takes it away."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from imgtool.build.filesystems import filesystems
from imgtool.build.lint import Files, Lint, lint_image
from imgtool.build.seal import ORDER, SCRIPTS, scripts
from imgtool.errors import ImageUnreadableError
from imgtool.qemu.qemu_img import QemuImg

SECTOR = 512
FIRST = 2048

HAZARDS = {
    "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    "etc/ssh/ssh_host_ed25519_key": "PRIVATE",
    "var/lib/systemd/random-seed": "seed",
    "var/lib/dhcp/dhclient.eth0.leases": "lease {}",
    "var/lib/cloud/instances/i-1/user-data.txt": "#cloud-config",
    "root/.ssh/authorized_keys": "ssh-ed25519 AAAA someone\nssh-ed25519 BBBB imgtool-build\n",
    "home/jo/.bash_history": "rm -rf /",
    "var/log/journal/0123456789abcdef/system.journal": "LPKSHHRH",
    "var/cache/apt/archives/nginx.deb": "!<arch>",
}
ERRORS = {
    "/etc/machine-id": "machine-id",
    "/etc/ssh/ssh_host_ed25519_key": "ssh-host-keys",
    "/var/lib/systemd/random-seed": "machine-id",
    "/var/lib/dhcp/dhclient.eth0.leases": "dhcp-leases",
    "/var/lib/cloud/instances/i-1": "cloud-init",
    "/root/.ssh/authorized_keys": "cloud-init",
}
WARNINGS = {
    "/home/jo/.bash_history": "history",
    "/var/log/journal/0123456789abcdef": "logs",
    "/var/cache/apt/archives/nginx.deb": "package-cache",
}
SEALED = {
    "etc/machine-id": "",
    "etc/ssh/sshd_config": "PasswordAuthentication no\n",
    "var/lib/dhcp/.keep": "",
    "root/.ssh/authorized_keys": "ssh-ed25519 AAAA someone\n",
    "var/log/wtmp": "",
}


def tree(folder: Path, files: Mapping[str, str]) -> Path:
    for name, content in files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content)
    return folder


def file_system(target: Path, root: Path, *, offset: int = 0, size: int = 8 << 20, kind: str = "ext4") -> Path:
    """A raw disk of which the part from `offset` is a file system that holds what lies below `root`."""
    with open(target, "ab") as file:
        file.truncate(max(offset + size, target.stat().st_size))
    program = shutil.which("mke2fs", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    assert program is not None
    words: list[str | Path] = [
        program,
        "-q",
        "-F",
        "-t",
        kind,
        "-d",
        root,
        "-E",
        f"offset={offset}",
        target,
        f"{size >> 10}k",
    ]
    subprocess.run(words, check=True, capture_output=True)
    return target


def found(lint: Lint, severity: str) -> dict[str, str]:
    return {hazard.path: hazard.action for hazard in lint.hazards if hazard.severity == severity}


@pytest.mark.parametrize("kind", ["ext2", "ext4"])
def test_every_hazard_is_found_with_the_action_that_takes_it_away(tmp_path: Path, kind: str) -> None:
    raw = file_system(tmp_path / "disk.raw", tree(tmp_path / "root", HAZARDS), kind=kind)
    lint = lint_image(raw, format="raw")
    assert found(lint, "error") == ERRORS
    assert found(lint, "warning") == WARNINGS
    assert {hazard.action for hazard in lint.hazards} <= set(SCRIPTS)


def test_files_and_names_of_a_hostile_file_system_are_taken_in_bounds(tmp_path: Path) -> None:
    name = "ssh_host_x\n|1|9z|0|0|ssh_host_a_key|5|\n|1|100644|0|0|ssh_host_b_key|%s|\n_key" % ("9" * 99)
    root = tree(tmp_path / "root", {"etc/machine-id": "", f"etc/ssh/{name}": "x"})
    os.truncate(root / "etc" / "machine-id", 1 << 30)
    raw = file_system(tmp_path / "disk.raw", root, kind="ext2")
    raw.write_bytes(raw.read_bytes().replace(name.encode(), name.replace("|", "/").encode()))
    assert len(Files(str(raw), 0).read("/etc/machine-id")) == 1 << 20
    assert [hazard.path for hazard in lint_image(raw).hazards] == ["/etc/machine-id"]


def test_a_sealed_image_has_none(tmp_path: Path) -> None:
    root = tree(tmp_path / "root", SEALED)
    (root / "var" / "lib" / "dbus").mkdir()
    os.symlink("/etc/machine-id", root / "var" / "lib" / "dbus" / "machine-id")
    lint = lint_image(file_system(tmp_path / "disk.raw", root), format="raw")
    assert lint.hazards == ()
    assert [system.looked_at for system in lint.systems] == [True]


def test_a_machine_id_that_says_uninitialized_is_none(tmp_path: Path) -> None:
    root = tree(tmp_path / "root", {"etc/machine-id": "uninitialized\n"})
    assert lint_image(file_system(tmp_path / "disk.raw", root), format="raw").hazards == ()


def test_compressed_images_and_overlays_are_read_as_their_guest_reads_them(tmp_path: Path) -> None:
    raw = file_system(tmp_path / "disk.raw", tree(tmp_path / "root", HAZARDS))
    img = QemuImg()
    img.convert(raw, tmp_path / "disk.qcow2", format="raw", output_format="qcow2", compressed=True)
    img.create(tmp_path / "top.qcow2", format="qcow2", backing="disk.qcow2", backing_format="qcow2")
    assert found(lint_image(tmp_path / "top.qcow2"), "error") == ERRORS
    assert sorted(os.listdir(tmp_path)) == ["disk.qcow2", "disk.raw", "root", "top.qcow2"]


def mbr(disk: Path, entries: list[tuple[int, int, int]], *, sector: int = 0) -> None:
    """Writes a partition table: (type, first sector, sectors)."""
    table = b"".join(struct.pack("<B3xB3xII", 0, *entry) for entry in entries).ljust(64, b"\0")
    with open(disk, "r+b") as file:
        file.seek(sector * SECTOR + 446)
        file.write(table + b"\x55\xaa")


def gpt(disk: Path, starts: list[tuple[int, int]]) -> None:
    head = b"EFI PART" + bytes(64) + struct.pack("<QII", 2, 128, 128)
    with open(disk, "r+b") as file:
        file.seek(SECTOR)
        file.write(head)
        for number, (first, last) in enumerate(starts):
            file.seek(2 * SECTOR + number * 128)
            file.write(struct.pack("<16s16sQQ", b"L" * 16, b"U" * 16, first, last))


def test_file_systems_are_found_behind_a_partition_table(tmp_path: Path) -> None:
    root = tree(tmp_path / "root", HAZARDS)
    for kind in ("mbr", "gpt"):
        disk = file_system(tmp_path / f"{kind}.raw", root, offset=FIRST * SECTOR)
        last = FIRST + (8 << 20) // SECTOR - 1
        if kind == "mbr":
            mbr(disk, [(0x83, FIRST, last - FIRST + 1)])
        else:
            mbr(disk, [(0xEE, 1, 0xFFFFFFFF)])
            gpt(disk, [(FIRST, last)])
        lint = lint_image(disk, format="raw")
        assert found(lint, "error") == ERRORS
        assert [(system.partition, system.offset) for system in lint.systems] == [(1, FIRST * SECTOR)]


def test_a_var_of_its_own_is_looked_at_as_var(tmp_path: Path) -> None:
    root = tree(tmp_path / "root", {name: text for name, text in HAZARDS.items() if not name.startswith("var/")})
    var = tree(tmp_path / "whole", HAZARDS) / "var"
    disk = file_system(tmp_path / "disk.raw", root, offset=FIRST * SECTOR)
    second = FIRST + (8 << 20) // SECTOR
    file_system(disk, var, offset=second * SECTOR)
    mbr(disk, [(0x83, FIRST, 16384), (0x83, second, 16384)])
    lint = lint_image(disk, format="raw")
    assert found(lint, "error") == ERRORS
    assert found(lint, "warning") == WARNINGS


def test_logical_partitions_are_followed_and_a_circle_of_them_ends(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(4 << 20))
    mbr(disk, [(0x83, 2048, 100), (0x05, 3000, 4000)])
    mbr(disk, [(0x83, 10, 100), (0x05, 1000, 1000)], sector=3000)
    mbr(disk, [(0x82, 20, 100), (0x05, 0, 1000)], sector=4000)
    assert [(one.number, one.offset // SECTOR) for one in filesystems(str(disk))] == [
        (1, 2048),
        (5, 3010),
        (6, 4020),
    ]


@pytest.mark.parametrize("content", [b"", b"\x55" * 100, bytes(2048), os.urandom(8192), b"EFI PART" * 1000])
def test_any_bytes_are_a_disk_without_file_systems_at_worst(tmp_path: Path, content: bytes) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(content[:446] + content[:446] + b"\x55\xaa" if content else b"")
    assert all(one.type in ("unknown", "fat") for one in filesystems(str(disk)))


def test_what_is_no_ext_is_said_and_not_passed_over(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(b"XFSB" + bytes(1 << 20))
    with pytest.raises(ImageUnreadableError, match=r"no file system that can be looked at \(xfs\)"):
        lint_image(disk, format="raw")


_PLACES = re.compile(rb"(?<![\w./$\"])/(?=(?:etc|var|root|home|tmp|boot|efi|loader)\b)")


def busybox_in(root: Path, *names: str) -> Path:
    """A folder with these commands, all busybox's."""
    busybox = shutil.which("busybox")
    assert busybox is not None
    folder = root / "bin"
    folder.mkdir(parents=True)
    for name in names:
        os.symlink(busybox, folder / name)
    return folder


def seal(root: Path, action: str, script: bytes) -> None:
    """Runs a seal script as if `root` were /: with every place in it below `root`, and busybox's commands alone."""
    moved = _PLACES.sub(os.fsencode(root) + b"/", script)
    done = subprocess.run(
        [root / "bin" / "sh", "-eu"], input=moved, capture_output=True, env={"PATH": f"{root}/bin"}, check=False
    )
    assert done.returncode == 0, (action, done.stderr)


def test_sealing_takes_away_what_lint_finds(tmp_path: Path) -> None:
    root = tree(tmp_path / "jail", {**HAZARDS, "tmp/scrap": "x", "var/tmp/scrap": "x"})
    busybox_in(root, "sh", "rm", "ls", "cat", "ln", "find", "grep", "sync", "mkdir")
    for action, script in scripts(ORDER):
        seal(root, action, script)
    lint = lint_image(file_system(tmp_path / "disk.raw", root), format="raw")
    assert lint.hazards == ()
    assert (root / "root/.ssh/authorized_keys").read_text() == "ssh-ed25519 AAAA someone\n"
    assert (root / "etc/machine-id").read_text() == ""
    assert os.listdir(root / "tmp") == []
    for action, script in scripts(ORDER):
        seal(root, f"{action} again", script)


def test_a_bare_guest_can_be_sealed_too(tmp_path: Path) -> None:
    """Nothing of what the scripts look for is there."""
    busybox_in(tmp_path / "bare", "sh", "rm", "find", "grep", "sync", "ln")
    for action, script in scripts(ORDER):
        seal(tmp_path / "bare", action, script)
