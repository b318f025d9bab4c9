"""What comes out of a guest: the output of a step, with frames in between that are ours.

A frame is `RS TOKEN : id : status : payload RS TOKEN RS`, where RS is ASCII's record separator (0x1E) and TOKEN a
random word that nothing in the guest can foresee. Everything else is output, byte for byte.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable
from typing import NamedTuple

RS = b"\x1e"
HIDDEN = b"***"

_LONGEST_FRAME = 1 << 24


def new_token() -> str:
    return secrets.token_hex(12)


class Frame(NamedTuple):
    id: str
    status: int
    payload: bytes


class Frames:
    """Takes a stream apart."""

    def __init__(self, token: str) -> None:
        self.token = token
        self._head = RS + token.encode() + b":"
        self._tail = RS + token.encode() + RS
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes | Frame]:
        """Output and frames, in their order. What may be the beginning of a frame is kept back until it is known."""
        found: list[bytes | Frame] = []
        self._rest += data
        while self._rest:
            output, head, behind = self._rest.partition(self._head)
            if not head:
                keep = overlap(self._rest, self._head)
                output, self._rest = self._rest[: len(self._rest) - keep], self._rest[len(self._rest) - keep :]
                if output:
                    found.append(output)
                break
            if output:
                found.append(output)
            inside, tail, after = behind.partition(self._tail)
            if not tail and len(behind) <= _LONGEST_FRAME:
                self._rest = head + behind
                break
            frame = _parse(inside) if tail else None
            found.append(head + inside + tail if frame is None else frame)
            self._rest = after
        return found

    def flush(self) -> bytes:
        """What was kept back, when nothing more will come."""
        rest, self._rest = self._rest, b""
        return rest


def _parse(inside: bytes) -> Frame | None:
    match = re.match(rb"([a-z0-9]+):(\d+):", inside)
    return Frame(match[1].decode(), int(match[2]), inside[match.end() :]) if match else None


class Redactor:
    """Writes `***` for each secret in a stream, wherever the stream is cut into pieces. What may be the beginning of
    one is kept back until the next piece or `close`."""

    def __init__(self, values: Iterable[str], write: Callable[[bytes], None]) -> None:
        found = {value.encode(errors="surrogateescape") for value in values if value}
        self._values = sorted(found, key=len, reverse=True)
        self._pattern = re.compile(b"|".join(re.escape(value) for value in self._values)) if found else None
        self._write = write
        self._rest = b""

    def __call__(self, data: bytes) -> None:
        if self._pattern is None:
            if data:
                self._write(data)
            return
        self._rest += data
        safe = len(self._rest) - max(overlap(self._rest, value) for value in self._values)
        out = bytearray()
        at = 0
        for match in self._pattern.finditer(self._rest):
            if match.end() > safe and match.start() >= safe:
                break
            out += self._rest[at : match.start()] + HIDDEN
            at = match.end()
        end = max(at, safe)
        out += self._rest[at:end]
        self._rest = self._rest[end:]
        if out:
            self._write(bytes(out))

    def close(self) -> None:
        """Writes what was kept back."""
        if self._pattern is not None and self._rest:
            rest, self._rest = self._rest, b""
            self._write(self._pattern.sub(HIDDEN, rest))


def overlap(data: bytes, word: bytes) -> int:
    """How many bytes at the end of `data` may be the beginning of `word`, but are not the whole of it."""
    for length in range(min(len(data), len(word) - 1), 0, -1):
        if data.endswith(word[:length]):
            return length
    return 0


def redact(data: bytes, values: Iterable[str]) -> bytes:
    """`data` with the secrets in it made the same number of asterisks."""
    found = {value.encode(errors="surrogateescape") for value in values if value}
    for value in sorted(found, key=len, reverse=True):
        data = data.replace(value, b"*" * len(value))
    return data
