"""A root shell on a serial port, made to answer questions.

At first there is a prompt for people: it is looked for by typing nothing but Enter, and known when Enter brings it
again. Then a line of shell is typed that switches the terminal's own doings off and is a server: it reads `ID N`,
says that it listens, reads a shell program of N bytes, and answers with a frame (`stream`) that has the
program's output and exit status. Steps run in the background of it, so that it always listens.

A kernel that prints on its console, or a daemon that does, comes in between: whatever is no frame is no answer.
"""

from __future__ import annotations

import itertools
import re
import select
import socket
import time
from collections.abc import Callable
from typing import Final

from imgtool.build.executor import ExecutorError, GuestLost, has_ended
from imgtool.build.executors.base import SHORT, Answer
from imgtool.build.executors.stream import Frame, Frames, new_token
from imgtool.machine.serial import clean

_PIECE: Final = 1 << 16
_LISTEN_SECONDS: Final = 20.0
_SOON: Final = 5.0
"""After so many seconds without an answer it is asked whether the server is still there."""
_QUIET: Final = 0.5
_ENTER_AGAIN: Final = 3.0
_SILENT_ENTERS: Final = 3
_HELLO_SECONDS: Final = 10.0
_SHOWN: Final = 4096

_PROMPT = re.compile(r"[#$%>] ?$")
_LOGIN = re.compile(r"(?:login|[Pp]assword|user ?name): ?$")

_HELLO = " unset HISTFILE; printf '\\036%s:hi:%d:\\036%s\\036' {0} \"$(id -u)\" {0}\n"
"""What is typed is echoed, but not as it is printed: no echo of it is a frame."""

_SERVER = (
    " sh -c 'T={0};g=$(stty -g);q(){{ stty raw -echo -iexten;}};"
    'f(){{ printf "\\036$T:%s:%d:%s\\036$T\\036" "$@";}};h(){{ head -c $1;}};'
    'exec 4>&1 5<&0;q;f up $? "";while read -r i n;do case $n in ""|*[!0-9]*)[ "$i" = . ]&&break;continue;;esac;'
    'q;f $i 0 go;x=$(h $n);o=$(eval "$x" 2>&1 </dev/null);f $i $? "$o";done;stty $g\'\n'
)

_QUIETEN: Final = """
[ -d /run/systemd/system ] && kill -55 1; dmesg -n 1 2>/dev/null; exit 0
"""
"""Has systemd (SIGRTMIN+21) and the kernel print nothing on the console but emergencies, until the next boot."""


