"""`imgtool chain move`, as it is typed."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from imgtool.operations.overlay import new_overlay

if TYPE_CHECKING:
    from tests.cli.conftest import Imgtool
    from tests.conftest import Images

pytestmark = pytest.mark.matrix


def test_a_base_goes_and_its_overlays_follow(images: Images, imgtool: Imgtool) -> None:
    new_overlay(images.base("base.qcow2", "8M"), images / "top.qcow2")
    (images / "bases").mkdir()
    plan = imgtool("chain", "move", "--dry-run", "base.qcow2", "bases/", cwd=images.directory)
    assert plan.status == 0
    assert plan.stdout.splitlines() == [
        f"rename  {images / 'base.qcow2'} to {images / 'bases/base.qcow2'}",
        f"write   {images / 'top.qcow2'}",
        f"note    {images / 'top.qcow2'} names its backing file bases/base.qcow2",
    ]
    done = imgtool("chain", "move", "base.qcow2", "bases/", cwd=images.directory)
    assert done.status == 0
    assert done.stdout.splitlines() == [
        "base.qcow2 -> bases/base.qcow2",
        "top.qcow2 names bases/base.qcow2 now",
    ]
    assert imgtool("chain", "verify", "--strict", ".", cwd=images.directory).status == 0
    # the overlay was told to stand on it, so nobody has to say again that it may
    assert imgtool("info", "--backing-chain", "top.qcow2", cwd=images.directory).status == 0


def test_json_and_schema(images: Images, imgtool: Imgtool) -> None:
    images.base("base.qcow2")
    done = imgtool("chain", "move", "base.qcow2", "new.qcow2", "--output", "json", cwd=images.directory)
    assert done.document == {
        "files": [{"path": str(images / "base.qcow2"), "to": str(images / "new.qcow2"), "copied": False}],
        "followed": [],
    }
    assert imgtool("schema", "chain-move").status == 0


def test_used_wrongly_or_refused(images: Images, imgtool: Imgtool) -> None:
    base = images.base("base.qcow2")
    assert imgtool("chain", "move", base).status == 2
    assert imgtool("chain", "move", base, images / "no/where.qcow2").status == 1
    with images.opened(base) as pid:
        done = imgtool("chain", "move", base, images / "new.qcow2")
    assert done.status == 1
    assert f"pid {pid}" in done.stderr
    assert base.exists()


def test_a_directory_without_files_is_moved_and_that_is_said(images: Images, imgtool: Imgtool) -> None:
    (images / "old").mkdir()
    done = imgtool("chain", "move", "old", "new", cwd=images.directory)
    assert (done.status, done.stdout) == (0, "moved: there were no files in it\n")
    assert (images / "new").is_dir()


def test_the_current_directory_may_be_what_is_moved(images: Images, imgtool: Imgtool) -> None:
    images.base("store/base.qcow2")
    done = imgtool("chain", "move", "../store", "../moved", cwd=images / "store")
    assert (done.status, done.stderr) == (0, "")
    assert "base.qcow2 -> " in done.stdout
    assert (images / "moved/base.qcow2").exists()


def test_a_current_directory_that_is_gone_is_said(images: Images) -> None:
    (images / "gone").mkdir()
    run = "import os, sys; os.rmdir(os.getcwd()); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    words = ["-m", "imgtool", "chain", "show", "x", "--output", "json"]
    done = subprocess.run([sys.executable, "-c", run, *words], cwd=images / "gone", capture_output=True, check=False)
    assert done.returncode == 1
    assert "current directory" in json.loads(done.stderr)["error"]["message"]
