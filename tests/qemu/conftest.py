"""Fixtures of the tests of imgtool.qemu."""

from pathlib import Path

import pytest

from imgtool.qemu.qemu_img import QemuImg
from tests.qemu.disks import disk, write


@pytest.fixture(scope="session")
def img() -> QemuImg:
    """The qemu-img that the environment names, else the one on PATH."""
    return QemuImg()


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A raw image of known content."""
    return write(tmp_path / "source.raw", disk(1))


@pytest.fixture
def base(img: QemuImg, raw: Path, tmp_path: Path) -> Path:
    """A qcow2 that holds the same."""
    img.convert(raw, tmp_path / "base.qcow2", format="raw", output_format="qcow2")
    return tmp_path / "base.qcow2"
