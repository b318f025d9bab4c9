"""Whatever ends imgtool in the middle of a convert, the target is absent or whole, and no qemu-img stays behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from imgtool.qemu.qemu_img import QemuImg
from tests.qemu.disks import MIB, content, disk, write

pytestmark = pytest.mark.matrix

SIZE = 24 * MIB
CONVERT = """
    import sys
    from imgtool.qemu.qemu_img import QemuImg
    print("started", flush=True)
    try:
        QemuImg().convert(
            sys.argv[1], sys.argv[2], format="raw", output_format="qcow2", overwrite=sys.argv[3] == "over",
            rate_limit=64 << 20,
        )
    except KeyboardInterrupt:
        sys.exit(130)
"""
MOMENTS = [(n, number) for n in range(8) for number in (signal.SIGKILL, signal.SIGTERM)]
"""Which of eight stretches of the convert's time, and what ends it."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("kill") / "source.raw", random.Random(5).randbytes(SIZE))


def start(source: Path, target: Path, over: bool = False) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-c", textwrap.dedent(CONVERT), str(source), str(target), "over" if over else "new"]
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True)
    assert child.stdout is not None
    assert child.stdout.readline() == b"started\n"
    return child


@pytest.fixture(scope="module")
def duration(source: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    """Seconds that a whole convert takes here and now."""
    began = time.monotonic()
    with start(source, tmp_path_factory.mktemp("whole") / "a") as child:
        assert child.wait() == 0
    return time.monotonic() - began


def working_on(folder: Path) -> list[int]:
    """The processes whose command line names something in `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(folder) in words:
                found.append(int(entry.name))
    return found


def nobody_works_on(folder: Path) -> bool:
    end = time.monotonic() + 10
    while working_on(folder) and time.monotonic() < end:
        time.sleep(0.02)
    return not working_on(folder)


def test_a_convert_killed_at_any_moment(img: QemuImg, source: Path, duration: float, tmp_path: Path) -> None:
    rng = random.Random(20)
    partial = 0
    for stretch, number in MOMENTS:
        folder = tmp_path / f"{stretch}-{number}"
        folder.mkdir()
        target = folder / "a.qcow2"
        with start(source, target) as child:
            time.sleep(duration * (stretch + rng.random()) / len(MOMENTS) * 2)
            partial += any(name.endswith(".tmp") for name in os.listdir(folder))
            child.send_signal(number)
        assert nobody_works_on(folder)
        if target.exists():
            assert content(img, target, tmp_path) == source.read_bytes()
            assert img.check(target).status == "clean"
        img.convert(source, target, format="raw", output_format="qcow2", overwrite=True)
        assert os.listdir(folder) == ["a.qcow2"]
    assert partial > 2  # the moments did fall into the work


def test_a_convert_killed_while_it_replaces_keeps_the_old(
    img: QemuImg, source: Path, duration: float, tmp_path: Path
) -> None:
    target = tmp_path / "a.qcow2"
    old = disk(9)
    img.convert(write(tmp_path / "old.raw", old), target, format="raw", output_format="qcow2")
    for part in (0.3, 0.6):
        with start(source, target, over=True) as child:
            time.sleep(duration * part)
            child.kill()
        assert nobody_works_on(tmp_path)
        assert content(img, target, tmp_path) in (old, source.read_bytes())


def test_ctrl_c_cleans_up_at_once(source: Path, tmp_path: Path) -> None:
    with start(source, tmp_path / "a") as child:
        end = time.monotonic() + 30
        while not any(name.endswith(".tmp") for name in os.listdir(tmp_path)) and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.1)
        os.killpg(child.pid, signal.SIGINT)
        assert child.wait(timeout=30) == 130
        assert os.listdir(tmp_path) == []
        assert working_on(tmp_path) == []
