from __future__ import annotations

import re
from pathlib import Path

import pytest

from imgtool.cli.boot import boot
from imgtool.cli.context import Context
from imgtool.cli.qemu_words import _DEVICES, _HERE
from imgtool.errors import UsageError
from tests.cli.conftest import Imgtool


@pytest.mark.parametrize(
    ("typed", "word", "hint"),
    [
        ("-m 2048 a.qcow2", "-m", "write --memory 2048"),
        ("a.qcow2 -smp cpus=4", "-smp", "write --smp cpus=4, with two dashes"),
        ("-hda a.qcow2", "-hda", "write --hda a.qcow2, with two dashes"),
        ("-hdd a.qcow2", "-hdd", "write --hdd a.qcow2, with two dashes"),
        ("-fda a.img a.qcow2", "-fda", "write --fda a.img, with two dashes"),
        ("-drive file=a.qcow2,if=virtio", "-drive", "write --drive file=a.qcow2,if=virtio, with two dashes"),
        ("-tpm a.qcow2", "-tpm", "write --tpm, with two dashes"),
        ("a.qcow2 -vnc :1", "-vnc", "write --display vnc=:1"),
        ("a.qcow2 --vnc=:1", "--vnc=:1", "write --display vnc=:1"),
        ("-daemonize a.qcow2", "-daemonize", "write --detach"),
        ("-M q35 -m 2G a.qcow2", "-M", "write --machine q35"),
        ("--ram 2G a.qcow2", "--ram", "write --memory 2G"),
        ("-snapshot -enable-kvm a.qcow2", "-snapshot", "write --ephemeral"),
        ("a.qcow2 -monitor -m 2G", "-monitor", "Ctrl-A C"),
        ("a.qcow2 -device edu,addr=5", "-device", "imgtool boot … -- -device edu,addr=5"),
        ("--device edu a.qcow2", "--device", "imgtool boot … -- -device edu"),
        ("a.qcow2 -device e1000e,netdev=n", "-device", "write --network user,model=e1000e; any other device"),
        ("a.qcow2 -device virtio-blk-pci,drive=d", "-device", "write --drive file=IMAGE,if=virtio; any other"),
        ("a.qcow2 -usb -device usb-host", "-usb", "-- -usb -device usb-host,vendorid=…,productid=…"),
        ("a.qcow2 -full-screen", "-full-screen", "write --display gtk,full-screen=on"),
        ("a.qcow2 -D qemu.log", "-D", "imgtool boot … -- -D qemu.log"),
        ("a.qcow2 -S", "-S", "imgtool boot … -- -S"),
    ],
)
def test_a_word_of_qemu_is_answered_with_imgtools_own(typed: str, word: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        boot.main(typed.split(), standalone_mode=False, obj=Context())
    assert caught.value.message == f"there is no option {word!r} in `imgtool boot`"
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("a.qcow2 --sandbox on", "leave it out, it is on unless --no-sandbox is given"),
        ("--sandbox=on a.qcow2", "leave it out, it is on unless --no-sandbox is given"),
        ("a.qcow2 -sandbox off", "write --no-sandbox"),
        (
            "a.qcow2 -sandbox on,spawn=allow",
            "leave it out, it is on unless --no-sandbox is given; "
            "--no-sandbox -- -sandbox on,spawn=allow goes to QEMU as it is",
        ),
    ],
)
def test_the_sandbox_takes_no_value(typed: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        boot.main(typed.split(), standalone_mode=False, obj=Context())
    assert (caught.value.message, caught.value.hint) == ("--sandbox takes no value", hint)


def test_what_qemu_logs_is_no_image() -> None:
    with pytest.raises(UsageError) as caught:
        boot.main(["a.qcow2", "-d", "int,cpu_reset"], standalone_mode=False, obj=Context())
    assert caught.value.message == "-d is --detach, and int,cpu_reset is no image"
    assert "imgtool boot … -- -d int,cpu_reset" in str(caught.value.hint)


def test_what_is_advised_for_qemus_words_are_options_of_boot() -> None:
    known = {word for param in boot.params for word in param.opts}
    for word, hint in _HERE.items():
        assert set(re.findall(r"--[a-z][a-z-]*", hint)) <= known, word
        assert f"--{word}" not in known, f"{word} is an option itself"
    assert {word for hint in _DEVICES.values() for word in re.findall(r"--[a-z][a-z-]*", hint)} <= known


def test_a_word_that_is_nobodys_is_answered_as_before(imgtool: Imgtool) -> None:
    done = imgtool("boot", "--memry", "2G", "a.qcow2")
    assert (done.status, "--memory" in done.stderr, "imgtool boot --help" in done.stderr) == (2, True, True)


def test_a_recipe_is_not_taken_for_a_raw_disk(imgtool: Imgtool, tmp_path: Path) -> None:
    (tmp_path / "web.toml").write_text("[image]\n")
    done = imgtool("boot", "web.toml", "--dry-run", "--output", "json")
    assert (done.status, done.error["message"]) == (2, "web.toml is not a disk")
    assert "web.toml@LAYER" in done.error["hint"]


def test_a_format_may_stand_right_behind_its_letter(imgtool: Imgtool, tmp_path: Path) -> None:
    (tmp_path / "a.img").write_bytes(bytes(512))
    said = imgtool("boot", "-fqcow9", "a.img").stderr
    assert "'qcow9' is not an image format\nhint: one of bochs, " in said
