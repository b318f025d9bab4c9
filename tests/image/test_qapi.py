"""The decoders against what QEMU 5.2, 7.2 and 10.0 answered (fixtures/recorded), and against what none does."""

import json
from pathlib import Path
from typing import Any

import pytest

from imgtool.errors import DecodeError
from imgtool.image.qapi import (
    BlockMeasureInfo,
    FileInfo,
    ImageCheck,
    ImageInfo,
    LuksInfo,
    MapEntry,
    QapiStruct,
    Qcow2Info,
    SnapshotInfo,
    VmdkInfo,
)
from imgtool.image.qapi_json import decode, encode, to_builtins

RECORDED = Path(__file__).parents[2] / "fixtures" / "recorded"
VERSIONS = ("5.2", "7.2", "10.0")
TYPES: dict[str, Any] = {
    "info": ImageInfo,
    "chain": list[ImageInfo],
    "check": ImageCheck,
    "repair": ImageCheck,
    "map": list[MapEntry],
    "measure": BlockMeasureInfo,
}


def verb_of(path: Path) -> str:
    """`measure` of `qcow2-luks.measure-raw.json`."""
    return path.stem.rpartition(".")[2].partition("-")[0]


def recorded(version: str) -> list[Path]:
    return [path for path in sorted((RECORDED / version).glob("*.json")) if path.name != "index.json"]


@pytest.mark.parametrize("version", VERSIONS)
def test_everything_that_was_recorded_is_decoded_and_comes_out_as_it_was(version: str) -> None:
    files = recorded(version)
    assert {verb_of(path) for path in files} == set(TYPES)
    for path in files:
        answer = path.read_bytes()
        value = decode(TYPES[verb_of(path)], answer)
        assert to_builtins(value) == json.loads(answer), path
        assert json.loads(encode(value)) == json.loads(answer), path
        assert not unknown_in(value), path


def unknown_in(value: Any) -> list[str]:
    """The fields of recorded answers that the structs do not know, wherever they are."""
    if isinstance(value, list | tuple):
        return [name for item in value for name in unknown_in(item)]
    if not isinstance(value, QapiStruct):
        return []
    below = [getattr(value, name) for name in value.__struct_fields__ if name != "unknown"]
    return [*value.unknown, *unknown_in(below)]


def info(version: str, name: str) -> ImageInfo:
    return decode(ImageInfo, (RECORDED / version / f"{name}.info.json").read_bytes())


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_particular_to_a_format_is_typed(version: str) -> None:
    kinds = {}
    for path in recorded(version):
        if verb_of(path) == "info":
            found = decode(ImageInfo, path.read_bytes())
            if found.format_specific is not None:
                kinds[found.format_specific.type] = type(found.format_specific.data)
    assert kinds == {"qcow2": Qcow2Info, "vmdk": VmdkInfo, "luks": LuksInfo}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_parts_of_a_qcow2_are_read(version: str) -> None:
    bitmaps = info(version, "qcow2-bitmaps").qcow2
    assert bitmaps is not None
    assert bitmaps.bitmaps
    assert all(bitmap.name and bitmap.granularity >= 512 for bitmap in bitmaps.bitmaps)
    external = info(version, "qcow2-data-file").qcow2
    assert external is not None
    assert external.data_file
    assert external.data_file_raw is False
    encrypted = info(version, "qcow2-luks").qcow2
    assert encrypted is not None
    assert encrypted.encrypt is not None
    assert encrypted.encrypt.format == "luks"
    assert encrypted.encrypt.slots is not None
    assert [slot.active for slot in encrypted.encrypt.slots] == [True, *[False] * 7]
    old = info(version, "qcow2-aes").qcow2
    assert old is not None
    assert old.encrypt is not None
    assert (old.encrypt.format, old.encrypt.slots) == ("aes", None)
    extended = info(version, "qcow2-extended-l2").qcow2
    assert extended is not None
    assert extended.extended_l2 is True
    snapshots = info(version, "qcow2-snapshots").snapshots
    assert snapshots
    assert all(isinstance(snapshot, SnapshotInfo) and snapshot.date_sec > 0 for snapshot in snapshots)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_extents_of_a_vmdk_are_read(version: str) -> None:
    flat = info(version, "vmdk-flat").vmdk
    assert flat is not None
    assert [(extent.format, extent.virtual_size) for extent in flat.extents] == [("FLAT", 4 << 20)]


def test_the_nodes_below_an_image_are_read_where_qemu_lists_them() -> None:
    (child,) = info("10.0", "qcow2").children or ()
    assert (child.name, child.info.format) == ("file", "file")
    assert child.info.format_specific is not None
    assert isinstance(child.info.format_specific.data, FileInfo)
    assert info("7.2", "qcow2").children is None


@pytest.mark.parametrize("version", VERSIONS)
def test_the_backing_file_is_read(version: str) -> None:
    overlay = info(version, "qcow2-overlay")
    assert overlay.backing_filename
    assert overlay.backing_filename_format
    assert overlay.full_backing_filename is not None
    assert overlay.full_backing_filename.endswith(overlay.backing_filename)


