"""Processes that may have been started by an earlier imgtool: known by pid and start time, since pids come again."""

from __future__ import annotations

import os
import select
import signal
import sys
import time

import msgspec

from imgtool.qemu.process import Limits, run

_LONGEST_POLL = 3600.0
"""Seconds that are waited at once; the system's limit is 24 days."""


class ProcessId(msgspec.Struct, frozen=True, rename="kebab"):
    """A process that no other can be taken for, until the host boots again."""

    pid: int
    started: int | None
    """Clock ticks since the host booted (field 22 of /proc/PID/stat); None where there is no /proc."""

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The process that has `pid` now; None when it is gone, a zombie included. OSError when that cannot be
        known, for want of a free descriptor: who takes a VM for ended clears its files away."""
        if not sys.platform.startswith("linux"):
            return cls(pid, None) if _exists(pid) else None
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                return parse_stat(file.read())
        except (FileNotFoundError, ProcessLookupError, PermissionError):  # the last is another user's
            return None

    @property
    def alive(self) -> bool:
        return ProcessId.of(self.pid) == self

    def send(self, number: signal.Signals) -> bool:
        """Sends it a signal; False when it is gone. Never hits another process that got its pid."""
        if not sys.platform.startswith("linux"):
            return _kill(self.pid, number)
        try:
            handle = os.pidfd_open(self.pid)
        except OSError:
            return False
        try:
            if not self.alive:
                return False
            signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(handle)
        return True

    def wait(self, seconds: float) -> bool:
        """True once it has ended, False when it still runs after `seconds`."""
        deadline = time.monotonic() + seconds
        while self.alive:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._wait_a_little(left)
        return True

    def _wait_a_little(self, most: float) -> None:
        if not sys.platform.startswith("linux"):
            time.sleep(min(most, 0.05))
            return
        try:
            handle = os.pidfd_open(self.pid)
        except OSError:
            return
        try:
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            poll.poll(min(most, _LONGEST_POLL) * 1000)
        finally:
            os.close(handle)


def parse_stat(content: bytes) -> ProcessId | None:
    """The identity in the content of /proc/PID/stat; None for a process that has ended, and for anything else."""
    # The command's name stands in parentheses and may hold spaces and parentheses itself.
    head, found, rest = content.rpartition(b")")
    fields = rest.split()
    if not found or len(fields) < 20 or fields[0] == b"X":
        return None
    # A process whose first thread has ended is called a zombie while its others still hold its files open.
    if fields[0] == b"Z" and int(fields[17]) <= 1:
        return None
    pid = head.partition(b" ")[0]
    return ProcessId(int(pid), int(fields[19]))


def boot_identity() -> str | None:
    """What changes whenever the host boots; None where nothing says so."""
    if sys.platform == "darwin":
        done = run(["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"], limits=Limits(seconds=5))
        return done.stdout.decode().strip() or None
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _kill(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def read_pid_file(path: str) -> ProcessId | None:
    """What `imgtool.qemu.system.start` records: /proc/PID/stat, or the bare pid where there is no /proc. None where
    nothing is recorded."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return ProcessId(int(content), None) if content.strip().isdigit() else parse_stat(content)


def end_process(process: ProcessId, grace: float = 3.0) -> bool:
    """SIGTERM, `grace` seconds, SIGKILL. True when there was anything to end."""
    if not process.send(signal.SIGTERM):
        return False
    if not process.wait(grace):
        process.send(signal.SIGKILL)
        process.wait(grace)
    return True
