"""Reading a guest's serial console from its log: line by line as it grows, without the terminal's escape sequences,
and how far the guest has come by what it printed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

_CHUNK = 1 << 16
_LONGEST = 4096
"""Characters of a line that are looked at."""

_ESCAPES = re.compile(
    rb"\x1b(?:"
    rb"\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    rb"|\][^\x07\x1b]*(?:\x07|\x1b\\)"  # OSC: titles
    rb"|[PX^_][^\x1b]*\x1b\\"  # DCS, SOS, PM, APC
    rb"|[ -/]*[0-~]"
    rb")"
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_STAGES = (
    ("firmware", r"SeaBIOS|iPXE|EDK II|UEFI|BdsDxe|U-Boot|qboot"),
    ("boot loader", r"GRUB|SYSLINUX|ISOLINUX|systemd-boot|Booting from|Booting `"),
    ("kernel", r"Linux version \d|^\[ +0\.\d{6}\]|Decompressing Linux|Loading Linux|---<<BOOT>>---"),
    (
        "init",
        r"systemd\[1\]|OpenRC \d|INIT: version|as init process|Welcome to .*!|can't access tty; job control"
        r"|Starting init|cloud-init\[\d+\]",
    ),
    (
        "network",
        r"ci-info: .*Net device info|Reached target .*(?:network-online\.target|Network is Online)"
        r"|lease of [\d.]+ obtained"
        r"|eth0 \.\.\. .*\[ ok \]|Network (?:is Online|Configuration)",
    ),
    ("ssh", r"Started ssh\.service|Started .*(?:OpenBSD Secure Shell|OpenSSH)|Starting sshd.*ok|SSH HOST KEY"),
    ("login", r"login: *$"),
    ("cloud-init", r"[Cc]loud-init v\. ?\S+ finished at"),
)
"""What a guest prints at each stage of its start, in their usual order."""


class Line(NamedTuple):
    text: str
    complete: bool
    """False for the line being written, such as a prompt; it is given again when it has grown."""


def clean(data: bytes) -> str:
    """Serial output as text for people and patterns: no escape sequences, no control characters but tab and newline.
    What is not UTF-8 becomes U+FFFD."""
    return _CONTROLS.sub("", _ESCAPES.sub(b"", data).replace(b"\r\n", b"\n").decode(errors="replace"))


class Follower:
    """Gives the lines of a log that is being written, from its beginning."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._offset = 0
        self._rest = b""

    def lines(self) -> Iterator[Line]:
        """What has come since the last call. A log that is not there yet has no lines."""
        grown = False
        for piece in self.pieces():
            grown = True
            *whole, self._rest = (self._rest + piece).split(b"\n")
            for line in whole:
                yield Line(clean(line.rstrip(b"\r")), True)
            self._rest = self._rest[-_CHUNK:]
        if grown and self._rest:
            yield Line(clean(self._rest), False)

    @property
    def unfinished(self) -> str:
        """The line being written, as far as `lines` has come."""
        return clean(self._rest)

    def pieces(self) -> Iterator[bytes]:
        """What has come between the last call and this one, as it is: a guest may write faster than it is read."""
        try:
            with open(self._path, "rb") as file:
                end = file.seek(0, os.SEEK_END)
                self._offset = _past_hole(file.fileno(), self._offset)
                file.seek(self._offset)
                while piece := file.read(min(_CHUNK, max(0, end - self._offset))):
                    self._offset += len(piece)
                    yield piece
        except FileNotFoundError:
            return


def _past_hole(fd: int, offset: int) -> int:
    """Where what was written goes on from `offset`: behind what `imgtool.machine.trim` has given back."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except (OSError, AttributeError):  # at the end; or where files have no holes
        return offset


class Mark(NamedTuple):
    stage: str
    seconds: float
    """Since QEMU was started."""


class Timeline:
    """When each stage was first seen."""

    def __init__(self) -> None:
        self.marks: list[Mark] = []

    def see(self, line: str, seconds: float) -> None:
        """Notes the stages that `line` shows."""
        line = line[-_LONGEST:]  # a hostile one makes the patterns look long
        for name, pattern in _STAGES:
            if re.search(pattern, line):
                self.mark(name, seconds)

    def mark(self, stage: str, seconds: float) -> None:
        if not self.reached(stage):
            self.marks.append(Mark(stage, seconds))

    def reached(self, stage: str) -> bool:
        return any(mark.stage == stage for mark in self.marks)

    @property
    def last(self) -> str | None:
        """The furthest stage of a guest's start that was seen, in the usual order and not by the clock."""
        seen = {mark.stage for mark in self.marks}
        return next((name for name, _ in reversed(_STAGES) if name in seen), None)


def tail(path: str, lines: int, *, most: int = _CHUNK) -> list[str]:
    """The last lines of a log that say anything, cleaned; none when there is no log."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - most))
            text = clean(file.read())
    except FileNotFoundError:
        return []
    return [line.rstrip() for line in text.split("\n") if line.strip()][-lines:]
