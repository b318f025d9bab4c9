"""The serial executor at lines and shells that are not as they should be."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imgtool.build.executor import ExecutorError, GuestLost
from imgtool.build.executors import console
from imgtool.build.executors.serial import SerialWay
from tests.build.executors.terminals import Terminal

SECONDS = 60.0
ALL_BYTES = bytes(range(256))

Opener = Callable[..., tuple[SerialWay, Terminal]]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opener]:
    """Opens a way to a new shell; `path` is its PATH, `line` what becomes of bytes on the way to it."""
    made: list[tuple[SerialWay, Terminal]] = []

    def open_one(shell: str = "bash", **options: object) -> tuple[SerialWay, Terminal]:
        terminal = Terminal(shell, tmp_path, **options)  # type: ignore[arg-type]
        way = SerialWay("test", terminal.running, lambda: terminal.socket, log=str(tmp_path / "log"), shared=False)
        made.append((way, terminal))
        return way, terminal

    yield open_one
    for way, terminal in made:
        way.close()
        terminal.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(ALL_BYTES * 40 + b"no newline")
    return path


def round_trip(way: SerialWay, source: Path, folder: Path) -> bytes:
    way.put(str(source), f"{folder}/there/né")
    way.get(f"{folder}/there/né", f"{folder}/back")
    return (folder / "back").read_bytes()


def few_programs(folder: Path, *names: str) -> str:
    """A PATH with these programs and those that every guest needs."""
    folder.mkdir()
    for name in (*names, "sh", "env", "stty", "head", "id", "cat", "dd", "chmod", "chown", "mv", "wc", "mkdir", "rm"):
        found = shutil.which(name)
        assert found is not None, name
        (folder / name).symlink_to(found)
    return str(folder)


def test_a_guest_without_gzip_base64_and_sha256sum_will_do(opened: Opener, source: Path, tmp_path: Path) -> None:
    way, _ = opened(path=few_programs(tmp_path / "bin", "od", "cksum"))
    way.wait_ready(seconds=SECONDS)
    assert round_trip(way, source, tmp_path) == source.read_bytes()


def test_a_line_that_drops_the_eighth_bit_will_do(opened: Opener, source: Path, tmp_path: Path) -> None:
    way, _ = opened("ash", line=lambda data: bytes(byte & 0x7F for byte in data))
    way.wait_ready(seconds=SECONDS)
    assert round_trip(way, source, tmp_path) == source.read_bytes()
    said = bytearray()
    assert way.run("printf %s 'né€'; printf %s \"$A\"".encode(), env={"A": "ü"}, on_output=said.extend) == 0
    assert said.decode() == "né€ü"


def test_what_others_write_on_the_console_spoils_nothing(opened: Opener, source: Path, tmp_path: Path) -> None:
    way, terminal = opened()
    way.wait_ready(seconds=SECONDS)
    done = threading.Event()

    def chatter() -> None:
        while not done.wait(0.002):
            terminal.say(b"[   12.345678] kernel: \x1e says something\r\n")

    thread = threading.Thread(target=chatter)
    thread.start()
    try:
        assert round_trip(way, source, tmp_path) == source.read_bytes()
        assert way.run(b"exit 5") == 5
    finally:
        done.set()
        thread.join()


def test_a_shell_that_died_is_entered_again(opened: Opener) -> None:
    way, _ = opened()
    way.wait_ready(seconds=SECONDS)
    # The parent of the shell around the step is the server, which reads the line.
    with pytest.raises(ExecutorError):
        way.run(b'kill -9 "$(ps -o ppid= -p $PPID | tr -d " ")" $PPID $$')
    way.wait_ready(seconds=SECONDS)
    assert way.run(b"exit 5") == 5


def test_a_shell_in_the_servers_place_is_noticed_at_once(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a step that restarted the guest: nothing then waits until the server might have answered, and what
    the shell makes of the question is no output of the step."""
    monkeypatch.setattr(console, "SHORT", 10 * SECONDS)
    way, terminal = opened()
    way.wait_ready(seconds=SECONDS)
    said: list[str] = []
    output = bytearray()

    def work() -> None:
        with pytest.raises(ExecutorError, match="no longer answers") as caught:
            way.run(b"echo so far; sleep 1000", on_output=see)
        said.append(caught.value.hint or "")

    def see(piece: bytes) -> None:
        if not output:
            terminal.socket.sendall(b"\n.\n")
        output.extend(piece)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert "restart the guest" in said[0]
    assert output.startswith(b"so far\n")
    assert b"not found" not in output
    assert way.run(b"exit 5") == 5


