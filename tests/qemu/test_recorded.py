"""What QEMU 5.2, 7.2 and 10.0 really answered (fixtures/recorded), read by the types that imgtool reads it with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from imgtool.image import qapi, qapi_json

RECORDED = Path(__file__).resolve().parents[2] / "fixtures" / "recorded"
VERSIONS = ("5.2", "7.2", "10.0")
ANSWERED = {"check": {0, 2, 3}}
"""The exit statuses that come with a document; 0 alone where a subcommand is not named."""


def records(version: str) -> list[dict[str, Any]]:
    index = json.loads((RECORDED / version / "index.json").read_text())
    assert index["qemu-img"].startswith(f"{version}.")
    entries: list[dict[str, Any]] = index["records"]
    return entries


def answers(version: str, *subcommands: str) -> list[tuple[dict[str, Any], bytes]]:
    """The records of those subcommands (of all, if none is named) that have a document, and the document."""
    return [
        (record, (RECORDED / version / record["stdout"]).read_bytes())
        for record in records(version)
        if record["stdout"] and record["argv"][1] in (subcommands or SHAPES)
    ]


def shape(argv: list[str]) -> Any:
    return list[qapi.ImageInfo] if "--backing-chain" in argv else SHAPES[argv[1]]


SHAPES: dict[str, Any] = {
    "info": qapi.ImageInfo,
    "check": qapi.ImageCheck,
    "map": list[qapi.MapEntry],
    "measure": qapi.BlockMeasureInfo,
}


def unknown_fields(value: Any) -> set[str]:
    """Every field, however deep, that no struct knows."""
    if isinstance(value, list | tuple):
        return {name for item in value for name in unknown_fields(item)}
    if isinstance(value, qapi.QapiStruct):
        fields = {name for field in value.__struct_fields__ for name in unknown_fields(getattr(value, field))}
        return fields | {f"{type(value).__name__}.{name}" for name in value.unknown}
    return set()


@pytest.mark.parametrize("version", VERSIONS)
def test_every_answer_decodes_and_encodes_to_the_same_document(version: str) -> None:
    for record, document in answers(version):
        value = qapi_json.decode(shape(record["argv"]), document)
        assert json.loads(qapi_json.encode(value)) == json.loads(document), record


@pytest.mark.parametrize("version", VERSIONS)
def test_no_answer_has_a_field_that_the_types_do_not_name(version: str) -> None:
    unknown = {
        name
        for record, document in answers(version)
        for name in unknown_fields(qapi_json.decode(shape(record["argv"]), document))
    }
    assert unknown == set()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_document_is_there_exactly_when_the_exit_status_says_so(version: str) -> None:
    for record in records(version):
        fine = record["status"] in ANSWERED.get(record["argv"][1], {0})
        assert bool(record["stdout"]) == fine, record


@pytest.mark.parametrize("version", VERSIONS)
def test_every_recorded_file_is_in_the_index_and_every_subcommand_and_format_is_recorded(version: str) -> None:
    files = {record["stdout"] for record, _ in answers(version)} | {"index.json"}
    assert {path.name for path in (RECORDED / version).iterdir()} == files
    formats = {"raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vhdx", "vpc", "luks"}
    if version != "5.2":  # which Debian built without it
        formats.add("parallels")
    for subcommand in ("info", "map"):
        assert {record["image"].partition("-")[0] for record, _ in answers(version, subcommand)} >= formats
    checks = {record["image"].partition("-")[0] for record in records(version) if record["argv"][1] == "check"}
    assert checks == formats
    assert len(answers(version, "measure")) > 2 * len(formats)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_a_check_found_agrees_with_its_exit_status(version: str) -> None:
    seen = set()
    for record, document in answers(version, "check"):
        check = qapi_json.decode(qapi.ImageCheck, document)
        seen.add(record["status"])
        expected = 2 if check.corruptions else 3 if check.leaks else 0
        assert record["status"] == expected, record
        assert check.check_errors == 0
    assert seen == {0, 2, 3}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_parts_that_only_some_images_have_are_read(version: str) -> None:
    infos = {
        record["image"]: qapi_json.decode(qapi.ImageInfo, document)
        for record, document in answers(version, "info")
        if "--backing-chain" not in record["argv"]
    }
    snapshots = infos["qcow2-snapshots"].snapshots or ()
    assert [(s.id, s.name) for s in snapshots] == [("1", "first"), ("2", "the second, ünïcode")]
    assert [s.vm_state_size > 0 for s in infos["qcow2-vm-state"].snapshots or ()] == [True]
    bitmaps = infos["qcow2-bitmaps"].qcow2
    assert bitmaps is not None
    assert [(b.name, b.granularity, b.flags) for b in bitmaps.bitmaps or ()] == [
        ("daily", 65536, ("auto",)),
        ("weekly", 131072, ()),
    ]
    data_file = infos["qcow2-data-file-raw"].qcow2
    assert data_file is not None
    assert (data_file.data_file, data_file.data_file_raw) == ("qcow2-data-file-raw.data", True)
    encrypted = infos["qcow2-luks"].qcow2
    assert encrypted is not None
    assert encrypted.encrypt is not None
    assert (encrypted.encrypt.format, encrypted.encrypt.cipher_alg) == ("luks", "aes-128")
    luks = infos["luks"].format_specific
    assert luks is not None
    assert [slot.active for slot in luks.data.slots] == [True] + [False] * 7
    split = infos["vmdk-split-flat"].vmdk
    assert split is not None
    assert [extent.filename for extent in split.extents] == ["/images/vmdk-split-flat-f001.vmdk"]
    corrupt = infos["qcow2-corrupt-bit"].qcow2
    assert corrupt is not None
    assert corrupt.corrupt is True
    # QEMU 5.2 denies it for every qcow2: the header alone is to be believed.
    assert infos["qcow2-dirty"].dirty_flag is (version != "5.2")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_chain_is_listed_from_the_overlay_to_the_base(version: str) -> None:
    (chain,) = (
        qapi_json.decode(list[qapi.ImageInfo], document)
        for record, document in answers(version, "info")
        if record["image"] == "qcow2-overlay-second" and "--backing-chain" in record["argv"]
    )
    assert [(info.filename, info.backing_filename, info.full_backing_filename) for info in chain] == [
        ("/images/qcow2-overlay-second.qcow2", "qcow2-overlay.qcow2", "/images/qcow2-overlay.qcow2"),
        ("/images/qcow2-overlay.qcow2", "qcow2.qcow2", "/images/qcow2.qcow2"),
        ("/images/qcow2.qcow2", None, None),
    ]
