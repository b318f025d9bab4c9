from __future__ import annotations

import grp
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from imgtool.machine.doctor import NAMES, Check, access_fix, examine, needed
from imgtool.machine.outside import is_virtiofsd_of_qemu, parse_hugetlbfs, parse_meminfo
from imgtool.qemu.process import Completed
from imgtool.qemu.programs import Programs


@pytest.fixture(scope="module")
def found() -> dict[str, Check]:
    return {check.name: check for check in examine(Programs())}


def test_every_check_answers_once_and_in_order(found: dict[str, Check]) -> None:
    assert tuple(found) == NAMES


def test_whatever_is_missing_says_how_to_get_it(found: dict[str, Check]) -> None:
    assert [check.name for check in found.values() if not check.ok and not check.fix] == []
    assert [check.name for check in found.values() if not check.detail] == []


def test_what_these_tests_run_on_is_found(found: dict[str, Check]) -> None:
    for name in ("qemu-img", "qemu-system", "tcg", "user-network", "cloud-init"):
        assert found[name].ok, found[name].detail


def test_without_qemu_the_rest_is_still_looked_at() -> None:
    given = {"qemu-system-x86_64": "/nonexistent/qemu", "qemu-img": "/nonexistent/qemu-img"}
    checks = {check.name: check for check in examine(Programs(given))}
    assert tuple(checks) == NAMES
    for name in ("qemu-img", "qemu-system", "kvm", "tcg", "uefi"):
        assert not checks[name].ok
        assert checks[name].fix
    assert "which is not a program" in checks["qemu-system"].detail


BROKEN = """#!/bin/sh
case $* in *-version*) echo 'QEMU emulator version 9.2.0'; [ "${0##*/}" != swtpm ] && exit 0;; esac
echo 'libfoo.so.1: cannot open shared object file' >&2
exit 127
"""


def test_what_is_installed_and_does_not_run_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("qemu-system-x86_64", "swtpm"):
        (tmp_path / name).write_text(BROKEN)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    checks = {check.name: check for check in examine(Programs())}
    assert tuple(checks) == NAMES
    for name, program in (("qemu-system", "qemu-system-x86_64"), ("tpm", "swtpm")):
        assert checks[name].state == "missing"
        assert checks[name].detail.startswith(f"{tmp_path / program} does not run: ")
        assert "libfoo.so.1: cannot open shared object file" in checks[name].detail
    assert [checks[name].ok for name in ("kvm", "tcg", "uefi", "secure-boot", "user-network")] == [False] * 5
    assert checks["ssh"].ok


def test_a_device_is_for_its_group_or_for_root_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "ada")
    device = tmp_path / "kvm"
    device.touch()
    group = grp.getgrgid(os.getgid() or 5)  # 5: tty, wherever these run as root
    os.chown(device, -1, group.gr_gid)
    device.chmod(0o660)
    assert access_fix(str(device)) == f"adduser ada {group.gr_name}, then log in again"
    device.chmod(0o600)
    assert access_fix(str(device)) == f"{device} is root's alone here: setfacl -m u:ada:rw {device}"


def test_mounts_may_have_any_name() -> None:
    mounts = rb"""sysfs /sys sysfs rw,nosuid 0 0
none /mnt/%b tmpfs rw 0 0
none /mnt/a\040b\134c%b hugetlbfs rw,pagesize=2M 0 0
""" % (b"\xff", b"\xff")
    assert parse_hugetlbfs(mounts) == ["/mnt/a b\\c\udcff"]


def test_only_what_was_asked_for_counts() -> None:
    checks = [
        Check(name="kvm", state="missing", detail="slow", fix="x"),
        Check(name="ssh", state="ok", detail="/usr/bin/ssh"),
    ]
    assert needed(checks, ["ssh"]) == []
    assert needed(checks, ["ssh", "kvm"]) == [checks[0]]
    assert needed(checks, []) == []


def test_the_two_virtiofsd_are_told_apart_by_what_they_say() -> None:
    def saying(text: bytes) -> object:
        def runner(argv: Sequence[str], **_: object) -> Completed:
            return Completed(tuple(argv), 0, text, b"")

        return runner

    assert is_virtiofsd_of_qemu("v", runner=saying(b"virtiofsd version 7.2.22 (Debian)\n"))  # type: ignore[arg-type]
    assert not is_virtiofsd_of_qemu("v", runner=saying(b"virtiofsd 1.13.2\n"))  # type: ignore[arg-type]


def test_the_hosts_memory_is_read_in_bytes() -> None:
    text = (
        "MemTotal:       24684140 kB\nMemFree:        1 kB\nMemAvailable:   20000000 kB\nHugePages_Total:       0\n"
    )
    assert parse_meminfo(text) == (24684140 * 1024, 20000000 * 1024)
    assert parse_meminfo("") == (None, None)
