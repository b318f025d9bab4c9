"""What steps say: masked, shown, kept in the layer's log, and its last lines remembered for the error."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import IO

from imgtool.image.names import printable

MASK = b"***"
TAIL = 20
"""Lines that an error shows."""
_LONGEST_LINE = 4096


class Masked:
    """Replaces secrets in a stream, also those that come in two pieces."""

    def __init__(self, secrets: Iterable[str], sink: Callable[[bytes], None]) -> None:
        # The longer first: one may be part of another.
        self._secrets = sorted({secret.encode(errors="surrogateescape") for secret in secrets}, key=len, reverse=True)
        self._secrets = [secret for secret in self._secrets if secret.strip()]
        self._sink = sink
        self._rest = b""

    def feed(self, piece: bytes) -> None:
        data = self._rest + piece
        for secret in self._secrets:
            data = data.replace(secret, MASK)
        kept = max((_overlap(data, secret) for secret in self._secrets), default=0)
        self._rest = data[len(data) - kept :]
        if data[: len(data) - kept]:
            self._sink(data[: len(data) - kept])

    def flush(self) -> None:
        rest, self._rest = self._rest, b""
        if rest:
            self._sink(rest)


def _overlap(data: bytes, secret: bytes) -> int:
    """How many bytes at the end of `data` may be the beginning of `secret`."""
    for length in range(min(len(secret) - 1, len(data)), 0, -1):
        if data.endswith(secret[:length]):
            return length
    return 0


class Log:
    """The log of a layer, and whoever watches."""

    def __init__(self, file: IO[bytes], secrets: Iterable[str], watch: Callable[[bytes], None]) -> None:
        self._file = file
        self._watch = watch
        self._masked = Masked(secrets, self._write)
        self._lines: deque[bytes] = deque(maxlen=TAIL)
        self._line = b""

    def heading(self, text: str) -> None:
        """A line of imgtool's own: which step begins."""
        self.end_step()
        self._file.write(f"==> {text}\n".encode(errors="surrogateescape"))
        self._file.flush()

    def feed(self, piece: bytes) -> None:
        self._masked.feed(piece)

    def end_step(self) -> None:
        self._masked.flush()

    def begin_step(self) -> None:
        """From here on the last lines are another step's."""
        self.end_step()
        self._lines.clear()
        self._line = b""

    def tail(self) -> list[str]:
        """The last lines of this step, printable."""
        self.end_step()
        lines = [*self._lines, *([self._line] if self._line else [])][-TAIL:]
        return [printable(line.rstrip(b"\r").decode(errors="replace")) for line in lines]

    def _write(self, piece: bytes) -> None:
        self._file.write(piece)
        self._file.flush()
        *whole, self._line = (self._line + piece).split(b"\n")
        self._lines.extend(line[-_LONGEST_LINE:] for line in whole)
        self._line = self._line[-_LONGEST_LINE:]
        self._watch(piece)
