"""qemu-img's progress (`-p`), read as it comes: `    (12.34/100%)` and a carriage return, in pieces of any size."""

from __future__ import annotations

import re

_REPORT = re.compile(rb"\((\d{1,3}(?:\.\d+)?)/100%\)")
_LONGEST = 32
"""More bytes than one report has: what may be the beginning of one is never longer."""


class ProgressParser:
    """Finds the percentages in a stream, and keeps the text beside them."""

    def __init__(self) -> None:
        self._tail = b""
        self._text = bytearray()

    def feed(self, piece: bytes) -> list[float]:
        """The percentages (0 to 100) that `piece` completes, in order."""
        buffer = self._tail + piece
        found = []
        end = 0
        for match in _REPORT.finditer(buffer):
            found.append(min(float(match[1]), 100.0))
            self._text += buffer[end : match.start()]
            end = match.end()
        keep = max(end, len(buffer) - _LONGEST)
        self._text += buffer[end:keep]
        self._tail = buffer[keep:]
        return found

    @property
    def text(self) -> str:
        """What else there was: qemu-img's own message."""
        words = (bytes(self._text) + self._tail).decode(errors="replace")
        return "\n".join(line.strip() for line in words.splitlines() if line.strip())
