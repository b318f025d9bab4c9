"""What is put into the drives of a running VM, as QEMU tells of it over QMP."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fixtures.hostile.cases import overlay
from imgtool.machine import runtime
from imgtool.qemu.qemu_img import QemuImg
from tests.machine.paused import Typed

CD_AND_FLOPPY = "--name drives --cdrom {rawc} --fda {floppya} {disk}"


def inside(typed: Typed) -> dict[str, tuple[str | None, bool | None]]:
    """What is in each removable drive, and whether it is read only."""
    vm = typed.connect("drives")
    found = {name: item.get("inserted", {}) for name, item in vm.drives.items() if item["removable"]}
    vm.monitor.close()
    return {name: (item.get("file"), item.get("ro")) for name, item in found.items()}


def held(typed: Typed) -> dict[str, bool]:
    """The images that others take for the VM's, and whether it writes them."""
    (state,) = [state for _, state in runtime.vms(typed.root)]
    return {os.path.basename(one.path): one.writable for one in state.images}


def test_a_drive_gets_another_medium_and_none(typed: Typed) -> None:
    typed(CD_AND_FLOPPY).monitor.close()
    raw, floppy = typed.files["raw,a b"], typed.files["floppy2"]
    assert typed.imgtool("vm", "change", "drives", raw, "--drive", "cdrom") == (0, "")
    assert typed.imgtool("vm", "change", "drives", floppy, "--drive", "fda") == (0, "")
    assert inside(typed) == {"cdrom": (raw, True), "fda": (floppy, False)}
    assert held(typed) == {"disk": True, "raw,a b": False, "floppy2": True}
    assert typed.imgtool("vm", "eject", "drives", "--drive", "fda") == (0, "")
    assert inside(typed) == {"cdrom": (raw, True), "fda": (None, None)}
    assert held(typed) == {"disk": True, "raw,a b": False}
    assert typed.imgtool("vm", "change", "drives", typed.files["diskc"], "--drive", "cdrom") == (0, "")
    assert typed.connect("drives").drives["cdrom"]["inserted"]["drv"] == "qcow2"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("change drives {raw2}", 2, "drives has several drives\nhint: --drive "),
        ("eject drives --drive drive0", 2, "drives has no drive drive0\nhint: it has "),
        ("change drives {missing} --drive cdrom", 1, "does not exist"),
        ("change drives {disk} --drive cdrom", 1, "the image is being written by "),
        ("change drives {rawc} --drive fda", 1, "the image is being read by "),
        ("change drives {overlay} --drive cdrom", 2, "stands on another image"),
        ("change drives {split} --drive cdrom", 2, "keeps its data in another file"),
        ("change drives {hostile} --drive cdrom", 1, "/etc/passwd"),
    ],
)
def test_what_does_not_fit_leaves_what_is_there(typed: Typed, words: str, status: int, said: str) -> None:
    typed(CD_AND_FLOPPY).monitor.close()
    if "{overlay}" in words:
        typed.files["overlay"] = str(Path(typed.files.folder, "overlay.qcow2"))
        assert typed.imgtool("overlay", "new", typed.files["diskb"], typed.files["overlay"])[0] == 0
    if "{split}" in words:
        typed.files["split"] = str(Path(typed.files.folder, "split"))
        data = str(Path(typed.files.folder, "data"))
        QemuImg().create(typed.files["split"], 1 << 20, format="qcow2", data_file=data)
    if "{hostile}" in words:
        typed.files["hostile"] = str(Path(typed.files.folder, "hostile"))
        Path(typed.files["hostile"]).write_bytes(overlay(b"/etc/passwd", b"raw"))
    before = inside(typed)
    found, stderr = typed.imgtool("vm", *[word.format_map(typed.files) for word in words.split()])
    assert (found, said in stderr) == (status, True), stderr
    assert inside(typed) == before


def test_a_machine_without_such_a_drive_says_so(typed: Typed) -> None:
    typed("--name drives {disk}").monitor.close()
    status, stderr = typed.imgtool("vm", "eject", "drives")
    assert (status, "drives has no CD-ROM and no floppy drive" in stderr) == (2, True)


def test_the_only_drive_needs_no_name(typed: Typed) -> None:
    typed("--name drives --drive if=scsi,media=cdrom {disk}").monitor.close()
    assert typed.imgtool("vm", "change", "drives", typed.files["raw2"]) == (0, "")
    assert list(inside(typed).values()) == [(typed.files["raw2"], True)]
    assert typed.imgtool("vm", "eject", "drives") == (0, "")
    assert list(inside(typed).values()) == [(None, None)]
