from __future__ import annotations

from collections.abc import Sequence

import pytest

from imgtool.machine.doctor import NAMES, Check, examine, needed
from imgtool.machine.outside import is_virtiofsd_of_qemu, parse_meminfo
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
