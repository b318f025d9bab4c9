import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from imgtool.errors import ImageError, ImageNotFoundError, ImageUnreadableError
from imgtool.qemu.inputs import check_input


def refusal(path: str | Path, *, write: bool = False) -> ImageError:
    with pytest.raises((ImageNotFoundError, ImageUnreadableError)) as caught:
        check_input(str(path), write=write)
    error: ImageError = caught.value
    assert error.path == str(path)
    assert "\n" not in error.message
    return error


def test_a_regular_file_is_taken_even_when_it_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    check_input(str(tmp_path / "a"))
    check_input(str(tmp_path / "a"), write=True)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    assert isinstance(refusal(tmp_path / "a"), ImageNotFoundError)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    error = refusal(tmp_path / "d" / "a")
    assert error.hint is not None
    assert str(tmp_path / "d") in error.hint


def test_a_dangling_link_says_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("gone")
    assert "gone" in refusal(tmp_path / "a").message


def test_a_link_loop_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("a")
    refusal(tmp_path / "a")


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert isinstance(refusal(tmp_path / "a" / "b"), ImageNotFoundError)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_name_that_no_file_can_have_is_not_found(tmp_path: Path, name: str) -> None:
    assert isinstance(refusal(f"{tmp_path}/{name}"), ImageNotFoundError)


def test_a_directory_is_no_image(tmp_path: Path) -> None:
    assert "directory" in refusal(tmp_path).message


def test_a_fifo_is_refused_without_waiting_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a")
    assert "FIFO" in refusal(tmp_path / "a").message
    with pytest.raises(ImageUnreadableError) as caught:
        check_input(str(tmp_path / "a"), what="base")
    assert caught.value.hint == "a base is a regular file or a block device"


def test_a_socket_is_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("a")
        assert "socket" in refusal(tmp_path / "a").message


def test_a_character_device_is_no_image() -> None:
    assert "character device" in refusal("/dev/null").message


def test_a_name_is_shown_without_what_could_drive_a_terminal(tmp_path: Path) -> None:
    assert "\x1b" not in refusal(tmp_path / "\x1b[2J").message


UNPRIVILEGED = """
import os, sys
from imgtool.errors import ImageUnreadableError
from imgtool.qemu.inputs import check_input
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    check_input(sys.argv[1], write=sys.argv[2] == "write")
except ImageUnreadableError as error:
    print(error.message)
"""


@pytest.mark.parametrize(("mode", "how", "words"), [(0o000, "read", "cannot be read"), (0o444, "write", "written")])
def test_what_permissions_forbid_is_said(mode: int, how: str, words: str) -> None:
    with tempfile.TemporaryDirectory() as folder:  # unlike tmp_path, one that other users may look into
        os.chmod(folder, 0o755)
        image = Path(folder) / "a"
        image.touch()
        image.chmod(mode)
        argv = [sys.executable, "-c", UNPRIVILEGED, str(image), how]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert words in done.stdout
