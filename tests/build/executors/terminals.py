"""Shells of this machine on terminals of their own, behind a socket as a guest's serial port is."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import termios
import threading
from collections.abc import Callable
from pathlib import Path

import pexpect

SHELLS = {
    "bash": ["bash", "--norc", "--noprofile"],
    "dash": ["dash"],
    "ash": ["busybox", "ash"],
}


class Terminal:
    """A root shell on a pseudo-terminal. `line` is what becomes of bytes on their way to it."""

    def __init__(
        self, shell: str, home: Path, *, path: str | None = None, line: Callable[[bytes], bytes] = lambda data: data
    ) -> None:
        env = {"PATH": path or os.environ["PATH"], "HOME": os.fspath(home), "PS1": "# ", "TERM": "dumb"}
        # In a namespace of its own a user is root, which a guest's shell has to be.
        become = [] if os.geteuid() == 0 else ["unshare", "--map-root-user"]
        argv = [*become, *SHELLS[shell]]
        program = shutil.which(argv[0])
        assert program is not None, f"{argv[0]} is needed"
        self._child = pexpect.spawn(program, argv[1:], env=env, timeout=None, cwd=os.fspath(home))
        self._name = os.readlink(f"/proc/{self._child.pid}/fd/0")
        self.socket, self._end = socket.socketpair()
        self._line = line
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._there, self._back)]
        for thread in self._threads:
            thread.start()

    def say(self, text: bytes) -> None:
        """Writes on it, as a kernel does on its console."""
        with open(self._name, "wb", buffering=0) as terminal:
            terminal.write(text)

    def settings(self) -> list[object]:
        """What termios says of it."""
        return list(termios.tcgetattr(self._child.child_fd))

    def running(self) -> bool:
        return bool(self._child.isalive())

    def _there(self) -> None:
        try:
            while piece := self._end.recv(4096):
                os.write(self._child.child_fd, self._line(piece))
        except OSError:
            pass  # the shell has ended

    def _back(self) -> None:
        try:
            while piece := os.read(self._child.child_fd, 4096):
                self._end.sendall(piece)
        except OSError:
            pass
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)  # a mere close waits for the other thread, which waits for it
        self._end.close()

    def end(self) -> None:
        """Ends the shell, as a machine that is switched off does: the socket is closed at its other end."""
        self._child.close(force=True)

    def close(self) -> None:
        self.socket.close()
        self._child.close(force=True)
        for thread in self._threads:
            thread.join()
