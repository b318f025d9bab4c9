from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from imgtool.errors import MachineError
from imgtool.machine.firmware import descriptors, find_uefi


def write(folder: Path, name: str, code: Path, *, features: list[str], machines: str = "pc-*", **more: Any) -> None:
    folder.mkdir(exist_ok=True)
    code.touch()
    document = {
        "description": name,
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": {"filename": str(code), "format": "raw"},
            "nvram-template": {"filename": f"{code}.vars", "format": "raw"},
        },
        "targets": [{"architecture": "x86_64", "machines": [machines]}],
        "features": features,
        "tags": [],
        **more,
    }
    (folder / name).write_text(json.dumps(document))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "firmware"
    write(
        folder, "40-secure.json", tmp_path / "secboot.fd", features=["secure-boot", "enrolled-keys", "requires-smm"]
    )
    write(folder, "50-unenrolled.json", tmp_path / "unenrolled.fd", features=["secure-boot", "requires-smm"])
    write(folder, "60-plain.json", tmp_path / "plain.fd", features=["acpi-s3"])
    return folder


def test_without_secure_boot_the_plain_one_is_taken(folder: Path, tmp_path: Path) -> None:
    found = find_uefi("x86_64", "pc-q35-7.2", secure_boot=False, places=[str(folder)])
    assert found.uefi.code == str(tmp_path / "plain.fd")
    assert found.template == f"{tmp_path}/plain.fd.vars"
    assert not found.uefi.requires_smm


def test_secure_boot_takes_one_with_keys_enrolled(folder: Path, tmp_path: Path) -> None:
    found = find_uefi("x86_64", "pc-q35-7.2", secure_boot=True, places=[str(folder)])
    assert found.uefi.code == str(tmp_path / "secboot.fd")
    assert found.uefi.requires_smm
    assert found.uefi.secure_boot


def test_a_descriptor_of_the_users_hides_the_systems_of_that_name(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    write(own, "60-plain.json", tmp_path / "own.fd", features=[])
    found = find_uefi("x86_64", "pc-q35-7.2", secure_boot=False, places=[str(own), str(folder)])
    assert found.uefi.code == str(tmp_path / "own.fd")
    (own / "60-plain.json").write_text("")
    with pytest.raises(MachineError, match="there is no UEFI firmware for"):
        find_uefi("x86_64", "pc-q35-7.2", secure_boot=False, places=[str(own), str(folder)])


def test_a_firmware_whose_file_is_gone_or_whose_machine_is_another_is_passed_over(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "plain.fd").unlink()
    with pytest.raises(MachineError, match=r"there is no UEFI firmware for pc-q35-7\.2") as caught:
        find_uefi("x86_64", "pc-q35-7.2", secure_boot=False, places=[str(folder)])
    assert "ovmf" in str(caught.value.hint)
    with pytest.raises(MachineError):
        find_uefi("x86_64", "microvm", secure_boot=True, places=[str(folder)])
    with pytest.raises(MachineError):
        find_uefi("aarch64", "pc-q35-7.2", secure_boot=True, places=[str(folder)])


def test_files_that_are_no_descriptors_are_passed_over(folder: Path) -> None:
    for name, content in (("10-a.json", "{"), ("11-b.json", '{"description": 1}'), ("12-c.txt", "{}")):
        (folder / name).write_text(content)
    assert [item.description for item in descriptors([str(folder), "/nonexistent"])] == [
        "40-secure.json",
        "50-unenrolled.json",
        "60-plain.json",
    ]


def test_a_system_without_firmware_names_the_package(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="no UEFI firmware is installed") as caught:
        find_uefi("x86_64", "pc-q35-7.2", secure_boot=False, places=[str(tmp_path)])
    assert caught.value.hint == "on Debian: apt-get install ovmf"
