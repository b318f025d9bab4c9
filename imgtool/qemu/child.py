"""Programs that imgtool starts: each waits behind a gate until it is bound to imgtool, or written down somewhere.

os.posix_spawn starts them, and not subprocess, whose import takes as long as qemu-img takes to answer. What that
module can do beyond this, and could do between fork and exec only, the shell at the gate does: with a function there
Python would copy its address space instead of lending it until the program has begun (vfork).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from imgtool.qemu.search import places, which

Group = Literal["own", "session", "same"]
"""A program's process group: its own, its own in a session of its own, or imgtool's, which a terminal may know."""

_FIRST_FREE = 3
"""The descriptors below are the standard streams."""

_FORGOTTEN = 255
"""The exit status of a program of which the kernel does not say how it ended, since this process ignores SIGCHLD. It
means success nowhere, nor any other answer."""

_LONGEST_PAUSE = 0.05


class Pipe:
    """A pipe of which no end is a standard stream, should one be closed. The higher end is the writing one."""

    def __init__(self) -> None:
        ends = os.pipe()
        if min(ends) < _FIRST_FREE:
            low = ends
            ends = (duplicate(low[0]), duplicate(low[1]))
            for end in low:
                os.close(end)
        self.reading, self.writing = ends
        self._open = set(ends)

    def close(self, *ends: int) -> None:
        """Closes these ends, or both; again does nothing."""
        for end in ends or (self.reading, self.writing):
            if end in self._open:
                self._open.remove(end)
                os.close(end)


def duplicate(fd: int) -> int:
    """Another descriptor of the same that is no standard stream."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE)


class Child:
    """A program that was started, and begins with `begin`. It has to be waited for, and then closed."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: int | None,
        stdout: int,
        stderr: int,
        pass_fds: Sequence[int] = (),
        group: Group = "own",
        setup: Sequence[str] = (),
    ) -> None:
        """Starts `argv` with these descriptors (stdin None: nothing to read) and, under their own numbers,
        `pass_fds`. The commands of `setup` are the shell's, before it becomes the program. OSError where the program
        is not there or cannot be started."""
        _check_startable(argv[0])
        self.returncode: int | None = None
        """The exit status, -N when signal N ended it, None while it runs."""
        self._group = group
        self._reaping = threading.Lock()
        self._gate, self._tie = Pipe(), Pipe()
        self._tied = False
        self._closed = False
        words = [*setup, f"read -r imgtool_gate </dev/fd/{self._gate.reading}", 'exec "$0" "$@"']
        nothing = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
        kept = (*pass_fds, self._gate.reading, self._tie.reading)
        place: dict[str, Any] = {}
        if group != "same":
            place = {"setsid": True} if group == "session" else {"setpgroup": 0}
        try:
            self.pid = os.posix_spawn(
                "/bin/sh",
                ("/bin/sh", "-c", " && ".join(words), *argv),
                env,
                file_actions=[
                    nothing if stdin is None else (os.POSIX_SPAWN_DUP2, stdin, 0),
                    (os.POSIX_SPAWN_DUP2, stdout, 1),
                    (os.POSIX_SPAWN_DUP2, stderr, 2),
                    # a descriptor that becomes itself stays open in the program
                    *((os.POSIX_SPAWN_DUP2, fd, fd) for fd in kept),
                    *((os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable() if fd not in kept),
                ],
                setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),  # which Python ignores
                **place,
            )
        except BaseException:
            self._gate.close()
            self._tie.close()
            raise

    def begin(self, *, dies_by: signal.Signals | None = None) -> None:
        """Opens the gate. On Linux the program gets the signal `dies_by` when imgtool dies, however that happens.

        Were imgtool dead before this, the gate's pipe would end, and the program never begin. Afterwards the kernel
        watches: the program has inherited the reading end of a pipe of which only imgtool holds the other, and whose
        owner for SIGIO, with `dies_by` in its place, is its process group (in imgtool's: it alone). Sources: fcntl(2)
        on F_SETOWN and F_SETSIG.

        Some programs (ssh, passt) close what they inherit. The kernel then finds them only as long as imgtool has the
        reading end open itself, and since it takes the descriptors of the dead from the highest down: the writing end
        is the higher one. (The pid that QEMU's log then gives for the sender of the signal is none.)
        """
        if dies_by is not None and sys.platform.startswith("linux"):
            end = self._tie.reading
            fcntl.fcntl(end, fcntl.F_SETOWN, self.pid if self._group == "same" else -self.pid)
            fcntl.fcntl(end, fcntl.F_SETSIG, int(dies_by))
            fcntl.fcntl(end, fcntl.F_SETFL, os.O_ASYNC)
            self._tied = True
        os.write(self._gate.writing, b"\n")

    def poll(self) -> int | None:
        """The exit status, if it has ended."""
        if self.returncode is None and self._reaping.acquire(blocking=False):
            try:
                self._reap(os.WNOHANG)
            finally:
                self._reaping.release()
        return self.returncode

    def wait(self, seconds: float | None = None) -> bool:
        """Whether it has ended, after at most so many seconds; without a number, when it has."""
        if seconds is None:
            with self._reaping:
                self._reap(0)
            return True
        deadline = time.monotonic() + seconds
        pause = 0.0005
        while self.poll() is None:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE)
        return True

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the program alone, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def send_group(self, number: signal.Signals) -> None:
        """Sends a signal to its process group: it may be a script that runs the real one."""
        assert self._group != "same"
        if self.poll() is not None:
            return
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):  # the latter on macOS, where only a zombie is left of it
            self.send(number)

    def close(self) -> None:
        """Lets go of it. If it runs on, it still gets its signal when imgtool dies, which takes two descriptors until
        `close` is called again after its end; what it left running gets none."""
        self._gate.close()
        if self._closed or (self._tied and self.returncode is None):
            return
        self._closed = True
        fcntl.fcntl(self._tie.reading, fcntl.F_SETFL, 0)
        self._tie.close()

    def _reap(self, options: int) -> None:
        if self.returncode is not None:
            return
        try:
            pid, status = os.waitpid(self.pid, options)
        except ChildProcessError:
            self.returncode = _FORGOTTEN
            return
        if pid == self.pid:
            self.returncode = os.waitstatus_to_exitcode(status)


def _inheritable() -> list[int]:
    """The descriptors that imgtool was given by who started it, and others that a program would get: theirs are locks
    and pipes whose other end waits for the last of them to be closed."""
    found = []
    with contextlib.suppress(OSError):
        for fd in map(int, os.listdir("/dev/fd")):
            with contextlib.suppress(OSError):  # that of the listing itself is closed by now
                if fd >= _FIRST_FREE and os.get_inheritable(fd):
                    found.append(fd)
    return found


def _check_startable(program: str) -> None:
    """OSError where the shell would not find the program or not be allowed to run it."""
    if which(program) is None:
        why = errno.EACCES if any(map(os.path.lexists, places(program))) else errno.ENOENT
        raise OSError(why, os.strerror(why))
