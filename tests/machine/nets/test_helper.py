"""What keeps qemu-bridge-helper from letting a user in, found out and explained."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imgtool.machine.nets import helper


@pytest.fixture
def setuid(tmp_path: Path) -> str:
    place = tmp_path / "qemu-bridge-helper"
    place.touch()
    place.chmod(0o4755)
    return str(place)


def codes(found: list[helper.Finding]) -> list[str]:
    return [finding.code for finding in found if not finding.code.startswith("helper")]


@pytest.mark.parametrize(
    ("acl", "expected"),
    [
        ("allow br0\n", []),
        ("# ours\n\n  allow br0  \nallow br1\n", []),
        ("allow\tbr0\n", []),
        ("allow all\n", []),
        ("allow all\ndeny br0\n", ["acl-denies"]),
        ("deny all\nallow br0\n", ["acl-denies"]),
        ("allow br1\n", ["acl-denies"]),
        ("", ["acl-denies"]),
        ("allow br0\npermit br0\n", ["acl-invalid"]),
        ("allow br0\nallow\n", ["acl-invalid"]),
        ("include {folder}/other\n", []),
        ("include {folder}/missing\n", ["acl-denies"]),
        ("include {folder}/loop\nallow br0\n", []),
    ],
)
def test_the_acl_is_read_as_the_helper_reads_it(tmp_path: Path, setuid: str, acl: str, expected: list[str]) -> None:
    (tmp_path / "other").write_text("allow br0\n")
    (tmp_path / "loop").write_text(f"include {tmp_path}/loop\n")
    place = tmp_path / "bridge.conf"
    place.write_text(acl.format(folder=tmp_path))
    assert codes(helper.findings("br0", helper=setuid, acl=str(place))) == expected


def test_without_an_acl_no_bridge_is_allowed(tmp_path: Path, setuid: str) -> None:
    acl = str(tmp_path / "none" / "bridge.conf")
    found = [finding for finding in helper.findings("br0", helper=setuid, acl=acl) if finding.code == "acl-missing"]
    assert found[0].fix == f"mkdir -p {tmp_path}/none && echo 'allow br0' >> {acl}"
    assert os.system(found[0].fix) == 0
    assert codes(helper.findings("br0", helper=setuid, acl=acl)) == []


def test_an_acl_that_cannot_be_read_is_a_finding(tmp_path: Path, setuid: str) -> None:
    place = tmp_path / "bridge.conf"
    place.mkdir()
    assert codes(helper.findings("br0", helper=setuid, acl=str(place))) == ["acl-unreadable"]


def test_a_helper_that_is_missing_or_not_setuid_is_named_with_the_fix(tmp_path: Path, setuid: str) -> None:
    acl = tmp_path / "bridge.conf"
    acl.write_text("allow br0\n")
    missing = helper.findings("br0", helper=str(tmp_path / "nope"), acl=str(acl))
    assert [finding.code for finding in missing] == ["helper-missing"]
    os.chmod(setuid, 0o755)
    (found,) = helper.findings("br0", helper=setuid, acl=str(acl))
    assert found.code == "helper-not-setuid"
    assert f"chmod u+s {setuid}" in found.fix


def test_all_findings_make_one_error(tmp_path: Path) -> None:
    found = helper.findings("br\x1b0", helper=str(tmp_path / "nope"), acl=str(tmp_path / "bridge.conf"))
    message, hint = helper.explain("br\x1b0", found)
    assert "there is no qemu-bridge-helper; " in message
    assert "no bridge is allowed" in message
    assert "apt-get install qemu-system-common" in hint
    assert "\x1b" not in message + hint
