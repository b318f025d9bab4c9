"""`imgtool chain verify`, `repair` and `anchor`, as they are typed."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from imgtool.machine.process import ProcessId
from imgtool.operations.overlay import new_overlay
from tests.chain.test_verify import forget_format

if TYPE_CHECKING:
    from tests.cli.conftest import Imgtool
    from tests.conftest import Images

pytestmark = pytest.mark.matrix


def test_a_healthy_store(images: Images, imgtool: Imgtool) -> None:
    new_overlay(images.base("base.qcow2"), images / "top.qcow2")
    done = imgtool("chain", "verify", ".", cwd=images.directory)
    assert (done.status, done.stdout, done.stderr) == (0, "2 images: no defects\n", "")
    done = imgtool("chain", "verify", "--deep", "top.qcow2", cwd=images.directory)
    assert done.stdout == "2 images, 2 checked: no defects\n"


def test_ctrl_c_ends_the_checks_that_run(images: Images, tmp_path: Path) -> None:
    for name in ("a.qcow2", "b.qcow2"):
        images.base(name)
    slow, pids = tmp_path / "slow-qemu-img", tmp_path / "pids"
    slow.write_text(f'#!/bin/sh\ncase "$1" in check) echo $$ >>{pids}; exec sleep 600;; esac; exec qemu-img "$@"\n')
    slow.chmod(0o755)
    words: list[str | Path] = [sys.executable, "-m", "imgtool", "--qemu-img", slow, "chain", "verify", "--deep"]
    with subprocess.Popen([*words, images.directory], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        while not pids.exists() or not pids.read_text():
            assert program.poll() is None
            time.sleep(0.01)
        program.send_signal(signal.SIGINT)
        assert program.wait(60) == 130
        assert program.stderr is not None
        assert program.stderr.read() == b"\nimgtool: interrupted\n"
    assert [pid for pid in pids.read_text().split() if ProcessId.of(int(pid)) is not None] == []


def test_an_error_is_status_3_and_says_whom_it_hurts_and_what_to_do(images: Images, imgtool: Imgtool) -> None:
    base = images.base("base.qcow2", "8M")
    middle = new_overlay(base, images / "middle.qcow2").path
    new_overlay(middle, images / "top.qcow2")
    (images / "bases").mkdir()
    base.rename(images / "bases/base.qcow2")
    done = imgtool("chain", "verify", ".", cwd=images.directory)
    assert done.status == 3
    lines = done.stdout.splitlines()
    assert lines[0] == f"error: middle.qcow2: the backing file {base} does not exist [missing-parent]"
    assert lines[1] == "  hurts:  top.qcow2"
    assert lines[2] == f"  repair: imgtool chain repair --only missing-parent {middle}"
    assert lines[-1] == "3 images: 1 error"


def test_the_command_that_is_named_repairs(images: Images, imgtool: Imgtool) -> None:
    images.base("ba se.qcow2", "4M")
    top = forget_format(images.overlay("to p.qcow2", "ba se.qcow2"))
    (defect,) = imgtool("chain", "verify", top, "--output", "json").document["defects"]
    assert defect["code"] == "backing-format-missing"
    repair = shlex.join([sys.executable, "-m", *defect["repair"]])
    subprocess.run(repair, shell=True, check=True, stdout=subprocess.DEVNULL)
    assert imgtool("chain", "verify", top).status == 0


def test_warnings_count_with_strict_only(images: Images, imgtool: Imgtool) -> None:
    images.base("base.qcow2", "8M")
    images.overlay("small.qcow2", "base.qcow2", size="4M")
    assert imgtool("chain", "verify", images.directory).status == 0
    done = imgtool("chain", "verify", "--strict", images.directory)
    assert done.status == 3
    assert "repair: imgtool resize" in done.stdout


def test_json_is_one_document_and_its_schema_is_known(images: Images, imgtool: Imgtool) -> None:
    images.overlay("top.qcow2", "gone.qcow2", size="1M")
    done = imgtool("chain", "verify", images.directory, "--output", "json")
    assert done.status == 3
    assert set(done.document) == {"images", "checked", "errors", "warnings", "defects"}
    (defect,) = done.document["defects"]
    assert set(defect) == {"code", "severity", "path", "message", "images", "repair", "automatic", "hint"}
    for name in ("chain-verify", "chain-repair", "chain-anchor"):
        assert imgtool("schema", name).status == 0


def test_what_is_nowhere_is_status_1(images: Images, imgtool: Imgtool) -> None:
    assert imgtool("chain", "verify", images / "gone.qcow2").status == 1
    assert imgtool("chain", "verify").status == 2
    assert imgtool("chain", "repair", "--only", "nonsense", images.directory).status == 2


def test_hostile_names_stay_names(images: Images, imgtool: Imgtool) -> None:
    images.overlay("a\x1b[31m,b.qcow2", "g\x1b[2Jone.qcow2", size="1M")
    done = imgtool("chain", "verify", images.directory)
    assert done.status == 3
    assert "\x1b" not in done.stdout


def test_repair_says_what_it_would_do_then_what_it_did(images: Images, imgtool: Imgtool) -> None:
    images.base("base.qcow2", "4M")
    top = forget_format(images.overlay("top.qcow2", "base.qcow2"))
    images.overlay("orphan.qcow2", "gone.qcow2", size="1M")
    whole = top.read_bytes()
    plan = imgtool("chain", "repair", "--dry-run", ".", cwd=images.directory)
    assert plan.status == 0
    assert f"write   {top}" in plan.stdout
    assert "backing-format-missing" in plan.stdout
    assert top.read_bytes() == whole
    done = imgtool("chain", "repair", ".", cwd=images.directory)
    assert done.status == 3
    assert done.stdout.startswith("repaired: top.qcow2: its backing file is named qcow2 [backing-format-missing]\n")
    assert "[missing-parent]" in done.stdout
    left = imgtool("chain", "repair", ".", "--output", "json", cwd=images.directory).document
    assert left["mended"] == []
    assert left["left"]["errors"] == 1


def test_anchor_takes_the_base_as_it_is(images: Images, imgtool: Imgtool) -> None:
    base = images.base("base.qcow2", "8M")
    images.run_io(base, "write -P 1 1M 4M")
    new_overlay(base, images / "top.qcow2")
    images.run_io(base, "write -P 2 1M 64k")
    assert imgtool("chain", "verify", ".", cwd=images.directory).status == 3
    refused = imgtool("chain", "anchor", "--deep", "top.qcow2", cwd=images.directory)
    assert refused.status == 1
    assert "hint: `imgtool chain anchor" in refused.stderr
    assert "read    " in imgtool("chain", "anchor", "--dry-run", "top.qcow2", cwd=images.directory).stdout
    done = imgtool("chain", "anchor", "top.qcow2", cwd=images.directory)
    assert done.stdout == "top.qcow2 remembers base.qcow2 as it is now\n"
    assert imgtool("chain", "verify", ".", cwd=images.directory).status == 0
    done = imgtool("chain", "anchor", "--deep", "top.qcow2", "--output", "json", cwd=images.directory)
    assert done.document[0]["content"].startswith("imgtool1:")
