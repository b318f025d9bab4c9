from __future__ import annotations

from pathlib import Path

import pytest

from imgtool.machine.serial import Follower, Line, Timeline, clean, tail


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain\r\n", "plain\n"),
        (b"\x1b[1;31mred\x1b[0m", "red"),
        (b"\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS", "SeaBIOS"),
        (b"\x1b]0;title\x07shell", "shell"),
        (b"bell\x07 back\x08 tab\t", "bell back tab\t"),
        ("Grüße ✓".encode(), "Grüße ✓"),
        (b"\xff\xfe", "��"),
    ],
)
def test_serial_output_becomes_plain_text(data: bytes, text: str) -> None:
    assert clean(data) == text


def test_lines_are_given_as_they_come_and_a_prompt_before_it_ends(tmp_path: Path) -> None:
    log = tmp_path / "serial0.log"
    follower = Follower(str(log))
    assert list(follower.lines()) == []
    log.write_bytes(b"one\r\ntw")
    assert list(follower.lines()) == [Line("one", True), Line("tw", False)]
    assert list(follower.lines()) == []
    with log.open("ab") as file:
        file.write(b"o\nlogin: ")
    assert list(follower.lines()) == [Line("two", True), Line("login: ", False)]


def test_a_guest_that_writes_faster_than_it_is_read_is_read_by_instalments(tmp_path: Path) -> None:
    log = tmp_path / "serial0.log"
    log.write_bytes(b"x\n")
    follower = Follower(str(log))
    for _ in range(3):
        seen = []
        for line in follower.lines():
            seen.append(line.text)
            with log.open("ab") as file:
                file.write(b"x\n")
        assert seen == ["x"]


def test_an_escape_sequence_that_comes_in_two_pieces_is_one(tmp_path: Path) -> None:
    log = tmp_path / "serial0.log"
    follower = Follower(str(log))
    log.write_bytes(b"\x1b[3")
    list(follower.lines())
    with log.open("ab") as file:
        file.write(b"1mred\n")
    assert list(follower.lines()) == [Line("red", True)]


@pytest.mark.parametrize(
    ("line", "stage"),
    [
        ("SeaBIOS (version 1.16.2-debian-1.16.2-1)", "firmware"),
        ('BdsDxe: loading Boot0001 "UEFI QEMU HARDDISK"', "firmware"),
        ("GNU GRUB  version 2.06", "boot loader"),
        ("[    0.000000] Linux version 6.1.0-18-amd64 (debian-kernel@lists.debian.org)", "kernel"),
        ("[    1.156579] Run /init as init process", "init"),
        ("[    4.1] systemd[1]: Detected virtualization qemu.", "init"),
        ("   OpenRC 0.63 is starting up Linux 6.18.56-0-virt (x86_64)", "init"),
        ("/bin/sh: can't access tty; job control turned off", "init"),
        ("[  OK  ] Reached target network-online.target - Network is Online.", "network"),
        ("udhcpc: lease of 10.0.2.15 obtained from 10.0.2.2, lease time 86400", "network"),
        ("[  OK  ] Started ssh.service - OpenBSD Secure Shell server.", "ssh"),
        ("debian login: ", "login"),
        (
            "[   80.1] cloud-init[600]: Cloud-init v. 22.4.2 finished at Sun, 22 Nov 2026 22:00:00 +0000.",
            "cloud-init",
        ),
    ],
)
def test_what_a_guest_prints_shows_its_stage(line: str, stage: str) -> None:
    timeline = Timeline()
    timeline.see(line, 1.5)
    assert timeline.last == stage
    assert timeline.reached(stage)


def test_the_timeline_keeps_the_first_time_and_knows_the_furthest_stage() -> None:
    timeline = Timeline()
    timeline.see("debian login: ", 9.0)
    timeline.see("GRUB", 10.0)
    timeline.see("debian login: ", 20.0)
    assert [(mark.stage, mark.seconds) for mark in timeline.marks] == [("login", 9.0), ("boot loader", 10.0)]
    assert timeline.last == "login"
    assert Timeline().last is None


def test_the_tail_is_the_last_lines_that_say_anything(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"one\r\n\r\n\x1b[0mtwo  \r\n\r\nthree: ")
    assert tail(str(log), 2) == ["two", "three: ".rstrip()]
    assert tail(str(log), 9, most=6) == ["hree:"]
    assert tail(str(tmp_path / "none"), 2) == []
