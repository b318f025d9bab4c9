"""Starting a program and seeing it through: the only place in imgtool that does so.

What runs programs is passed around as a `Runner`, so that a test can put a fake at the edge of the process and
nothing inside needs patching.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from imgtool.errors import CommandCrashed, CommandError, CommandTimeout, ProgramError
from imgtool.image.names import printable_lines

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

_CHUNK = 65536
_STDERR_KEPT = 1 << 20
_GRACE = 2.0
"""Seconds a program has between SIGTERM and SIGKILL."""

_MESSAGES = {signal.SIGSEGV: "crashed (SIGSEGV)", signal.SIGABRT: "gave up (SIGABRT)"}


class Limits(Struct, frozen=True):
    """Bounds on one run, for input that imgtool did not make. None is no bound."""

    seconds: float | None = None
    """Wall clock; past it the program is ended and CommandTimeout raised."""
    cpu_seconds: int | None = None
    address_space: int | None = None
    """Bytes."""


NO_LIMITS = Limits()


class Completed(Struct, frozen=True):
    """A program that ended: `status` is its exit status, or -N when signal N ended it."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: bytes


class Runner(Protocol):
    """Runs an argv to its end. Raises ProgramError when it cannot be started, CommandTimeout past the limit; any
    exit status is returned. A KeyboardInterrupt (or anything else raised meanwhile) ends the program first."""

    def __call__(
        self,
        argv: Sequence[str],
        *,
        limits: Limits = NO_LIMITS,
        on_stdout: Callable[[bytes], None] | None = None,
        pass_fds: Sequence[int] = (),
        cwd: str | None = None,
        meanwhile: Callable[[], object] | None = None,
    ) -> Completed: ...


def run(
    argv: Sequence[str],
    *,
    limits: Limits = NO_LIMITS,
    on_stdout: Callable[[bytes], None] | None = None,
    pass_fds: Sequence[int] = (),
    cwd: str | None = None,
    stdin: int | None = None,
    meanwhile: Callable[[], object] | None = None,
) -> Completed:
    """The real Runner. `on_stdout` sees each piece of stdout as it comes, which is then not kept in the result. `cwd`
    is the program's current directory, None for imgtool's own. `meanwhile` is called once, while the program runs.

    The program gets no stdin but the descriptor `stdin`, a process group of its own (Ctrl-C on the terminal reaches
    imgtool alone, which ends the program and cleans up), and on Linux is killed with imgtool, however that dies.
    """
    stdout, stderr = bytearray(), bytearray()
    held: list[int] = []
    child: subprocess.Popen[bytes] | None = None
    tie = _Tie()
    try:
        with _signals_held(held):
            child = _start(argv, limits, pass_fds, cwd, stdin, tie)
        if _mine.crew is not None:
            _mine.crew.add(child)
        for number in held:
            signal.raise_signal(number)
        if meanwhile is not None:
            meanwhile()
        in_time = _collect(child, limits.seconds, on_stdout or stdout.extend, stderr)
        if not in_time:
            _end(child)
            raise CommandTimeout(
                f"{os.path.basename(argv[0])} was stopped after {limits.seconds:g} s",
                argv=argv,
                status=None,
                stdout=bytes(stdout),
                stderr=bytes(stderr),
                hint="a longer --timeout may help, if the image is one you trust",
            )
    except BaseException:
        if child is not None:
            _end(child)
        raise
    finally:
        if _mine.crew is not None and child is not None:
            _mine.crew.discard(child)
        for pipe in (child.stdout, child.stderr) if child is not None else ():
            if pipe is not None:
                pipe.close()
        tie.close()
    return Completed(tuple(argv), child.returncode, bytes(stdout), bytes(stderr))


class _Crew:
    """The programs that the threads of one pool run."""

    def __init__(self) -> None:
        self._programs: set[subprocess.Popen[bytes]] = set()
        self._ended = False

    def join(self) -> None:
        """The current thread is one of them."""
        _mine.crew = self

    def add(self, child: subprocess.Popen[bytes]) -> None:
        self._programs.add(child)
        if self._ended:
            _signal(child, signal.SIGKILL)

    def discard(self, child: subprocess.Popen[bytes]) -> None:
        self._programs.discard(child)

    def end(self) -> None:
        self._ended = True
        for child in self._programs.copy():
            _signal(child, signal.SIGKILL)


class _Mine(threading.local):
    crew: _Crew | None = None


_mine = _Mine()


