"""A QEMU system emulator (or a helper beside it, such as swtpm) as a process that runs on: starting it, waiting for
it, and ending it are three things here, and asking the guest to power off is a fourth, which is QMP's.

What the program says on stderr goes to a file, never to a pipe: a pipe that nobody reads stops the program, and a
detached one outlives whoever would read it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import IO

from imgtool.errors import CommandError, ProgramError
from imgtool.qemu.process import Completed, failure

_STDERR_KEPT = 1 << 20


class Process:
    """A started program. It is ours to reap as long as imgtool lives."""

    def __init__(self, argv: Sequence[str], child: subprocess.Popen[bytes], stderr: IO[bytes]) -> None:
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
        try:
            return self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def terminate(self) -> None:
        """SIGTERM: QEMU closes its images and ends, without a word to the guest."""
        self._child.terminate()

    def kill(self) -> None:
        self._child.kill()

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
        if self._child.returncode is None:
            # Popen warns of a child nobody waited for. A detached program is meant to outlive us.
            self._child.returncode = 0


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
    written to; without one it is a nameless temporary file. `record` names a file into which the new process writes
    its own /proc/self/stat (its bare pid where there is no /proc) before it becomes the program: there is no moment
    at which it runs unrecorded.
    """
    log: IO[bytes] = _nameless_file() if stderr is None else _log_file(stderr)
    try:
        child = subprocess.Popen(
            [os.fsencode(word) for word in argv],
            stdin=None if terminal else subprocess.DEVNULL,
            stdout=None if terminal else log,
            stderr=log,
            env=dict(os.environ, LC_ALL="C.UTF-8"),
            pass_fds=pass_fds,
            start_new_session=detached,
            process_group=None if detached or terminal else 0,
            preexec_fn=_child_setup(  # noqa: PLW1509 - takes no locks
                dies_with_us=tied or not detached, record=record
            ),
        )
    except OSError as error:
        log.close()
        raise ProgramError(
            f"cannot start {argv[0]}: {error.strerror}", hint="`imgtool doctor` shows what is found"
        ) from error
    return Process(argv, child, log)


def _nameless_file() -> IO[bytes]:
    folder = os.environ.get("TMPDIR") or "/tmp"
    with contextlib.suppress(AttributeError, OSError):  # Linux has O_TMPFILE, and most file systems
        return os.fdopen(os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), "r+b", buffering=0)
    import tempfile

    return tempfile.TemporaryFile()


def _log_file(path: str) -> IO[bytes]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    return os.fdopen(fd, "r+b", buffering=0)


def _child_setup(*, dies_with_us: bool, record: str | None) -> Callable[[], None]:
    """What the child does between fork and exec; everything it needs is loaded here, before the fork."""
    prctl: Callable[[int, int], int] | None = None
    if dies_with_us and sys.platform.startswith("linux"):
        import ctypes

        prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def setup() -> None:
        if prctl is not None:
            # SIGTERM rather than SIGKILL: QEMU then writes what its qcow2 caches hold and restores the terminal.
            prctl(1, int(signal.SIGTERM))  # PR_SET_PDEATHSIG
        if record is not None:
            _write_identity(record)
        if os.getppid() != parent:
            os._exit(127)  # imgtool died before the lines above; after them, who looks for leftovers finds us

    return setup


def _write_identity(place: str) -> None:
    try:
        fd = os.open("/proc/self/stat", os.O_RDONLY)
        identity = os.read(fd, 4096)
        os.close(fd)
    except OSError:
        identity = str(os.getpid()).encode()
    fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(fd, identity)
    os.close(fd)
