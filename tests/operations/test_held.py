"""Images that a machine stands on by an overlay which was never found: only its locks tell."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from imgtool.cli.main import main
from imgtool.errors import ImageInUseError
from imgtool.operations.transaction import Transaction
from tests.operations.conftest import Store

CHANGES = [
    "commit top.qcow2",
    "commit -d top.qcow2",
    "commit -b base.qcow2 top.qcow2",
    "commit mid.qcow2",
    "rebase -b '' mid.qcow2",
    "rebase -u --absolute -b base.qcow2 mid.qcow2",
    "chain flatten mid.qcow2",
    "chain move mid.qcow2 new.qcow2",
    "chain move base.qcow2 new.qcow2",
    "chain shorten --delete --force top.qcow2",
    "overlay reset --force mid.qcow2",
    "overlay delete --force mid.qcow2",
    "snapshot -c s1 mid.qcow2",
    "snapshot -d s0 mid.qcow2",
    "snapshot -c s1 base.qcow2",
    "amend -o lazy_refcounts=on mid.qcow2",
    "amend -o lazy_refcounts=on base.qcow2",
    "bitmap --add mid.qcow2 b0",
    "resize --force mid.qcow2 +1M",
    "convert -n -f qcow2 -O qcow2 --force other.qcow2 mid.qcow2",
    "convert -f qcow2 -O qcow2 --force other.qcow2 mid.qcow2",
    "create -f qcow2 --force mid.qcow2 1M",
]


@pytest.fixture
def running(store: Store, tmp_path: Path) -> Path:
    """The disk of a machine, in a directory that nobody looks at."""
    store.base("base.qcow2", 1, 1, 1, 1)
    store.overlay("mid.qcow2", "base.qcow2", {1: 2})
    store.overlay("top.qcow2", "mid.qcow2", {2: 3})
    store.base("other.qcow2", 9)
    store.images.qemu_img("snapshot", "-c", "s0", store / "mid.qcow2")
    (tmp_path / "elsewhere").mkdir()
    disk = tmp_path / "elsewhere" / "disk.qcow2"
    mid = store / "mid.qcow2"
    store.images.qemu_img("create", "-q", "-f", "qcow2", "-b", mid, "-F", "qcow2", disk)
    return disk


@pytest.mark.parametrize("command", CHANGES)
def test_what_a_machine_stands_on_is_not_changed(
    command: str, running: Path, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(store.directory)
    before = store.bytes()
    with store.images.opened(running) as pid, pytest.raises(SystemExit) as left:
        main(shlex.split(command))
    said = capsys.readouterr().err
    assert left.value.code == 1
    assert f"is in use by qemu-io (pid {pid})" in said
    assert "hint: end that process first" in said
    assert store.bytes() == before


def test_a_file_that_was_opened_meanwhile_is_not_replaced(tmp_path: Path, store: Store) -> None:
    store.base("base.qcow2", 1)
    before = store.bytes()
    path = os.fspath(store / "base.qcow2")
    with Transaction(path) as change:
        change.hold(path)
        change.replace(path, change.stage(path, copy_of=path))
        with (
            store.images.opened(store / "base.qcow2", "-r") as pid,
            pytest.raises(ImageInUseError, match=rf"in use by qemu-io \(pid {pid}\): it cannot be replaced"),
        ):
            change.commit()
    assert store.bytes() == before


def test_a_file_that_was_opened_meanwhile_is_not_removed(tmp_path: Path, store: Store) -> None:
    store.base("base.qcow2", 1)
    path = os.fspath(store / "base.qcow2")
    with Transaction(path) as change:
        change.hold(path)
        change.remove(path)
        with (
            store.images.opened(store / "base.qcow2", "-r") as pid,
            pytest.raises(ImageInUseError, match=rf"in use by qemu-io \(pid {pid}\): it cannot be removed"),
        ):
            change.commit()
    assert os.path.exists(path)
