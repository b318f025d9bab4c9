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
    """Within, others may do to the terminal at these descriptors what they like; afterwards it is as before. One that
    is no terminal is left alone."""
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
    """Within, each key comes as it is typed and none is a signal."""
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

    keys = Keys()
    patience: float | None = None
    with selectors.DefaultSelector() as selector:
        selector.register(port, selectors.EVENT_READ)
        try:
            selector.register(stdin, selectors.EVENT_READ)
        except PermissionError:
            _feed_file(port, stdin, keys)  # epoll takes no plain files
            patience = quiet
        while True:
            ready = selector.select(patience)
            if not ready:
                return "quiet"
            for key, _ in ready:
                if key.fileobj is port:
                    shown = _receive(port)
                    if not shown:
                        return "ended"
                    _write_all(stdout, shown)
                    continue
                typed = os.read(stdin, _CHUNK)
                if not typed:
                    selector.unregister(stdin)
                    patience = quiet
                    continue
                for_guest, asked = keys.feed(typed)
                port.sendall(for_guest)
                if "leave" in asked:
                    return "left"
                if "help" in asked:
                    _write_all(stdout, HELP)


def _feed_file(port: socket.socket, stdin: int, keys: Keys) -> None:
    while typed := os.read(stdin, _CHUNK):
        port.sendall(keys.feed(typed)[0])


def _receive(port: socket.socket) -> bytes:
    try:
        return port.recv(_CHUNK)
    except ConnectionError:
        return b""


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