class Console:
    """The host's end. `ExecutorError` for what does not work there, `GuestLost` when nothing answers any more."""

    def __init__(self, port: socket.socket, name: str) -> None:
        port.setblocking(False)
        self._port = port
        self._name = name
        self._frames = Frames(new_token())
        self._owed = 1
        self._ids = (f"q{number}" for number in itertools.count())
        self.on_output: Callable[[bytes], None] = lambda _: None
        """Gets what is no frame."""
        self.on_frame: Callable[[Frame], None] = lambda _: None
        """Gets the frames that answer no question."""

    @property
    def token(self) -> str:
        return self._frames.token

    def enter(self, *, deadline: float) -> None:
        """Finds the shell and makes it a server."""
        while True:
            self._find_prompt(deadline)
            self._frames = Frames(new_token())
            self._send(_HELLO.format(self.token).encode())
            uid = self._await(_named("hi"), min(deadline, time.monotonic() + _HELLO_SECONDS))
            if uid is None:
                continue
            if uid.status != 0:
                raise ExecutorError(
                    f"the shell on the serial port of {self._name} is that of user {uid.status}",
                    hint="root's is needed: a getty with --autologin root",
                )
            self._send(_SERVER.format(self.token).encode())
            up = self._await(_named("up"), min(deadline, time.monotonic() + _LISTEN_SECONDS))
            if up is None:
                continue
            if up.status != 0:
                raise ExecutorError(f"{self._name} has no stty, without which its serial port cannot be used")
            return

    def quieten(self) -> None:
        """Has kernel and init print nothing here but emergencies."""
        self.ask(_QUIETEN.encode())

    def ask(self, program: bytes, data: bytes = b"", *, seconds: float = SHORT) -> Answer:
        """Runs a shell program and waits for its end. In it `f $i 0 data >&4; h LENGTH <&5` reads `data`."""
        name = next(self._ids)
        owed = max(len(program), len(data)) + 1
        self._owed = max(self._owed, owed)
        self._call(name, len(program))
        self._owed = owed
        self._send(program)
        deadline = time.monotonic() + seconds
        while True:
            frame = self._await(_named(name), deadline)
            if frame is None:
                raise GuestLost(f"the serial port of {self._name} gives no answer within {seconds:g} s")
            if frame.payload != b"data":
                return Answer(frame.status, frame.payload)
            self._send(data)

    def listen(self, seconds: float) -> bool:
        """Hands on what comes; returns after the first piece, or False after so many seconds without one."""
        readable, _, _ = select.select([self._port], [], [], max(0.0, seconds))
        if not readable:
            return False
        self._dispatch(self._receive())
        return True

    def resync(self) -> bool:
        """Whether the server answers after whatever it may still wait for was given to it, as empty lines. Where
        there is none any more, a shell for people may be: it is greeted, too, which a server does not hear."""
        self._send(b"\n" * self._owed)
        name = next(self._ids)
        deadline = time.monotonic() + SHORT
        while time.monotonic() < deadline:
            self._send(f"\n{name} 0\n{_HELLO.format(self.token)}".encode())
            frame = self._await(_named(name, b"", "hi"), min(deadline, time.monotonic() + _SOON))
            if frame is not None:
                return frame.id == name
        return False

    def leave(self) -> None:
        """Gives the shell back to people."""
        self._send(b"\n.\n")

    def _call(self, name: str, length: int) -> None:
        """Returns when the server waits for a program of so many bytes."""
        for patience in (_SOON, _LISTEN_SECONDS):
            self._send(f"\n{name} {length}\n".encode())
            if self._await(_named(name, b"go"), time.monotonic() + patience) is not None:
                return
            if not self.resync():
                break
        raise GuestLost(f"the shell on the serial port of {self._name} no longer answers")

    def _await(self, wanted: Callable[[Frame], bool], deadline: float) -> Frame | None:
        """The next frame that is `wanted`; None at the deadline."""
        found: list[Frame] = []
        others = self.on_frame

        def look(frame: Frame) -> None:
            if wanted(frame):
                found.append(frame)
            else:
                others(frame)

        self.on_frame = look
        try:
            while not found:
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self.listen(left)
        finally:
            self.on_frame = others
        return found[0]

    def _find_prompt(self, deadline: float) -> None:
        """Returns when the port shows a prompt. Nothing but Enter is typed, and that only when the guest is quiet: a
        boot loader's menu, or a system that starts, is not to be disturbed."""
        shown, before, silent = "", None, 0
        while True:
            said = self._hear(_QUIET if before is None else _ENTER_AGAIN)
            shown = (shown + clean(said))[-_SHOWN:]
            line = shown.rpartition("\n")[2]
            if said and before is not None and _is_prompt(line, before):
                return
            if time.monotonic() >= deadline:
                raise ExecutorError(
                    f"there is no root shell on the serial port of {self._name}{_ending(shown)}",
                    hint="a getty with --autologin root gives one, or init=/bin/sh",
                )
            silent = 0 if said else silent + 1
            # A server that an imgtool left behind is as silent as a system that hangs; a dot ends it.
            self._send(b".\n" if silent > _SILENT_ENTERS else b"\n")
            before = line

    def _hear(self, seconds: float) -> bytes:
        """What comes within so many seconds, until nothing comes any more or much has."""
        said = b""
        while len(said) < _PIECE and select.select([self._port], [], [], _QUIET if said else seconds)[0]:
            said += self._receive()
        return said

    def _dispatch(self, data: bytes) -> None:
        for event in self._frames.feed(data):
            if isinstance(event, bytes):
                self.on_output(event)
            else:
                self.on_frame(event)

    def _receive(self) -> bytes:
        try:
            data = self._port.recv(_PIECE)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        if not data:
            raise has_ended(self._name)
        return data

    def _send(self, data: bytes) -> None:
        """Writes, and hears meanwhile: two ends that only write wait for each other."""
        while data:
            readable, writable, _ = select.select([self._port], [self._port], [], SHORT)
            if not readable and not writable:
                raise GuestLost(f"the serial port of {self._name} no longer accepts input")
            if readable:
                self._dispatch(self._receive())
            if writable:
                try:
                    data = data[self._port.send(data[:4096]) :]
                except BlockingIOError:
                    continue
                except OSError:
                    raise has_ended(self._name) from None


def _named(name: str, payload: bytes | None = None, *others: str) -> Callable[[Frame], bool]:
    """Whether a frame has this id (and payload), or one of these other ids."""
    return lambda frame: frame.id in others or (frame.id == name and payload in (None, frame.payload))


def _is_prompt(line: str, before: str) -> bool:
    """Whether a last line that came after Enter, where `before` was the last, is one at which a shell waits."""
    if not line.strip() or _LOGIN.search(line):
        return False
    return _PROMPT.search(line) is not None or line == before


def _ending(shown: str) -> str:
    lines = [line.rstrip() for line in shown.split("\n") if line.strip()][-4:]
    return "; it shows:" + "".join(f"\n  {line}" for line in lines) if lines else "; it shows nothing"