def test_a_server_that_another_left_behind_is_ended(opened: Opener) -> None:
    way, terminal = opened()
    way.wait_ready(seconds=SECONDS)
    other = SerialWay("other", terminal.running, lambda: terminal.socket, shared=False)
    other.wait_ready(seconds=SECONDS)
    assert other.run(b"exit 5") == 5


def test_the_terminal_is_given_back_as_it_was(opened: Opener) -> None:
    way, terminal = opened("dash")  # it edits no lines, which would change them, too
    before = terminal.settings()
    way.wait_ready(seconds=SECONDS)
    assert terminal.settings() != before
    way.run(b"true")
    port = terminal.socket.dup()
    way.close()
    port.settimeout(SECONDS)
    said = b""
    while not said.endswith(b"# "):
        said += port.recv(4096)
    port.close()
    assert terminal.settings()[:4] == before[:4]


def test_a_login_prompt_is_told_from_a_shell(tmp_path: Path) -> None:
    here, there = socket.socketpair()

    def answer() -> None:
        while there.recv(4096):
            there.sendall(b"\r\n\r\nDebian GNU/Linux 12 web ttyS0\r\n\r\nweb login: ")

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    way = SerialWay("web", lambda: True, lambda: here, shared=False)
    with pytest.raises(ExecutorError, match=r"(?s)no root shell on the serial port of web; it shows:.*web login:"):
        way.wait_ready(seconds=3)
    way.close()
    thread.join()
    there.close()


def test_a_shell_that_is_not_roots_is_said_so(opened: Opener, tmp_path: Path) -> None:
    path = few_programs(tmp_path / "bin", "od", "cksum")
    program = tmp_path / "bin/id"
    program.unlink()
    program.write_text("#!/bin/sh\necho 1000\n")
    program.chmod(0o755)
    way, _ = opened(path=path)
    with pytest.raises(ExecutorError, match="that of user 1000"):
        way.wait_ready(seconds=SECONDS)


def test_a_port_that_shows_nothing_is_given_up(tmp_path: Path) -> None:
    here, there = socket.socketpair()
    way = SerialWay("mute", lambda: True, lambda: here, shared=False)
    with pytest.raises(ExecutorError, match="no root shell on the serial port of mute; it shows nothing"):
        way.wait_ready(seconds=1)
    there.close()
    with pytest.raises(GuestLost, match="mute has ended") as caught:
        way.wait_ready(seconds=SECONDS)
    assert str(caught.value.hint).startswith("`imgtool vm log mute` shows")
    way.close()


def test_a_guest_that_ends_during_a_step_is_lost(opened: Opener) -> None:
    way, terminal = opened()
    way.wait_ready(seconds=SECONDS)

    said = bytearray()

    def end(piece: bytes) -> None:
        said.extend(piece)
        if b"\n" in said:
            terminal.end()

    with pytest.raises(GuestLost):
        way.run(b'echo $$ "$0"; sleep 3600', on_output=end)
    # A guest's end would have taken these with it.
    leader, script = said.decode().split()
    os.killpg(int(leader), signal.SIGKILL)
    shutil.rmtree(os.path.dirname(script))


def test_a_secret_that_a_step_prints_is_overwritten_in_the_ports_log(opened: Opener, tmp_path: Path) -> None:
    way, _ = opened()
    way.wait_ready(seconds=SECONDS)
    log = tmp_path / "log"
    before = b"x" * ((1 << 20) - 3) + b"s3cret" + b"y" * 100 + b"s3cret"
    log.write_bytes(before)
    way.run(b"true", secrets={"A": "s3cret", "B": "s3cret-longer"})
    assert log.read_bytes() == before.replace(b"s3cret", b"******")
