"""Many overlays at once: each what qemu-img would have made, all of them or none."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imgtool.chain.anchors import standing
from imgtool.chain.walk import walk
from imgtool.errors import ImageError, ImageExistsError, UsageError
from imgtool.operations.overlays import OverlaysRequest, new_overlays
from imgtool.qemu.programs import Programs
from imgtool.qemu.qemu_img import QemuImg

if TYPE_CHECKING:
    from tests.conftest import Images

pytestmark = pytest.mark.matrix


def listing(directory: Path) -> set[str]:
    return set(os.listdir(directory))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, []),
        ({"cluster_size": "512"}, ["-o", "cluster_size=512"]),
        ({"cluster_size": "2M", "lazy_refcounts": True}, ["-o", "cluster_size=2M,lazy_refcounts=on"]),
        ({"compat": "0.10"}, ["-o", "compat=0.10"]),
        ({"refcount_bits": 1}, ["-o", "refcount_bits=1"]),
    ],
)
def test_each_has_the_bytes_that_qemu_img_makes(images: Images, options: dict[str, str], words: list[str]) -> None:
    base = images.base("base.qcow2", "10G")
    made = new_overlays(base, 3, images / "top-{n}.qcow2", options=options, anchor=False)
    argv = [Programs().find("qemu-img"), "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", *words]
    subprocess.run([*argv, "theirs.qcow2"], cwd=images.directory, check=True)
    expected = (images / "theirs.qcow2").read_bytes()
    assert [image.path for image in made] == [str(images / f"top-{number}.qcow2") for number in (1, 2, 3)]
    assert all(Path(image.path).read_bytes() == expected for image in made)


def test_each_remembers_its_base_and_is_as_good_as_the_first(images: Images) -> None:
    base = images.base("base.qcow2", "64M")
    images.run_io(base, "write -P 7 0 64k")
    (images / "vms").mkdir()
    made = new_overlays(base, 5, images / "vms")
    assert listing(images / "vms") == {f"base-overlay-{number}.qcow2" for number in range(1, 6)}
    for image in made:
        assert image.parent == str(base)
        top, below = walk(image.path)
        assert (top.virtual_size, top.actual_size, below.path) == (64 << 20, image.actual_size, str(base))
        assert standing(image.path, str(base)).state == "same"
        images.run_io(Path(image.path), "read -P 7 0 64k")
    images.run_io(Path(made[1].path), "write -P 8 0 64k")
    images.run_io(Path(made[2].path), "read -P 7 0 64k")


def test_the_number_goes_into_the_name_and_not_into_its_directory(images: Images) -> None:
    folder = images / "{n}"
    folder.mkdir()
    made = new_overlays(images.base("base.qcow2"), 2, folder / "top-{n}.qcow2")
    assert listing(folder) == {Path(image.path).name for image in made} == {"top-1.qcow2", "top-2.qcow2"}
    assert [walk(image.path)[1].path for image in made] == [str(images / "base.qcow2")] * 2


def test_made_up_names_go_round_those_that_are_there(images: Images) -> None:
    base = images.base("base.qcow2")
    (images / "base-overlay-2.qcow2").touch()
    made = new_overlays(base, 2)
    assert [Path(image.path).name for image in made] == ["base-overlay-1.qcow2", "base-overlay-3.qcow2"]


def test_made_up_names_go_round_those_that_somebody_else_took_meanwhile(images: Images) -> None:
    base = images.base("base.qcow2")
    request = OverlaysRequest(base, 2)
    (images / "base-overlay-2.qcow2").write_text("theirs")
    made = request.make(QemuImg())
    assert [Path(image.path).name for image in made] == ["base-overlay-1.qcow2", "base-overlay-3.qcow2"]
    assert listing(images.directory) == {"base.qcow2", *(f"base-overlay-{number}.qcow2" for number in (1, 2, 3))}
    assert (images / "base-overlay-2.qcow2").read_text() == "theirs"


def test_where_one_name_is_taken_none_is_made(images: Images) -> None:
    base = images.base("base.qcow2")
    (images / "top-3.qcow2").write_text("mine")
    before = listing(images.directory)
    with pytest.raises(ImageExistsError) as caught:
        new_overlays(base, 4, images / "top-{n}.qcow2")
    assert caught.value.path == str(images / "top-3.qcow2")
    assert listing(images.directory) == before


def test_one_name_for_several_is_refused(images: Images) -> None:
    base = images.base("base.qcow2")
    with pytest.raises(UsageError) as caught:
        OverlaysRequest(base, 2, images / "top.qcow2")
    assert caught.value.hint is not None
    assert "{n}" in caught.value.hint
    for options in ({"data_file": "data.raw"}, {"preallocation": "metadata"}):
        with pytest.raises(UsageError):
            OverlaysRequest(base, 2, options=options)


@pytest.mark.parametrize(("name", "when"), [("pwrite", 0), ("pwrite", 7), ("link", 0), ("link", 3)])
def test_a_full_disk_leaves_none(images: Images, monkeypatch: pytest.MonkeyPatch, name: str, when: int) -> None:
    base = images.base("base.qcow2")
    before = listing(images.directory)
    request = OverlaysRequest(base, 5, images / "top-{n}.qcow2")
    original = getattr(os, name)
    calls = 0

    def fail(*words: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls > when:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*words, **options)

    class Failing(QemuImg):
        """The disk is full once the first overlay was made."""

        def create_over(self, *words, **options):  # type: ignore[no-untyped-def]
            super().create_over(*words, **options)
            monkeypatch.setattr(os, name, fail)

    with pytest.raises(ImageError) as caught:
        request.make(Failing())
    monkeypatch.undo()
    assert "No space left" in caught.value.message
    assert listing(images.directory) == before


def test_somebody_elses_file_stays_when_it_took_a_name_meanwhile(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = images.base("base.qcow2")
    request = OverlaysRequest(base, 4, images / "top-{n}.qcow2")
    (images / "top-3.qcow2").write_text("theirs")
    before = listing(images.directory)
    with pytest.raises(ImageExistsError):
        request.make(QemuImg())
    assert listing(images.directory) == before
    assert (images / "top-3.qcow2").read_text() == "theirs"
