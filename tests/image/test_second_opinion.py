"""The corpus shown to oslo.utils' format inspector, with which OpenStack guards its uploads: whatever it calls
unsafe, imgtool calls unsafe. Where imgtool is stricter, the reason is here."""

from __future__ import annotations

from pathlib import Path

import pytest
from oslo_utils.imageutils import format_inspector

from fixtures.hostile.cases import Case, corpus
from imgtool.image.findings import KINDS

STRICTER: dict[str, str] = {
    "extent": "oslo.utils takes a descriptor that is not ASCII for raw; QEMU opens the files it names",
    "backing-outside": "the parent of a VMDK is a field that oslo.utils lets pass unread",
    "backing-network": "the parent of a VMDK is a field that oslo.utils lets pass unread",
    "many-snapshots": "qemu-img info takes seconds and hundreds of MB for 65,536 snapshots",
    "many-bitmaps": "qemu-img info takes half a minute for 65,535 bitmaps",
    "shared-clusters": "a small file converts to gigabytes",
    "inflated": "a small file converts to gigabytes",
    "huge-disk": "its tables alone fill memory or disk",
    "malformed": "QEMU refuses these; oslo.utils reads few fields, and takes the shortest for raw",
    "no-crypto-header": "qemu-img crashes on it",
    "tables-outside": "QEMU reads zeros where data was, without a word",
    "two-formats": "oslo.utils knows no VHD but by its beginning, and counts a GPT only with its MBR",
}
"""Codes for which imgtool refuses what oslo.utils lets pass."""


def is_unsafe(path: Path) -> bool:
    try:
        inspector = format_inspector.detect_file_format(str(path))
        assert inspector is not None
        inspector.safety_check()
    except (format_inspector.ImageFormatError, format_inspector.SafetyCheckFailed):
        return True
    return False


@pytest.mark.parametrize("case", corpus(), ids=lambda case: case.name)
def test_imgtool_is_never_the_laxer_one(tmp_path: Path, case: Case) -> None:
    path = tmp_path / case.name
    path.write_bytes(case.data)
    if is_unsafe(path):
        assert case.verdict != "safe"
    elif case.verdict != "safe":
        assert case.codes & STRICTER.keys()


def test_every_reason_is_about_a_code() -> None:
    assert STRICTER.keys() <= KINDS.keys()
