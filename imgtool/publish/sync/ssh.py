"""ssh's command lines, and the one connection that all of them share.

Opening a connection takes as long as sending a small image. So one ssh waits as the ControlMaster of the others, as
long as imgtool needs it, on a socket in imgtool's own folder.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from imgtool.errors import MachineError
from imgtool.machine.runtime import runtime_root
from imgtool.qemu.process import Completed, Runner
from imgtool.qemu.system import Process, start

FAILED = 255
"""What ssh itself ends with."""
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._+-]{1,84}")
"""What needs no quoting in ssh's configuration, and is short enough for a socket whose name gets a suffix of 17."""
_POLL = 0.01
_PAUSE = 0.5


class Ssh(msgspec.Struct, frozen=True, kw_only=True):
    """How ssh reaches the other host, where its configuration does not say. Nothing is asked: keys come from files or
    an agent."""

    port: int | None = None
    """`-p` of ssh."""
    identity: str | None = None
    """`-i` of ssh: the file of a private key."""
    config: str | None = None
    """`-F` of ssh: a configuration in place of the user's."""
    options: tuple[str, ...] = ()
    """`-o` of ssh."""

    def argv(self, host: str, *command: str, before: tuple[str, ...] = ()) -> list[str]:
        """ssh's command line for `command`, a shell's words, on `host`, with the options `before` all others."""
        words = ["ssh", *before, "-o", "BatchMode=yes", "-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=15"]
        if self.config is not None:
            words += ["-F", self.config]
        if self.port is not None:
            words += ["-p", str(self.port)]
        if self.identity is not None:
            words += ["-i", self.identity]
        for option in self.options:
            words += ["-o", option]
        return [*words, "--", host, *command]


class Line:
    """The way to a host: a connection for each command or, within `shared`, one for all."""

    def __init__(self, ssh: Ssh, host: str, runner: Runner) -> None:
        self._ssh = ssh
        self._host = host
        self._runner = runner
        self._socket: str | None = None
        self._master: Process | None = None

    def argv(self, command: str) -> list[str]:
        """ssh's command line for `command`."""
        if self._socket is None:
            return self._ssh.argv(self._host, command)
        return self._ssh.argv(self._host, command, before=("-S", self._socket, "-o", "ControlMaster=no"))

    def plain(self, done: Completed) -> Completed:
        """`done`, which failed, for people: a script says nothing to them, and ssh without one shows whether the host
        lets them in. Where the shared connection ended, it said why."""
        words = done.stderr
        if done.status == FAILED:
            if self._master is not None and self._master.wait(_PAUSE) is not None:
                words = self._master.stderr() or words
            words = words or b"the connection broke off"  # ssh keeps that to itself where its LogLevel is ERROR
        argv = tuple(self._ssh.argv(self._host))
        return msgspec.structs.replace(done, argv=argv, stderr=words.replace(b"\r\n", b"\n"))

    @contextmanager
    def shared(self) -> Iterator[Completed | None]:
        """Inside the `with` block, commands share one connection: the user's own, if there is one (`ControlMaster` in
        ssh's configuration), or one that ends with the block. Yields how ssh ended when it could not connect, else
        None."""
        socket = None if self._is_shared_already() else _free_socket()
        if socket is None:
            yield None
            return
        before = ("-S", socket, "-M", "-N", "-o", "ControlPersist=no", "-o", "ClearAllForwardings=yes")
        self._master = start(self._ssh.argv(self._host, before=before), detached=False)
        try:
            while not os.path.exists(socket):
                if (status := self._master.wait(_POLL)) is not None:
                    yield Completed((), status, b"", self._master.stderr())
                    return
            self._socket = socket
            yield None
        finally:
            self._socket = None
            self._master.end()
            self._master.close()
            self._master = None
            with contextlib.suppress(FileNotFoundError):
                os.unlink(socket)

    def _is_shared_already(self) -> bool:
        return self._runner(self._ssh.argv(self._host, before=("-O", "check"))).status == 0


def _free_socket() -> str | None:
    """None where imgtool's folder is not for sockets of ssh."""
    try:
        folder = os.path.join(os.path.dirname(runtime_root()), "ssh")
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except (MachineError, OSError):
        return None
    path = os.path.join(folder, secrets.token_hex(4))
    return path if _PLAIN_PATH.fullmatch(path) else None
