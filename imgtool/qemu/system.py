"""A QEMU system emulator (or a helper beside it, such as swtpm) as a process that runs on: starting it, waiting for
it, and ending it are three things here, and asking the guest to power off is a fourth, which is QMP's.

What the program says on stderr goes to a file, never to a pipe: a pipe that nobody reads stops the program, and a
detached one outlives whoever would read it.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence
from typing import IO

from imgtool.errors import CommandError, ProgramError
from imgtool.image.userdirs import temporary_dir
from imgtool.qemu.child import Child, duplicate
from imgtool.qemu.process import Completed, failure

_STDERR_KEPT = 1 << 20
_STDIN, _STDOUT = 0, 1


class Process:
    """A started program. It is ours to reap as long as imgtool lives."""

    def __init__(self, argv: Sequence[str], child: Child, stderr: IO[bytes]) -> None:
        self.argv = tuple(argv)
        self._child = child
        self._stderr = stderr

    @property
    def pid(self) -> int:
        return self._child.pid

    def poll(self) -> int | None:
        """The exit status (-N when signal N ended it), None while it runs."""
        return self._child.poll()

    def wait(self, seconds: float | None = None) -> int | None:
        """Like `poll`, after at most `seconds`."""
        self._child.wait(seconds)
        return self._child.returncode

    def terminate(self) -> None:
        """SIGTERM: QEMU closes its images and ends, without a word to the guest."""
        self._child.send(signal.SIGTERM)

    def kill(self) -> None:
        self._child.send(signal.SIGKILL)

    def end(self, grace: float = 5.0) -> int:
        """Sees to it that the program has ended: SIGTERM, `grace` seconds, SIGKILL. Returns its exit status."""
        if self.poll() is None:
            self.terminate()
            if self.wait(grace) is None:
                self.kill()
        status = self.wait()
        assert status is not None
        return status

    def stderr(self) -> bytes:
        """What it said on stderr so far, the first MiB of it."""
        return os.pread(self._stderr.fileno(), _STDERR_KEPT, 0)

    def failure(self, *, path: str | None = None, hint: str | None = None) -> CommandError:
        """The error that says how it ended, in its own words."""
        status = self.poll()
        return failure(
            Completed(self.argv, 0 if status is None else status, b"", self.stderr()), path=path, hint=hint
        )

    def close(self) -> None:
        """Lets go of the stderr file. The program, if it still runs, is left alone."""
        self._stderr.close()
        self._child.close()


def start(
    argv: Sequence[str],
    *,
    detached: bool,
    tied: bool = False,
    stderr: str | None = None,
    terminal: bool = False,
    pass_fds: Sequence[int] = (),
    record: str | None = None,
) -> Process:
    """Starts `argv`. ProgramError when that is impossible; how it fares afterwards is for the caller to watch.

    `detached` puts it into a session of its own, to outlive imgtool; otherwise, and where it is `tied` too, it gets
    SIGTERM (on Linux) when imgtool dies, however that happens. `terminal` hands it imgtool's stdin and stdout, and
    with them its place in the terminal's foreground; otherwise it has neither. `stderr` names the file its stderr is
    written to; without one it is a nameless temporary file. `record` names a file into which /proc/PID/stat of the
    process is written (its bare pid where there is no /proc) before the program begins: it runs unrecorded at no
    moment.
    """
    log: IO[bytes] = _nameless_file() if stderr is None else _log_file(stderr)
    try:
        child = Child(
            argv,
            env=dict(os.environ, LC_ALL="C.UTF-8"),
            stdin=_STDIN if terminal else None,
            stdout=_STDOUT if terminal else log.fileno(),
            stderr=log.fileno(),
            pass_fds=pass_fds,
            group="session" if detached else "same" if terminal else "own",
        )
    except OSError as error:
        log.close()
        raise ProgramError(
            f"cannot start {argv[0]}: {error.strerror}", hint="`imgtool doctor` shows what is found"
        ) from error
    process = Process(argv, child, log)
    try:
        if record is not None:
            _write_identity(child.pid, record)
        # SIGTERM rather than SIGKILL: QEMU then writes what its qcow2 caches hold and restores the terminal.
        child.begin(dies_by=signal.SIGTERM if tied or not detached else None)
    except BaseException:
        process.end()
        process.close()
        raise
    return process


def _nameless_file() -> IO[bytes]:
    with contextlib.suppress(AttributeError, OSError):  # Linux has O_TMPFILE, and most file systems
        return _opened(os.open(temporary_dir(), os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600))
    import tempfile

    return tempfile.TemporaryFile()


def _log_file(path: str) -> IO[bytes]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    return _opened(fd)


def _opened(fd: int) -> IO[bytes]:
    """A file with a descriptor that is no standard stream, should one of these be closed."""
    high = duplicate(fd)
    os.close(fd)
    return os.fdopen(high, "r+b", buffering=0)


def _write_identity(pid: int, place: str) -> None:
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
        identity = os.read(fd, 4096)
        os.close(fd)
    except OSError:
        identity = str(pid).encode()
    fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(fd, identity)
    os.close(fd)
