"""Whatever a user calls a file is that file, through the command: convert's both ends, snapshots, drives of a VM."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from imgtool.machine.vm import Vm
from tests.cli.conftest import Imgtool
from tests.conftest import Images
from tests.guests import Machines
from tests.qemu.test_img_names import NAMES

pytestmark = pytest.mark.matrix

DECOYS = ("decoy", "a", "b", "foo", "x", "help")
SIZE = 1 << 16


@pytest.fixture
def folder(images: Images) -> Path:
    """Decoys under the names that a misread one would lead to."""
    for name in DECOYS:
        (images / name).write_bytes(bytes(SIZE))
    return images.directory


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[2:-1][:40])
def test_both_ends_of_convert_and_a_snapshot_are_the_named_files(imgtool: Imgtool, folder: Path, name: bytes) -> None:
    given = os.fsdecode(name)
    source = Path(os.path.join(folder, given))
    data = os.urandom(SIZE)
    source.write_bytes(data)
    (folder / "made").mkdir()
    target = os.path.join("made", given)
    done = imgtool("convert", "-f", "raw", "-O", "qcow2", "--", given, target, cwd=folder)
    assert done.status == 0, done.stderr
    assert os.listdir(os.fsencode(folder / "made")) == [name]
    assert imgtool("snapshot", "-c", "one", "--", given, cwd=folder / "made").status == 0
    back = imgtool("convert", "-O", "raw", "-l", "one", "--", given, "../back", cwd=folder / "made")
    assert back.status == 0, back.stderr
    assert (folder / "back").read_bytes() == data
    assert source.read_bytes() == data
    assert all((folder / decoy).read_bytes() == bytes(SIZE) for decoy in DECOYS if decoy != given)
    for text in (done.stdout, back.stdout):
        assert all(line.isprintable() for line in text.splitlines())


@pytest.mark.guest
def test_every_drive_of_a_vm_is_the_named_file(machines: Machines, tmp_path: Path) -> None:
    """All of them in one VM, whose open files the kernel tells."""
    folder = tmp_path / "drives"
    folder.mkdir()
    names = [os.fsdecode(name) for name in NAMES]
    paths = [os.path.join(folder, name) for name in names]
    for path in paths:
        Path(path).write_bytes(bytes(SIZE))
    words = []
    for path in paths:
        words += ["--drive", f"file={path.replace(',', ',,')},format=raw,if=none,readonly=on"]
    machines(
        "boot", "-d", "--name", "names", "--accel", "tcg", "--memory", "64M", *words, "--network", "none", "--", "-S"
    )
    try:
        process = machines.qemu("names")
        opened = {os.readlink(entry) for entry in Path(f"/proc/{process.pid}/fd").iterdir()}
        assert set(paths) <= opened
        assert {path for path in opened if path.startswith(str(folder))} == set(paths)
        shown = json.loads(machines("vm", "show", "names", "--output", "json").stdout)
        assert shown["status"]
    finally:
        machines("vm", "kill", "names")
    assert not Vm(machines.root, "names").running