QCOW2: dict[str, Any] = {"compat": "1.1", "refcount-bits": 16, "compression-type": "zlib"}


def answer(**changes: Any) -> dict[str, Any]:
    whole: dict[str, Any] = {
        "filename": "/a",
        "format": "qcow2",
        "virtual-size": 1024,
        "format-specific": {"type": "qcow2", "data": dict(QCOW2)},
    }
    whole.update(changes)
    return {key: value for key, value in whole.items() if value is not None}


def test_fields_of_a_newer_qemu_are_kept_where_they_were() -> None:
    said = answer(
        **{
            "colour": ["red"],
            "*": 1,
            "unknown": {"a": 1},
            "snapshots": [
                {
                    **dict.fromkeys(("vm-state-size", "date-sec", "date-nsec", "vm-clock-sec", "vm-clock-nsec"), 0),
                    "id": "1",
                    "name": "s",
                    "mood": None,
                }
            ],
            "children": [{"name": "file", "info": {**answer(), "deep": 1}, "edge": 2}],
            "backing-image": answer(shallow=True),
        }
    )
    said["format-specific"]["side"] = 1.5
    said["format-specific"]["data"]["inner"] = {"x": "y"}
    found = decode(ImageInfo, json.dumps(said).encode())
    assert found.unknown == {"colour": ["red"], "*": 1, "unknown": {"a": 1}}
    assert found.snapshots is not None
    assert found.snapshots[0].unknown == {"mood": None}
    assert found.backing_image is not None
    assert found.backing_image.unknown == {"shallow": True}
    assert found.qcow2 is not None
    assert found.qcow2.unknown == {"inner": {"x": "y"}}
    assert to_builtins(found) == said
    assert json.loads(encode({"images": [found]})) == {"images": [said]}


def test_a_format_of_a_newer_qemu_is_kept_as_it_is() -> None:
    said = answer(**{"format-specific": {"type": "qcow9", "data": {"compat": 3, "more": []}}})
    found = decode(ImageInfo, json.dumps(said).encode())
    assert found.qcow2 is None
    assert to_builtins(found) == said


@pytest.mark.parametrize(
    ("kind", "said", "named"),
    [
        (ImageInfo, answer(filename=None), ["ImageInfo", "filename"]),
        (ImageInfo, answer(**{"virtual-size": None}), ["ImageInfo", "virtual-size"]),
        (ImageInfo, answer(**{"virtual-size": "1024"}), ["ImageInfo", "virtual-size"]),
        (ImageInfo, answer(**{"virtual-size": True}), ["ImageInfo", "virtual-size"]),
        (ImageInfo, answer(**{"virtual-size": 10.5}), ["ImageInfo", "virtual-size"]),
        (ImageInfo, answer(**{"dirty-flag": 1}), ["ImageInfo", "dirty-flag"]),
        (ImageInfo, answer(snapshots=[{"id": "1"}]), ["ImageInfo", "snapshots"]),
        (ImageInfo, answer(**{"format-specific": {"type": "qcow2"}}), ["ImageInfo", "data"]),
        (ImageInfo, answer(**{"format-specific": {"data": {}}}), ["ImageInfo", "type"]),
        (ImageInfo, answer(**{"format-specific": {"type": "qcow2", "data": {}}}), ["Qcow2Info", "compat"]),
        (ImageInfo, answer(**{"format-specific": {"type": "qcow2", "data": 1}}), ["Qcow2Info"]),
        (
            ImageInfo,
            answer(**{"format-specific": {"type": "qcow2", "data": {**QCOW2, "encrypt": {"format": "luks"}}}}),
            ["Qcow2Info", "encrypt", "cipher-alg"],
        ),
        (ImageInfo, [], ["ImageInfo"]),
        (list[MapEntry], {}, ["MapEntry"]),
        (list[MapEntry], [{"start": 0, "length": 1, "depth": 0, "zero": True}], ["MapEntry", "data"]),
        (ImageCheck, {"filename": "/a", "format": "raw"}, ["ImageCheck", "check-errors"]),
        (BlockMeasureInfo, {"required": 1}, ["BlockMeasureInfo", "fully-allocated"]),
    ],
)
def test_what_breaks_qapis_promise_is_an_error_that_names_type_and_field(
    kind: Any, said: object, named: list[str]
) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(kind, json.dumps(said).encode())
    assert all(word in caught.value.message for word in named), caught.value.message


@pytest.mark.parametrize("said", [b"", b"{", b"qemu-img: no", b'{"a": 1} trailing'])
def test_what_is_no_json_is_an_error_too(said: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(ImageInfo, said)


def test_bytes_that_are_no_utf8_do_not_stop_decoding() -> None:
    found = decode(ImageInfo, json.dumps(answer()).encode().replace(b"/a", b"/\xff"))
    assert found.filename == "/\ufffd"


def test_a_name_that_is_no_utf8_is_encoded_so_that_python_reads_it_back() -> None:
    import msgspec

    found = msgspec.structs.replace(decode(ImageInfo, json.dumps(answer()).encode()), filename="/\udcff")
    assert json.loads(encode(found))["filename"] == "/\udcff"
    encode(found).decode("ascii")
