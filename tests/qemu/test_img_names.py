"""A path is always a file: whatever its name looks like, every verb works on that file and no other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imgtool.errors import UsageError
from imgtool.qemu.qemu_img import ImageOpts, QemuImg
from tests.conftest import Images
from tests.qemu.disks import MIB, content, disk, write

pytestmark = pytest.mark.matrix

NAMES = [
    b"-",
    b"-x",
    b"--",
    b"--help",
    b"-f",
    b"--image-opts",
    b"a,b",
    b"a,,b",
    b",",
    b"a,readonly=on",
    b"a=b",
    b"driver=raw,file.filename=decoy",
    b"a:b",
    b":",
    b"x:",
    b"file:decoy",
    b"nbd:foo",
    b"nbd:localhost:10809",
    b"http:decoy",
    b"ssh:decoy",
    b"rbd:pool",
    b"json:{}",
    b'json:{"driver":"raw","file":{"driver":"file","filename":"decoy"}}',
    b"fat:rw:decoy",
    b"host_device:decoy",
    b"blkdebug::decoy",
    b"raw:decoy",
    b"fd:3",
    b" ",
    b" a b ",
    b"a\tb",
    b"new\nline",
    b"\n",
    b"\r",
    b"\x1b[2J",
    b"\x7f",
    b"quote'\"`$(x)",
    b"back\\slash",
    b"%s%n",
    b"*?[a]",
    b"~",
    b"#",
    b"\xff",
    b"\xff\xfe,\n:",
    "ünïcode-日本".encode(),
    b"e\xcc\x81",
    b"decoy ",
    b"n" * 250,
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that holds a decoy under the names a misread one would lead to; also the current one."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("decoy", "a", "b", "foo", "x", "rw:decoy", "help"):
        write(folder / name, bytes(MIB))
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[2:-1][:40])
def test_every_verb_works_on_the_file_of_that_name(img: QemuImg, folder: Path, tmp_path: Path, name: bytes) -> None:
    data = disk(7, MIB)
    plain = write(Path(os.fsdecode(os.path.join(os.fsencode(folder), name))), data)
    # A bare name: one of the current directory.
    assert img.info(name, format="raw").filename == str(plain)
    assert img.compare(name, name, format="raw", other_format="raw").path == str(plain)

    (folder / "q").mkdir()
    image = folder / "q" / plain.name
    made = img.convert(name, image, format="raw", output_format="qcow2")
    assert made.info is not None
    assert (made.info.filename, made.info.format) == (str(image), "qcow2")
    assert img.info(image).virtual_size == MIB
    assert content(img, image, tmp_path) == data
    assert img.check(image).status == "clean"
    assert sum(entry.length for entry in img.map(image)) == MIB
    assert img.measure(image, output_format="raw").required == MIB
    assert img.compare(name, image, format="raw", other_format="qcow2").identical
    assert len(img.snapshot_create(image, "s", format="qcow2").after.snapshots or ()) == 1

    # Relative references, from the same directory and from below.
    top = folder / "q" / f"{plain.name[:200]}.top"
    img.create(top, format="qcow2", backing=name, backing_format="qcow2")
    assert content(img, top, tmp_path) == data
    Images(tmp_path).run_io(top, "write -P 9 0 64k")
    changed = content(img, top, tmp_path)
    done = img.commit(top)
    assert done.base == str(image)
    assert content(img, image, tmp_path) == changed
    assert img.rebase(top, backing=b"../" + name, backing_format="raw").after.backing_filename_format == "raw"
    assert content(img, top, tmp_path) == changed

    assert img.resize(image, "+1M").after.virtual_size == 2 * MIB
    assert img.amend(image, {"lazy_refcounts": True}).after.filename == str(image)
    assert img.bitmap(image, "b", ["add"]).after.filename == str(image)
    opened = ImageOpts.of({"driver": "qcow2", "file.driver": "file", "file.filename": str(image)})
    assert img.info(opened).virtual_size == 2 * MIB
    assert plain.read_bytes() == data
    assert all((folder / decoy).read_bytes() == bytes(MIB) for decoy in ("decoy", "a", "b", "foo"))


def test_there_are_enough_names() -> None:
    assert len(set(NAMES)) >= 45


def test_a_name_with_a_nul_is_no_file(img: QemuImg, tmp_path: Path) -> None:
    base = tmp_path / "base"
    img.create(base, MIB, format="raw")
    with pytest.raises(UsageError):
        img.create(tmp_path / "a", format="qcow2", backing="base\0x", backing_format="raw", unsafe_backing=True)
    assert os.listdir(tmp_path) == ["base"]
