"""Fixtures of the tests of imgtool.qemu."""

import pytest

from imgtool.qemu.qemu_img import QemuImg


@pytest.fixture(scope="session")
def img() -> QemuImg:
    """The qemu-img that the environment names, else the one on PATH."""
    return QemuImg()
