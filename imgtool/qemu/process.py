"""Starting a program and seeing it through: the only place in imgtool that does so.

What runs programs is passed around as a `Runner`, so that a test can put a fake at the edge of the process and
nothing inside needs patching.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from imgtool.errors import CommandCrashed, CommandError, CommandTimeout, ProgramError
from imgtool.image.names import printable, printable_lines
from imgtool.qemu.child import Child, Pipe
from imgtool.sizes import Size, bytes_of

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

_CHUNK = 65536
_STDERR_KEPT = 1 << 20
_GRACE = 2.0
"""Seconds a program has between SIGTERM and SIGKILL."""
_LONGEST_POLL = 3600.0
"""Seconds that are waited at once; the system's limit is 24 days."""

_MESSAGES = {signal.SIGSEGV: "crashed (SIGSEGV)", signal.SIGABRT: "gave up (SIGABRT)"}


class Limits(Struct, frozen=True):
    """Bounds on one run, for input that imgtool did not make. None means no bound."""

    seconds: float | None = None
    """Wall clock; past it the program is ended and CommandTimeout raised."""
    cpu_seconds: int | None = None
    address_space: Size | None = None


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
    child: Child | None = None
    out, err = Pipe(), Pipe()
    try:
        with _signals_held(held):
            child = _start(argv, limits, pass_fds, cwd, (stdin, out.writing, err.writing))
        out.close(out.writing)
        err.close(err.writing)
        if _mine.crew is not None:
            _mine.crew.add(child)
        for number in held:
            signal.raise_signal(number)
        if meanwhile is not None:
            meanwhile()
        takers: dict[int, Callable[[bytes], object]] = {
            out.reading: on_stdout or stdout.extend,
            err.reading: partial(_take_some, stderr),
        }
        in_time = _collect(child, limits.seconds, takers)
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
        if child is not None:
            child.close()
        out.close()
        err.close()
    assert child.returncode is not None
    return Completed(tuple(argv), child.returncode, bytes(stdout), bytes(stderr))


class _Crew:
    """The programs that the threads of one pool run."""

    def __init__(self) -> None:
        self._programs: set[Child] = set()
        self._ended = False

    def join(self) -> None:
        """The current thread is one of them."""
        _mine.crew = self

    def add(self, child: Child) -> None:
        self._programs.add(child)
        if self._ended:
            child.send_group(signal.SIGKILL)

    def discard(self, child: Child) -> None:
        self._programs.discard(child)

    def end(self) -> None:
        self._ended = True
        for child in self._programs.copy():
            child.send_group(signal.SIGKILL)


class _Mine(threading.local):
    crew: _Crew | None = None


_mine = _Mine()


@contextlib.contextmanager
def workers(count: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads that run programs. What is raised within ends these programs, too: Ctrl-C reaches the thread
    alone that waits for the others. For programs that may be killed: they only read, or write what is thrown away."""
    from concurrent.futures import ThreadPoolExecutor

    from imgtool.image import policy_source

    crew = _Crew()
    policy = policy_source.source()

    def join() -> None:
        crew.join()
        policy_source.adopt(policy)

    with ThreadPoolExecutor(count, initializer=join) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            crew.end()
            raise


def failure(
    done: Completed, *, path: str | None = None, hint: str | None = None, whose: str | None = None
) -> CommandError:
    """The error that says how `done` failed; the message is the program's own last words, made printable, after
    `whose` they are or the program's name."""
    program = os.path.basename(done.argv[0])
    words = printable_lines(done.stderr.decode(errors="surrogateescape")).strip()
    for prefix in (f"{program}: ", f"{done.argv[0]}: "):
        words = words.removeprefix(prefix)
    name = program if whose is None else printable(whose)
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
        hint=hint or _hint_in(done.stderr),
    )


_MAKE_ROOM = "make room on that file system, and run the command again"
_HINTS = {
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: _MAKE_ROOM,
    errno.EFBIG: "the format, the file system (FAT: below 4 GiB) or `ulimit -f` allows no file as large",
}


def hint_of(number: int | None) -> str | None:
    """What helps against this error of the file system, if it is known."""
    return None if number is None else _HINTS.get(number)


def _hint_in(words: bytes) -> str | None:
    """As `hint_of`, for what a program says of it under LC_ALL=C, which all of them get."""
    said = words.replace(b"The image size is too large", os.strerror(errno.EFBIG).encode())  # qemu-img's own words
    return next((hint for number, hint in _HINTS.items() if os.strerror(number).encode() in said), None)


@contextlib.contextmanager
def _signals_held(held: list[int]) -> Iterator[None]:
    """Inside the `with` block, signals that have a handler are noted in `held` instead: an exception that a handler
    raises would lose the program that has just been started."""

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
    argv: Sequence[str],
    limits: Limits,
    pass_fds: Sequence[int],
    cwd: str | None,
    streams: tuple[int | None, int, int],
) -> Child:
    env = dict(os.environ, LC_ALL="C")
    if limits.address_space is not None:
        env["MALLOC_ARENA_MAX"] = "1"  # glibc's 64 MiB of address space a thread would eat the allowance
    stdin, stdout, stderr = streams
    try:
        child = Child(
            argv, env=env, stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=pass_fds, setup=_setup(limits, cwd)
        )
    except OSError as error:
        if isinstance(error, FileNotFoundError) and "/" not in argv[0]:
            from imgtool.qemu.programs import not_found

            raise not_found(argv[0]) from None
        raise ProgramError(
            f"cannot start {argv[0]}: {error.strerror}", hint="`imgtool --version` shows what is found"
        ) from error
    child.begin(dies_by=signal.SIGKILL)
    return child


def _setup(limits: Limits, cwd: str | None) -> list[str]:
    """What the shell does before it becomes the program. OSError where it cannot get into `cwd`."""
    words = []
    if cwd is not None:
        import shlex

        os.stat(os.path.join(cwd, "."))
        words.append(f"cd -P -- {shlex.quote(cwd)}")
    if limits.address_space is not None:
        words.append(f"ulimit -v {bytes_of(limits.address_space) // 1024}")
    if limits.cpu_seconds is not None:
        words.append(f"ulimit -t {limits.cpu_seconds}")
    return words


def _take_some(kept: bytearray, piece: bytes) -> None:
    kept.extend(piece[: _STDERR_KEPT - len(kept)])


def _collect(child: Child, seconds: float | None, takers: dict[int, Callable[[bytes], object]]) -> bool:
    """Reads pipes to their ends, each piece for its taker, and reaps the child; False when time ran out first."""
    deadline = None if seconds is None else time.monotonic() + seconds

    def left() -> float | None:
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    poll = select.poll()
    for pipe in takers:
        poll.register(pipe, select.POLLIN)
    while takers:
        patience = left()
        ready = poll.poll(None if patience is None else math.ceil(1000 * min(patience, _LONGEST_POLL)))
        if left() == 0.0:  # whether or not there is output: a program may write for ever
            return False
        for pipe, _ in ready:
            piece = os.read(pipe, _CHUNK)
            if piece:
                takers[pipe](piece)
            else:
                poll.unregister(pipe)
                del takers[pipe]
    return child.wait(left())


def _end(child: Child) -> None:
    """Ends the program with all its process group: it may be a script that runs the real one."""
    if child.poll() is not None:
        return
    child.send_group(signal.SIGTERM)
    if not child.wait(_GRACE):
        child.send_group(signal.SIGKILL)
        child.wait()