@contextlib.contextmanager
def workers(count: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads that run programs. What is raised within ends these programs, too: Ctrl-C reaches the thread
    alone that waits for the others. For programs that may be killed: they only read, or write what is thrown away."""
    from concurrent.futures import ThreadPoolExecutor

    crew = _Crew()
    with ThreadPoolExecutor(count, initializer=crew.join) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            crew.end()
            raise


def failure(done: Completed, *, path: str | None = None, hint: str | None = None) -> CommandError:
    """The error that says how `done` failed; the message is the program's own last words, made printable."""
    name = os.path.basename(done.argv[0])
    words = printable_lines(done.stderr.decode(errors="surrogateescape")).strip()
    for prefix in (f"{name}: ", f"{done.argv[0]}: "):
        words = words.removeprefix(prefix)
    kind: type[CommandError] = CommandError
    if done.status < 0:
        kind = CommandCrashed
        number = -done.status
        how = _MESSAGES.get(number, f"was ended by signal {number}")  # type: ignore[call-overload]
        message = f"{name} {how}" + (f": {words}" if words else "")
    else:
        message = f"{name}: {words}" if words else f"{name} failed with exit status {done.status}"
    return kind(
        message,
        argv=done.argv,
        status=done.status,
        stdout=done.stdout,
        stderr=done.stderr,
        path=path,
        hint=hint,
    )


@contextlib.contextmanager
def _signals_held(held: list[int]) -> Iterator[None]:
    """Within, signals that have a handler are noted in `held` instead: an exception that a handler raises in Popen
    would lose the program that Popen has just started."""

    def note(number: int, _: FrameType | None) -> None:
        held.append(number)

    handlers = {}
    try:
        with contextlib.suppress(ValueError):  # in a thread other than the main one no handler runs either
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                handler = signal.getsignal(number)
                if callable(handler):
                    signal.signal(number, note)
                    handlers[number] = handler
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _start(
    argv: Sequence[str], limits: Limits, pass_fds: Sequence[int], cwd: str | None, stdin: int | None, tie: _Tie
) -> subprocess.Popen[bytes]:
    """Behind a gate of the shell's, and without a preexec_fn: with one Python copies its address space for each
    program instead of lending it until that has begun (vfork), which takes three times as long."""
    env = dict(os.environ, LC_ALL="C")
    if limits.address_space is not None:
        env["MALLOC_ARENA_MAX"] = "1"  # glibc's 64 MiB of address space a thread would eat the allowance
    try:
        _check_startable(argv[0])
        child = subprocess.Popen(
            ["/bin/sh", "-c", _gate(limits, tie.gate), *map(os.fsencode, argv)],
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            cwd=cwd,
            pass_fds=(*pass_fds, tie.gate, tie.end),
            process_group=0,
        )
    except OSError as error:
        raise ProgramError(
            f"cannot start {argv[0]}: {error.strerror}", hint="`imgtool --version` shows what is found"
        ) from error
    tie.bind(child.pid)
    return child


def _gate(limits: Limits, gate: int) -> str:
    """What the shell does before it becomes the program: it sets the limits, and waits for a line from imgtool. Were
    imgtool dead before the program is tied to it, the pipe would end instead, and the program never begin."""
    words = [f"read -r go </dev/fd/{gate}", 'exec "$0" "$@"']
    if limits.cpu_seconds is not None:
        words.insert(0, f"ulimit -t {limits.cpu_seconds}")
    if limits.address_space is not None:
        words.insert(0, f"ulimit -v {limits.address_space // 1024}")
    return " && ".join(words)


def _check_startable(program: str) -> None:
    """OSError where the shell would not find the program or not be allowed to run it."""
    places = [program] if os.sep in program else [os.path.join(place, program) for place in os.get_exec_path()]
    if not any(os.access(place, os.X_OK) and not os.path.isdir(place) for place in places):
        found = any(map(os.path.lexists, places))
        why = errno.EACCES if found else errno.ENOENT
        raise OSError(why, os.strerror(why))


class _Tie:
    """Has the kernel kill a program when imgtool dies, however that happens: it inherits the reading end of a pipe of
    which only we hold the other, and whose owner for SIGIO, with SIGKILL in its place, is its process group. Sources:
    fcntl(2) on F_SETOWN and F_SETSIG. On Linux only; elsewhere there is nothing but the gate."""

    def __init__(self) -> None:
        self.gate, self._opener = os.pipe()
        self.end, self._ours = os.pipe()

    def bind(self, group: int) -> None:
        if sys.platform.startswith("linux"):
            fcntl.fcntl(self.end, fcntl.F_SETOWN, -group)
            fcntl.fcntl(self.end, fcntl.F_SETSIG, int(signal.SIGKILL))
            fcntl.fcntl(self.end, fcntl.F_SETFL, os.O_ASYNC)
        os.write(self._opener, b"\n")

    def close(self) -> None:
        """The program has ended; what it left running stays."""
        fcntl.fcntl(self.end, fcntl.F_SETFL, 0)
        for end in (self.gate, self._opener, self.end, self._ours):
            os.close(end)


def _collect(
    child: subprocess.Popen[bytes],
    seconds: float | None,
    take_stdout: Callable[[bytes], object],
    stderr: bytearray,
) -> bool:
    """Reads both pipes to their ends and reaps the child; False when time ran out first."""
    deadline = None if seconds is None else time.monotonic() + seconds

    def left() -> float | None:
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    def take_stderr(piece: bytes) -> None:
        stderr.extend(piece[: _STDERR_KEPT - len(stderr)])

    assert child.stdout is not None
    assert child.stderr is not None
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ, take_stdout)
        selector.register(child.stderr, selectors.EVENT_READ, take_stderr)
        while selector.get_map():
            ready = selector.select(left())
            if left() == 0.0:  # whether or not there is output: a program may write for ever
                return False
            for key, _ in ready:
                piece = os.read(key.fd, _CHUNK)
                if piece:
                    key.data(piece)
                else:
                    selector.unregister(key.fileobj)
    try:
        child.wait(left())
    except subprocess.TimeoutExpired:
        return False
    return True


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ends the program with all its process group: it may be a script that runs the real one."""
    if child.poll() is not None:
        return
    _signal(child, signal.SIGTERM)
    try:
        child.wait(_GRACE)
    except subprocess.TimeoutExpired:
        _signal(child, signal.SIGKILL)
        child.wait()


def _signal(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(child.pid, number)
    except (ProcessLookupError, PermissionError):  # no group of its own yet, or on macOS a zombie
        child.send_signal(number)
