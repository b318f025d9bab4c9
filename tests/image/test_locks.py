from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgtool.image.locks import forbid_writers, holders, lock_state
from imgtool.image.users import users_of

QEMU_IO = os.environ.get("IMGTOOL_QEMU_IO", "qemu-io")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.raw"
    path.write_bytes(bytes(1 << 20))
    return path


@contextmanager
def opened_by_qemu(path: Path, *options: str) -> Iterator[int]:
    """The image open in a qemu-io that waits for commands; its pid."""
    argv = [QEMU_IO, *options, "-f", "raw", str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write(b"length\n")
        program.stdin.flush()
        while b"MiB" not in program.stdout.readline():
            pass
        yield program.pid
        program.stdin.write(b"quit\n")
        program.stdin.flush()


def state_of(path: Path) -> str | None:
    fd = os.open(path, os.O_RDONLY)
    try:
        return lock_state(fd)
    finally:
        os.close(fd)


def test_an_idle_image_is_not_locked(image: Path) -> None:
    assert state_of(image) is None
    assert holders(str(image)) == []


def test_an_image_open_for_writing_names_its_holder(image: Path) -> None:
    with opened_by_qemu(image) as pid:
        assert state_of(image) == "write"
        assert [(holder.pid, holder.program) for holder in holders(str(image))] == [(pid, "qemu-io")]
        linked = image.with_name("linked")
        os.link(image, linked)
        assert state_of(linked) == "write"
    assert state_of(image) is None


def test_an_image_open_for_reading_is_locked_for_reading(image: Path) -> None:
    with opened_by_qemu(image, "-r") as pid:
        assert state_of(image) == "read"
        assert [holder.pid for holder in holders(str(image))] == [pid]


def test_a_file_open_for_writing_without_a_lock_names_its_holder(image: Path) -> None:
    with subprocess.Popen(
        ["sh", "-c", 'exec 3<>"$0"; echo ready; read line', str(image)], stdin=-1, stdout=-1
    ) as shell:
        assert shell.stdout is not None
        assert shell.stdin is not None
        shell.stdout.readline()
        assert state_of(image) is None
        assert [holder.pid for holder in holders(str(image))] == [shell.pid]
        shell.stdin.close()


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([Path(sys.executable).with_name("imgtool"), "inspect", "-"], "imgtool"),
        ([sys.executable, "-m", "imgtool", "inspect", "-"], "imgtool"),
        ([sys.executable, "-X", "utf8", "-BIm", "imgtool", "inspect", "-"], "imgtool"),
        ([sys.executable, "-c", "input()", "imgtool"], Path(sys.executable).name),
    ],
)
def test_another_imgtool_is_called_so_and_not_python(image: Path, words: list[str | Path], name: str) -> None:
    fd = os.open(image, os.O_RDWR)
    try:
        assert forbid_writers(fd)  # the lock is the child's as well: it is of the open file
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[fd]) as other:
            users = users_of(str(image))
            assert other.stdin is not None
            other.stdin.close()
    finally:
        os.close(fd)
    assert users.names == f"{name} (pid {other.pid})"
    assert users.ending == ("wait until that is done" if name == "imgtool" else "end that process first")


def test_a_missing_image_has_no_holders(tmp_path: Path) -> None:
    assert holders(str(tmp_path / "missing")) == []
