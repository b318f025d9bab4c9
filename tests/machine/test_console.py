from __future__ import annotations

import os
import pty
import socket
import subprocess
import termios
import threading
from pathlib import Path

import pytest

from imgtool.errors import MachineError
from imgtool.machine.console import Keys, attach, raw, restored


@pytest.mark.parametrize(
    ("typed", "sent", "asked"),
    [
        (b"ls\r", b"ls\r", []),
        (b"\x03\x1b[A", b"\x03\x1b[A", []),
        (b"a\x01xb", b"a", ["leave"]),
        (b"\x01X", b"", ["leave"]),
        (b"\x01\x01", b"\x01", []),
        (b"\x01h?", b"?", ["help"]),
        (b"\x01zq", b"zq", []),
    ],
)
def test_every_key_but_ctrl_a_is_the_guests(typed: bytes, sent: bytes, asked: list[str]) -> None:
    assert Keys().feed(typed) == (sent, asked)


def test_ctrl_a_and_its_key_may_come_apart() -> None:
    keys = Keys()
    assert keys.feed(b"\x01") == (b"", [])
    assert keys.feed(b"x") == (b"", ["leave"])


class Port:
    """A serial port whose guest prints what it is sent, between brackets."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        connection, _ = self.listener.accept()
        with connection:
            while typed := connection.recv(100):
                connection.sendall(b"[" + typed + b"]")
                if b"off" in typed:
                    return

    def close(self) -> None:
        self.thread.join(10)
        self.listener.close()


def _shown(master: int, slave: int) -> bytes:
    """What was written to the terminal and not read yet."""
    os.write(slave, b"$ ")
    shown = b""
    while not shown.endswith(b"$ "):
        shown += os.read(master, 100)
    return shown


def test_a_console_joins_both_ways_and_is_left_by_ctrl_a_x(tmp_path: Path) -> None:
    port = Port(tmp_path / "s")
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(attach(port.path, stdin=slave, stdout=slave)))
    thread.start()
    os.write(master, b"hi")
    said = b""
    while b"[hi]" not in said:
        said += os.read(master, 100)
    os.write(master, b"\x01x")
    thread.join(10)
    assert answers == ["left"]
    assert termios.tcgetattr(slave) == before
    assert b"\x1b[?7h" in _shown(master, slave)
    port.close()
    os.close(master)
    os.close(slave)


def test_a_console_ends_with_its_vm_and_takes_a_file_for_a_keyboard(tmp_path: Path) -> None:
    port = Port(tmp_path / "s")
    typed = tmp_path / "typed"
    typed.write_bytes(b"power off\n")
    shown = tmp_path / "shown"
    with typed.open("rb") as stdin, shown.open("wb") as stdout:
        assert attach(port.path, stdin=stdin.fileno(), stdout=stdout.fileno()) == "ended"
    assert shown.read_bytes() == b"[power off\n]"
    port.close()


@pytest.mark.parametrize("kind", ["file", "pipe", "nothing"])
def test_when_input_has_ended_a_console_is_left_once_the_guest_is_quiet(tmp_path: Path, kind: str) -> None:
    port = Port(tmp_path / "s")
    shown = tmp_path / "shown"
    typed = b"" if kind == "nothing" else b"uname\n"
    if kind == "pipe":
        stdin, end = os.pipe()
        os.write(end, typed)
        os.close(end)
    else:
        (tmp_path / "typed").write_bytes(typed)
        stdin = os.open(tmp_path / "typed", os.O_RDONLY)
    with shown.open("wb") as stdout:
        assert attach(port.path, stdin=stdin, stdout=stdout.fileno(), quiet=0.5) == "quiet"
    os.close(stdin)
    assert shown.read_bytes() == (b"[uname\n]" if typed else b"")
    port.close()


@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_a_guest_that_answers_much_while_much_is_typed_gets_and_says_it_all(tmp_path: Path, kind: str) -> None:
    port = Port(tmp_path / "s")
    typed = tmp_path / "typed"
    typed.write_bytes(b"0123456789" * 200_000)
    with (tmp_path / "shown").open("wb") as stdout, subprocess.Popen(["cat", typed], stdout=subprocess.PIPE) as cat:
        assert cat.stdout is not None
        with typed.open("rb") as file:
            stdin = file if kind == "file" else cat.stdout
            assert attach(port.path, stdin=stdin.fileno(), stdout=stdout.fileno(), quiet=0.5) == "quiet"
        cat.stdout.close()
    said = (tmp_path / "shown").read_bytes()
    assert said.replace(b"[", b"").replace(b"]", b"") == typed.read_bytes()
    port.close()


def test_a_console_whose_guest_does_not_listen_can_be_left(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "s"))
        deaf.listen()
        master, slave = pty.openpty()
        answers: list[str] = []
        thread = threading.Thread(
            target=lambda: answers.append(attach(deaf.getsockname(), stdin=slave, stdout=slave))
        )
        thread.start()
        while termios.tcgetattr(slave)[3] & termios.ICANON:
            pass  # until it is raw, or the terminal would take no more than a line
        os.write(master, b"x" * (600 << 10))
        os.write(master, b"\x01x")
        thread.join(60)
        assert answers == ["left"]
    os.close(master)
    os.close(slave)


def test_a_port_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="the serial console cannot be reached: No such file"):
        attach(str(tmp_path / "none"))


def test_a_terminal_is_as_before_whatever_happened_to_it() -> None:
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)

    def spoil() -> None:
        with restored(slave, slave), raw(slave, slave):
            assert termios.tcgetattr(slave) != before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spoil()
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


def test_lines_wrap_again_after_a_guest_that_turned_that_off() -> None:
    """SeaBIOS does. A shell then writes the rest of a long command over its last column."""
    master, slave = pty.openpty()
    with restored(slave, slave):
        os.write(slave, b"\x1b[?7l")
    assert b"\x1b[?7h" in _shown(master, slave).partition(b"\x1b[?7l")[2]
    os.close(master)
    os.close(slave)


def test_what_is_no_terminal_is_left_alone(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file, raw(file.fileno(), file.fileno()):
        file.write(b"x")
    assert (tmp_path / "file").read_bytes() == b"x"
