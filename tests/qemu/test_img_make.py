"""The wrappers that make an image, against the qemu-img at hand: all or nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imgtool.errors import (
    CommandError,
    ImageExistsError,
    ImageNotFoundError,
    RefusedError,
    UsageError,
)
from imgtool.qemu.img_argv import OptionValue
from imgtool.qemu.img_help import option_help
from imgtool.qemu.qemu_img import ImageOpts, QemuImg
from tests.qemu.disks import MIB, content, disk, patiently, write

pytestmark = pytest.mark.matrix


def test_an_overlay_takes_its_size_from_its_base(img: QemuImg, base: Path, tmp_path: Path) -> None:
    made = img.create(tmp_path / "o", format="qcow2", backing="base.qcow2", backing_format="qcow2")
    assert made.info is not None
    assert made.info.virtual_size == 2 * MIB
    assert made.info.backing_filename == "base.qcow2"
    assert made.info.full_backing_filename == str(base)
    assert made.info.backing_filename_format == "qcow2"
    chain = img.info_chain(tmp_path / "o")
    assert [image.filename for image in chain] == [str(tmp_path / "o"), str(base)]


@pytest.mark.parametrize("format", ["qcow2", "qed", "qcow", "vmdk"])
def test_every_format_that_can_have_a_backing_file_takes_a_relative_one(
    img: QemuImg, raw: Path, tmp_path: Path, format: str
) -> None:
    (tmp_path / "d").mkdir()
    img.convert(raw, tmp_path / "d" / "base", format="raw", output_format=format)
    made = img.create(tmp_path / "o", format=format, backing="./d/base", backing_format=format)
    assert made.info is not None
    assert made.info.backing_filename == "./d/base"
    assert content(img, tmp_path / "o", tmp_path, format) == raw.read_bytes()
    assert set(os.listdir(tmp_path)) == {"d", "o", "source.raw", "content.raw"}


def test_convert_can_make_an_overlay(img: QemuImg, raw: Path, base: Path, tmp_path: Path) -> None:
    changed = bytearray(raw.read_bytes())
    changed[0] ^= 1
    write(tmp_path / "changed.raw", bytes(changed))
    made = img.convert(
        tmp_path / "changed.raw",
        tmp_path / "o",
        format="raw",
        output_format="qcow2",
        backing="base.qcow2",
        backing_format="qcow2",
    )
    assert made.info is not None
    assert made.info.backing_filename == "base.qcow2"
    assert content(img, tmp_path / "o", tmp_path) == changed


def test_a_missing_backing_file_is_named(img: QemuImg, tmp_path: Path) -> None:
    with pytest.raises(ImageNotFoundError) as caught:
        img.create(tmp_path / "o", format="qcow2", backing="gone", backing_format="raw")
    assert caught.value.path == str(tmp_path / "gone")
    assert os.listdir(tmp_path) == []
    made = img.create(tmp_path / "o", MIB, format="qcow2", backing="gone", backing_format="raw", unsafe_backing=True)
    assert made.info is not None
    assert made.info.backing_filename == "gone"


def test_no_image_becomes_its_own_backing_file(img: QemuImg, base: Path) -> None:
    before = base.read_bytes()
    with pytest.raises(UsageError):
        img.create(base, format="qcow2", backing="base.qcow2", backing_format="qcow2", overwrite=True)
    assert base.read_bytes() == before


def test_a_size_may_be_text(img: QemuImg, tmp_path: Path) -> None:
    made = img.create(tmp_path / "disk.qcow2", "64M", format="qcow2")
    assert made.info is not None
    assert made.info.virtual_size == 64 << 20
    assert img.resize(tmp_path / "disk.qcow2", "+64M").after.virtual_size == 128 << 20
    with pytest.raises(UsageError, match="'64MB' is not a size"):
        img.create(tmp_path / "other.qcow2", "64MB", format="qcow2")


def test_an_image_without_size_or_base_makes_no_sense(img: QemuImg, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        img.create(tmp_path / "a", format="qcow2")


@pytest.mark.parametrize(
    ("subformat", "extents"),
    [
        ("monolithicSparse", []),
        ("streamOptimized", []),
        ("monolithicFlat", ["a-flat.vmdk"]),
        ("twoGbMaxExtentSparse", ["a-s001.vmdk"]),
        ("twoGbMaxExtentFlat", ["a-f001.vmdk"]),
    ],
)
def test_a_vmdk_of_several_files_arrives_with_all_of_them(
    img: QemuImg, raw: Path, tmp_path: Path, subformat: str, extents: list[str]
) -> None:
    target = tmp_path / "d" / "a.vmdk"
    target.parent.mkdir()
    made = img.convert(raw, target, format="raw", output_format="vmdk", options={"subformat": subformat})
    assert set(os.listdir(target.parent)) == {"a.vmdk", *extents}
    assert made.written == (str(target), *(str(target.parent / name) for name in extents))
    assert made.info is not None
    assert made.info.vmdk is not None
    assert made.info.vmdk.create_type == subformat
    assert content(img, target, tmp_path, "vmdk") == raw.read_bytes()
    if extents:
        target.unlink()
        with pytest.raises(ImageExistsError) as caught:
            img.create(target, MIB, format="vmdk", options={"subformat": subformat}, overwrite=True)
        assert caught.value.path == str(target.parent / extents[0])
        assert set(os.listdir(target.parent)) == set(extents)


def test_a_vmdk_cannot_rest_on_something_above_its_directory_by_a_relative_name(img: QemuImg, tmp_path: Path) -> None:
    img.create(tmp_path / "base", MIB, format="vmdk")
    (tmp_path / "d").mkdir()
    with pytest.raises(RefusedError):
        img.create(tmp_path / "d" / "o", format="vmdk", backing="../base", backing_format="vmdk")
    assert os.listdir(tmp_path / "d") == []
    img.create(tmp_path / "d" / "o", format="vmdk", backing=tmp_path / "base", backing_format="vmdk")


@pytest.mark.parametrize("raw_outside", [False, True])
def test_a_data_file_arrives_with_its_image(img: QemuImg, raw: Path, tmp_path: Path, raw_outside: bool) -> None:
    target, data = tmp_path / "d" / "a.qcow2", tmp_path / "d" / "a,b.data"
    target.parent.mkdir()
    options = {"data_file_raw": raw_outside}
    made = img.convert(raw, target, format="raw", output_format="qcow2", data_file=data, options=options)
    assert set(os.listdir(target.parent)) == {target.name, data.name}
    assert made.written == (str(target), str(data))
    assert made.info is not None
    assert made.info.qcow2 is not None
    assert (made.info.qcow2.data_file, made.info.qcow2.data_file_raw) == (str(data), raw_outside)
    assert content(img, target, tmp_path) == raw.read_bytes()
    assert img.check(target).status == "clean"
    with pytest.raises(ImageExistsError) as caught:
        img.create(tmp_path / "d" / "b.qcow2", MIB, format="qcow2", options={"data_file": str(data)}, overwrite=True)
    assert caught.value.path == str(data)
    assert "keep_data_file" in (caught.value.hint or "")
    assert set(os.listdir(target.parent)) == {target.name, data.name}


def test_a_data_file_that_is_there_is_taken_as_it_is_where_qemu_can(img: QemuImg, raw: Path, tmp_path: Path) -> None:
    target, disk = tmp_path / "a.qcow2", raw.read_bytes()
    options: dict[str, OptionValue] = {"data_file": str(raw), "data_file_raw": True, "keep_data_file": True}
    if "keep_data_file" in option_help(img.programs, "qcow2"):
        img.create(target, len(disk), format="qcow2", options=options)
        assert content(img, target, tmp_path) == disk
    else:
        with pytest.raises(CommandError, match="keep_data_file"):
            img.create(target, len(disk), format="qcow2", options=options)
    assert raw.read_bytes() == disk


def test_luks_is_made_and_read_with_its_key(img: QemuImg, raw: Path, tmp_path: Path) -> None:
    key = [f"secret,id=k,file={write(tmp_path / 'key', b'swordfish')}"]
    options: dict[str, OptionValue] = {"key-secret": "k", "iter-time": 10}
    target = tmp_path / "a.luks"
    made = patiently(
        lambda: img.convert(raw, target, format="raw", output_format="luks", options=options, objects=key)
    )
    assert made.info is not None
    assert made.info.format_specific is not None
    assert made.info.format_specific.type == "luks"
    opened = ImageOpts.of({"driver": "luks", "key-secret": "k", "file.filename": str(target)})
    assert img.check(opened, objects=key).status == "unsupported"
    assert img.info(opened, objects=key).virtual_size == 2 * MIB
    img.convert(opened, tmp_path / "plain.raw", output_format="raw", objects=key)
    assert (tmp_path / "plain.raw").read_bytes() == raw.read_bytes()
    assert img.compare(raw, opened, format="raw", objects=key).identical
    assert sum(entry.length for entry in img.map(opened, objects=key)) == 2 * MIB
    assert img.resize(opened, 3 * MIB, objects=key).after.virtual_size == 3 * MIB
    img.convert(raw, opened, format="raw", output_format="luks", skip_creation=True, objects=key)
    with pytest.raises(CommandError):
        img.convert(target, tmp_path / "x.raw", format="luks", output_format="raw")
    assert not (tmp_path / "x.raw").exists()


def test_an_existing_target_is_replaced_only_when_asked(img: QemuImg, raw: Path, base: Path) -> None:
    before = base.read_bytes()
    with pytest.raises(ImageExistsError):
        img.create(base, MIB, format="qcow2")
    with pytest.raises(ImageExistsError):
        img.convert(raw, base, output_format="qcow2")
    assert base.read_bytes() == before
    made = img.create(base, MIB, format="qcow2", overwrite=True)
    assert made.info is not None
    assert made.info.virtual_size == MIB


def test_an_image_can_be_converted_onto_itself(img: QemuImg, raw: Path, base: Path, tmp_path: Path) -> None:
    made = img.convert(base, base, output_format="qcow2", options={"cluster_size": 4096}, overwrite=True)
    assert made.info is not None
    assert made.info.cluster_size == 4096
    assert content(img, base, tmp_path) == raw.read_bytes()


def test_a_failed_convert_leaves_no_target_and_the_old_one(img: QemuImg, raw: Path, tmp_path: Path) -> None:
    target = tmp_path / "a"
    with pytest.raises(CommandError) as caught:
        img.convert(raw, target, format="raw", output_format="qcow2", options={"nonsense": 1})
    assert ".imgtool" not in caught.value.message
    assert set(os.listdir(tmp_path)) == {"source.raw"}
    write(target, b"old")
    with pytest.raises(CommandError):
        img.convert(raw, target, format="raw", output_format="qcow2", options={"nonsense": 1}, overwrite=True)
    assert target.read_bytes() == b"old"
    assert set(os.listdir(tmp_path)) == {"a", "source.raw"}


def test_every_option_of_convert_at_once(img: QemuImg, raw: Path, tmp_path: Path) -> None:
    img.create(tmp_path / "a", 2 * MIB, format="qcow2")
    img.convert(
        raw,
        tmp_path / "a",
        format="raw",
        output_format="qcow2",
        skip_creation=True,
        target_is_zero=True,
        sparse_size=65536,
        num_coroutines=4,
        out_of_order=True,
        rate_limit=100 * MIB,
        cache="writethrough",
        source_cache="writeback",
        force_share=True,
        salvage=True,
    )
    assert content(img, tmp_path / "a", tmp_path) == raw.read_bytes()


def test_several_images_are_put_end_to_end(img: QemuImg, raw: Path, tmp_path: Path) -> None:
    second = write(tmp_path / "second.raw", disk(2))
    made = img.convert([raw, second], tmp_path / "a", format="raw", output_format="qcow2")
    assert made.info is not None
    assert made.info.virtual_size == 4 * MIB
    assert content(img, tmp_path / "a", tmp_path) == raw.read_bytes() + second.read_bytes()


def test_an_existing_target_can_be_written_in_place(img: QemuImg, raw: Path, tmp_path: Path) -> None:
    target = write(tmp_path / "device", b"\xff" * (2 * MIB))
    identity = target.stat().st_ino
    img.convert(raw, target, format="raw", output_format="raw", skip_creation=True)
    assert target.read_bytes() == raw.read_bytes()
    assert target.stat().st_ino == identity
