"""A short run of the fuzzer: `make fuzz` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.image.fuzz import FORMATS, fuzz


@pytest.mark.parametrize("format", FORMATS)
def test_mutated_headers_are_read_as_qemu_img_reads_them(tmp_path: Path, format: str) -> None:
    assert fuzz(format, tmp_path, count=300 if format == "qcow2" else 50, seed=1) == []
