"""A build's VM that cannot go on: its disk cannot be written any more, for which QEMU stops its CPUs until somebody
makes room (`werror`), or its kernel has panicked and waits for ever. No step comes to an end then; nobody watches a
build that closely, so the VM is ended, and says why."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from typing import Literal, NamedTuple

from imgtool.machine.serial import tail
from imgtool.machine.trim import trim_logs
from imgtool.machine.vm import Vm
from imgtool.qemu.qmp import Monitor, QmpCommandError, QmpUnreachable

_PERIOD = 3.0
_SILENCE = 10.0
"""A console whose last word is a panic's must have been silent for so many seconds: a step may show an old log."""
_ANSWER = 5.0

_WHY = {"nospace": "there is no space left for what it writes", "failed": "its disk cannot be written"}
"""By QAPI's BlockDeviceIoStatus."""

_LOOKS = 8
_BETWEEN_LOOKS = 0.1
"""At so many moments every CPU is looked at, so many seconds apart."""
_ALIVE = re.compile(r"CPL=3\b")
_IDLE = re.compile(r"\bHLT=([01])\b")
"""What `info registers` says of an x86 CPU: that a program runs on it; whether it waits for an interrupt."""

_PANIC = re.compile(r"(?:\[ *[0-9.]+\] )?---\[ end (Kernel panic - not syncing: .*?) \]---")
"""What Linux says last, with or without the time (kernel/panic.c)."""


class Trouble(NamedTuple):
    """Why a VM was ended in the midst of a step."""

    part: Literal["disk", "kernel"]
    text: str


class GuestWatch:
    """Looks now and then, from a thread, whether the VM was stopped by its disks or its kernel, and ends it then."""

    def __init__(self, vm: Vm, *, period: float = _PERIOD, silence: float = _SILENCE) -> None:
        self.trouble: Trouble | None = None
        """Why the VM was ended; None when it was not."""
        self._vm = vm
        self._period = period
        self._silence = silence
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name=f"watch over {vm.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(self._period):
            trim_logs(self._vm.path)
            # One that does not answer is busy, with somebody else's question too; the next time is soon.
            with (
                contextlib.suppress(QmpUnreachable, QmpCommandError),
                Monitor.connect(self._vm.qmp_socket, seconds=_ANSWER) as monitor,
            ):
                self.trouble = _stopped(monitor) or self._panic(monitor)
                if self.trouble is not None:
                    monitor.execute("quit")
                    return

    def _panic(self, monitor: Monitor) -> Trouble | None:
        """The panic in the log, unless the guest goes on all the same: a step may have shown the log of another."""
        found = panic_in(self._vm.serial_log, silence=self._silence)
        return None if found is None or self._goes_on(monitor) else found

    def _goes_on(self, monitor: Monitor) -> bool:
        """Whether a program runs in the guest, or all its CPUs wait. After a panic Linux does neither: one CPU turns
        in a loop of the kernel for ever."""
        for _ in range(_LOOKS):
            said: str = monitor.execute("human-monitor-command", {"command-line": "info registers -a"})
            idle = _IDLE.findall(said)
            if _ALIVE.search(said) or (idle and "0" not in idle):
                return True
            if self._over.wait(_BETWEEN_LOOKS):
                return True
        return False


def panic_in(log: str, *, silence: float = _SILENCE) -> Trouble | None:
    """The panic that is the last thing said in the serial log, where nothing has followed for `silence` seconds."""
    try:
        if time.time() - os.stat(log).st_mtime < silence:
            return None
    except OSError:
        return None
    found = _PANIC.fullmatch(next(iter(tail(log, 1)), ""))
    return None if found is None else Trouble("kernel", f"its kernel has stopped: {found[1]}")


def _stopped(monitor: Monitor) -> Trouble | None:
    if monitor.execute("query-status")["status"] != "io-error":
        return None
    states = [item.get("io-status") for item in monitor.execute("query-block")]
    return Trouble("disk", next((_WHY[state] for state in states if state in _WHY), _WHY["failed"]))
