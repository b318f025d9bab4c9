from __future__ import annotations

from pathlib import Path

import pytest

from imgtool.errors import MachineError, ProgramError
from imgtool.qemu import interview as subject
from imgtool.qemu.capabilities import Capabilities, DeviceType, capabilities
from imgtool.qemu.interview import properties
from imgtool.qemu.process import Completed
from imgtool.qemu.programs import Programs

pytestmark = pytest.mark.matrix


@pytest.fixture(scope="module")
def program() -> str:
    return Programs().find("qemu-system-x86_64")


@pytest.fixture(scope="module")
def found(program: str, tmp_path_factory: pytest.TempPathFactory) -> Capabilities:
    return capabilities(program, cache_dir=str(tmp_path_factory.mktemp("cache")))


def test_the_machines_of_a_pc_are_there_with_their_limits(found: Capabilities) -> None:
    default, q35 = found.machine(), found.machine("q35")
    assert default is not None
    assert q35 is not None
    assert default.name.startswith("pc-i440fx-")
    assert default.cpu_max >= 255
    assert q35.name.startswith("pc-q35-")
    assert q35.description == "Standard PC (Q35 + ICH9, 2009)"
    assert q35.hotpluggable_cpus
    assert found.machine("none") is None
    assert found.machine("toaster") is None


def test_devices_know_their_category_bus_and_aliases(found: Capabilities) -> None:
    nic = found.device("virtio-net-pci")
    assert nic is not None
    assert (nic.category, nic.bus) == ("Network", "PCI")
    assert found.device("virtio-net") == nic
    assert nic in found.devices_in("Network")
    assert found.device("flux-capacitor") is None


def test_what_every_qemu_of_ten_years_has_is_found(found: Capabilities) -> None:
    assert found.target == "x86_64"
    assert "tcg" in found.accelerators
    assert {"user", "tap", "bridge", "socket"} <= set(found.netdevs)
    assert {"stdio", "socket", "file"} <= set(found.chardevs)
    assert "none" in found.displays
    assert {"qcow2", "raw", "file", "nbd"} <= set(found.block_drivers)
    assert {"memory-backend-file", "rng-random", "secret"} <= set(found.objects)
    assert "enable" in found.options["sandbox"]
    assert "blockdev-add" in found.commands
    assert found.cpu_model("qemu64") is not None
    assert "avx2" in found.cpu_features


def test_what_is_newer_than_this_qemu_is_absent_and_what_it_has_is_found(found: Capabilities) -> None:
    version = found.version[:2]
    assert ("dgram" in found.netdevs) == (version >= (7, 2))
    assert found.device_json == (version >= (6, 2))


def test_the_second_question_is_answered_from_disk(program: str, tmp_path: Path) -> None:
    first = capabilities(program, cache_dir=str(tmp_path))

    def no_program(*_: object, **__: object) -> Completed:
        raise AssertionError("asked again")

    assert capabilities(program, cache_dir=str(tmp_path), runner=no_program) == first
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


@pytest.mark.parametrize("content", [b"", b"{", b'{"program": 1}', b"\xff\xfe"])
def test_a_damaged_cache_is_asked_again_and_mended(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: Capabilities, program: str
) -> None:
    monkeypatch.setattr(subject, "ask", lambda _, runner: found)
    capabilities(program, cache_dir=str(tmp_path))
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(content)
    assert capabilities(program, cache_dir=str(tmp_path)) == found
    assert len(kept.read_bytes()) > 1000


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: Capabilities, program: str
) -> None:
    monkeypatch.setattr(subject, "ask", lambda _, runner: found)
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    assert capabilities(program, cache_dir=str(blocked / "cache")) == found


def test_a_program_that_is_gone_is_a_program_error(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="No such file"):
        capabilities(str(tmp_path / "none"), cache_dir=str(tmp_path))


def test_a_program_that_is_no_qemu_is_a_program_error(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="contains no version"):
        capabilities("/bin/true", cache_dir=str(tmp_path))


def test_properties_of_a_device_and_of_a_machine_are_listed(program: str, found: Capabilities) -> None:
    assert "mac" in {item.name for item in properties(program, "virtio-net-pci")}
    q35 = found.machine("q35")
    assert q35 is not None
    assert "vmport" in {item.name for item in properties(program, f"{q35.name}-machine")}
    with pytest.raises(MachineError, match="QEMU refused"):
        properties(program, "flux-capacitor")


def test_device_help_is_read_line_by_line() -> None:
    text = """Network devices:
name "e1000", bus PCI, alias "e1000-82540em", desc "Intel Gigabit Ethernet"

Misc devices:
name "loader", desc "Generic Loader"
name "x", bus ISA, no-user
"""
    assert subject.parse_device_help(text) == {
        "e1000": DeviceType(
            name="e1000",
            category="Network",
            bus="PCI",
            aliases=("e1000-82540em",),
            description="Intel Gigabit Ethernet",
        ),
        "loader": DeviceType(name="loader", category="Misc", description="Generic Loader"),
        "x": DeviceType(name="x", category="Misc", bus="ISA", user_creatable=False),
    }


def test_machine_help_gives_descriptions_without_the_notes() -> None:
    text = """Supported machines are:
pc                   Standard PC (i440FX + PIIX, 1996) (alias of pc-i440fx-7.2)
pc-i440fx-7.2        Standard PC (i440FX + PIIX, 1996) (default)
pc-i440fx-1.7        Standard PC (i440FX + PIIX, 1996) (deprecated)
"""
    assert set(subject.parse_machine_help(text).values()) == {"Standard PC (i440FX + PIIX, 1996)"}


def test_what_a_missing_module_says_is_no_name() -> None:
    text = "Available display backend types:\nnone\nqemu: module ui-ui-none not found, do you want it?\ngtk\n\n"
    assert subject.parse_names(text) == ("none", "gtk")
