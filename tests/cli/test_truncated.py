"""An image whose end is missing, as a copy that broke off leaves it: where QEMU reads zeros imgtool refuses."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.files import block_device

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Imgtool
    from tests.conftest import Images

COMMANDS = {
    "convert": ("convert", "-O", "qcow2", "top.qcow2", "new.qcow2"),
    "overlay new": ("overlay", "new", "top.qcow2", "new.qcow2"),
    "boot": ("boot", "top.qcow2", "--ephemeral", "--accel", "tcg", "--dry-run"),
    "serve": ("serve", "top.qcow2", "--dry-run"),
    "commit": ("overlay", "commit", "top.qcow2"),
    "flatten": ("chain", "flatten", "top.qcow2", "--to", "new.qcow2"),
    "sync": ("sync", "top.qcow2", "host.invalid:/srv", "--dry-run"),
}


@pytest.fixture
def store(images: Images) -> Path:
    """An overlay on half a base."""
    base = images.base("base.qcow2", "8M")
    images.run_io(base, "write -P 7 0 8M")
    images.overlay("top.qcow2", "base.qcow2")
    os.truncate(base, base.stat().st_size // 2)
    return images.directory


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_what_would_read_zeros_is_refused(store: Path, imgtool: Imgtool, words: tuple[str, ...]) -> None:
    before = {path.name: path.read_bytes() for path in store.iterdir()}
    done = imgtool(*words, cwd=store)
    assert (done.status, done.stdout) == (1, "")
    said = f"imgtool: error: the end of {store / 'base.qcow2'} is missing: QEMU would read zeros where its data was\n"
    assert done.stderr.startswith(said)
    assert {path.name: path.read_bytes() for path in store.iterdir()} == before


def test_it_is_shown_where_it_belongs(store: Path, imgtool: Imgtool) -> None:
    size = (store / "base.qcow2").stat().st_size
    for shown in (".", "top.qcow2", "base.qcow2"):
        done = imgtool("chain", "show", shown, cwd=store)
        base, error, top = done.stdout.splitlines()
        assert base.startswith("base.qcow2")
        assert error.endswith(f"    error: it ends after {size} bytes, and uses clusters beyond [truncated]")
        assert top.startswith("└─ top.qcow2")


def test_a_block_device_has_no_file_size_and_all_its_bytes(images: Images, imgtool: Imgtool, tmp_path: Path) -> None:
    base = images.base("base.qcow2", "8M")
    images.run_io(base, "write -P 7 0 2M")
    os.truncate(base, 16 << 20)
    with block_device(base) as device:
        found = imgtool("chain", "verify", device, XDG_STATE_HOME=str(tmp_path))  # no images on other such devices
        assert found.stdout.endswith("no defects\n")
        assert imgtool("convert", "-O", "raw", device, tmp_path / "new.raw").status == 0
        assert (tmp_path / "new.raw").read_bytes().startswith(b"\7" * (2 << 20))
        os.truncate(base, 512 << 10)
    with block_device(base) as device:
        done = imgtool("convert", "-O", "raw", device, tmp_path / "half.raw")
        assert f"the end of {device} is missing" in done.stderr


@pytest.mark.parametrize("word", ["--force", "--salvage"])
def test_what_is_left_of_it_can_be_had(store: Path, imgtool: Imgtool, word: str) -> None:
    assert imgtool("convert", word, "-O", "raw", "top.qcow2", "new.raw", cwd=store).status == 0
    content = (store / "new.raw").read_bytes()
    assert len(content) == 8 << 20
    assert content.startswith(b"\7" * (1 << 20))
    assert content.endswith(b"\0" * (1 << 20))
