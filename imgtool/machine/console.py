"""A terminal joined to a VM's serial port: every key goes to the guest but Ctrl-A, as in QEMU's own console."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from imgtool.errors import MachineError

if TYPE_CHECKING:
    import socket

_CHUNK = 1 << 14
_CTRL_A = 0x01
_MOST_PENDING = 1 << 20
"""Bytes that are typed ahead of a guest that does not listen."""

How = Literal["left", "ended", "quiet"]
QUIET = 2.0
"""Seconds without a word from the guest after which nothing more is expected when all input was sent."""

AS_EVER = b"\x1b[0m\x1b[?7h\x1b[?25h"
"""No colour, long lines wrapped, the cursor shown. SeaBIOS turns wrapping off and nobody turns it on again; a guest
that ends in the midst of an editor leaves the others so."""

HELP = b"\r\nC-a x  leave the console, the VM runs on\r\nC-a C-a  send C-a\r\nC-a h  this help\r\n"


class Keys:
    """Takes what was typed apart: what is for the guest, and what Ctrl-A asks for."""

    def __init__(self) -> None:
        self._escaped = False

    def feed(self, typed: bytes) -> tuple[bytes, list[Literal["leave", "help"]]]:
        """(bytes for the guest, requests). After `leave`, what was typed behind it is dropped."""
        out = bytearray()
        asked: list[Literal["leave", "help"]] = []
        for key in typed:
            if not self._escaped:
                if key == _CTRL_A:
                    self._escaped = True
                else:
                    out.append(key)
                continue
            self._escaped = False
            if key == _CTRL_A:
                out.append(key)
            elif chr(key) in "xX":
                asked.append("leave")
                break
            elif chr(key) in "hH?":
                asked.append("help")
            else:
                out.append(key)
        return bytes(out), asked


@contextmanager
def restored(keyboard: int = 0, screen: int = 1) -> Iterator[None]:
    """Inside the `with` block, anything may be done to the terminal at these descriptors; afterwards it is as before.
    One that is not a terminal is left alone."""
    with _modes_kept(keyboard):
        try:
            yield
        finally:
            if os.isatty(screen):
                _write_all(screen, AS_EVER)


@contextmanager
def _modes_kept(fd: int) -> Iterator[None]:
    if not os.isatty(fd):
        yield
        return
    import termios

    before = termios.tcgetattr(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextmanager
def raw(fd: int, screen: int = 1) -> Iterator[None]:
    """Inside the `with` block, each key is read as it is typed, and none is a signal."""
    with restored(fd, screen):
        if os.isatty(fd):
            import termios
            import tty

            tty.setraw(fd, termios.TCSADRAIN)  # what was typed ahead is for the guest, too
        yield


def attach(path: str, *, stdin: int = 0, stdout: int = 1, quiet: float = QUIET) -> How:
    """Joins `stdin` and `stdout` to the serial port whose socket is `path`, until Ctrl-A X is typed (`left`), the VM
    ends (`ended`), or stdin has ended and the port has said nothing for `quiet` seconds since (`quiet`). MachineError
    when there is no such port."""
    import socket

    with socket.socket(socket.AF_UNIX) as port:
        try:
            port.connect(path)
        except OSError as error:
            raise MachineError(f"the serial console cannot be reached: {error.strerror}") from None
        with raw(stdin, stdout):
            return _join(port, stdin, stdout, quiet)


def _join(port: socket.socket, stdin: int, stdout: int, quiet: float) -> How:
    import selectors

    join = _Join(port, stdin, stdout)
    port.setblocking(False)
    with selectors.DefaultSelector() as selector:
        selector.register(port, selectors.EVENT_READ)
        try:
            selector.register(stdin, selectors.EVENT_READ)
            selector.unregister(stdin)
            plain = False
        except PermissionError:
            plain = True  # epoll takes no plain files, which are never waited for
        listening = False
        while True:
            if not plain and listening != join.listens:
                listening = join.listens
                if listening:
                    selector.register(stdin, selectors.EVENT_READ)
                else:
                    selector.unregister(stdin)
            selector.modify(port, selectors.EVENT_READ | (selectors.EVENT_WRITE if join.pending else 0))
            patience = 0 if plain and join.listens else quiet if join.ended and not join.pending else None
            ready = {key.fileobj: events for key, events in selector.select(patience)}
            if not ready and patience == quiet:
                return "quiet"
            if ready.get(port, 0) & selectors.EVENT_READ and not join.show():
                return "ended"
            if (stdin in ready or (plain and join.listens)) and join.type():
                return "left"
            if not join.send():
                return "ended"


class _Join:
    """What goes to and fro between a terminal and a port that is not waited for: a guest that says much while much is
    typed must be heard, or neither gets on; and one that does not listen must not keep Ctrl-A from being heard."""

    def __init__(self, port: socket.socket, stdin: int, stdout: int) -> None:
        self._port = port
        self._stdin = stdin
        self._stdout = stdout
        self._keys = Keys()
        self.pending = bytearray()
        """What was typed and the port has not taken."""
        self.ended = False
        """Whether nothing more will be typed."""

    @property
    def listens(self) -> bool:
        """Whether what is typed is read now."""
        return not self.ended and len(self.pending) < _MOST_PENDING

    def show(self) -> bool:
        """Shows what the port says; False when it has ended."""
        try:
            shown = self._port.recv(_CHUNK)
        except BlockingIOError:
            return True
        except ConnectionError:
            return False
        _write_all(self._stdout, shown)
        return bool(shown)

    def type(self) -> bool:
        """Takes what was typed; True when it asks to leave."""
        typed = os.read(self._stdin, _CHUNK)
        self.ended = not typed
        for_guest, asked = self._keys.feed(typed)
        self.pending += for_guest
        if "help" in asked:
            _write_all(self._stdout, HELP)
        if "leave" in asked:
            self.send()
        return "leave" in asked

    def send(self) -> bool:
        """Sends what the port takes now; False when it has ended."""
        try:
            while self.pending:
                del self.pending[: self._port.send(self.pending)]
        except BlockingIOError:
            return True
        except ConnectionError:
            return False
        return True


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
