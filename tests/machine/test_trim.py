from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from imgtool.machine import trim
from imgtool.machine.serial import Follower
from imgtool.machine.trim import trim_logs, trimmed_logs

LINES = 1 << 14


def test_a_log_that_grew_too_large_gives_back_its_beginning(tmp_path: Path) -> None:
    log, other = tmp_path / "serial0.log", tmp_path / "disk.raw"
    with log.open("wb", buffering=0) as qemu:
        qemu.write(b"".join(b"line %10d\n" % number for number in range(LINES)))
        other.write_bytes(log.read_bytes())
        follower = Follower(str(log))
        assert [line.text for line in follower.lines()][-1] == f"line {LINES - 1:10}"
        before = os.stat(log)
        trim_logs(str(tmp_path), most=before.st_size, kept=1 << 14)
        assert os.stat(log).st_blocks == before.st_blocks, "it has taken no more than it may"
        trim_logs(str(tmp_path), most=1 << 17, kept=1 << 14)
        assert os.stat(log).st_size == before.st_size
        assert os.stat(log).st_blocks * 512 <= (1 << 14) + 4096
        assert other.read_bytes().startswith(b"line          0\n")
        qemu.write(b"one more\n")
    assert [line.text for line in follower.lines()] == ["one more"]
    found = [line.text for line in Follower(str(log)).lines()]
    assert found[1:] == [f"line {number:10}" for number in range(LINES - len(found) + 2, LINES)] + ["one more"]
    assert len(found) in range(1024, 1024 + 4096 // 16 + 3)


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_where_there_are_no_logs_nothing_is_done(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    trim_logs(str(tmp_path / folder))
    assert os.listdir(tmp_path / "empty") == []


def test_a_log_is_trimmed_while_its_vm_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "serial0.log"
    with log.open("wb") as file:
        file.truncate(trim.MOST + trim.KEPT)
        os.posix_fallocate(file.fileno(), 0, trim.MOST + trim.KEPT)
    monkeypatch.setattr(trim, "_EVERY", 0.01)
    before = threading.active_count()
    with trimmed_logs(str(tmp_path)):
        deadline = time.monotonic() + 30
        while log.stat().st_blocks * 512 > trim.KEPT + (1 << 20):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert log.stat().st_size == trim.MOST + trim.KEPT
    assert threading.active_count() == before
