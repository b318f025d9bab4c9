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
from imgtool.machine.vm import Vm
from imgtool.qemu.qmp import Monitor, QmpCommandError, QmpUnreachable

_PERIOD = 3.0
_SILENCE = 10.0
"""A console whose last word is a panic's must have been silent for so many seconds: a step may show an old log."""
_ANSWER = 5.0

_WHY = {"nospace": "there is no space left for what it writes", "failed": "its disk cannot be written"}
"""By QAPI's BlockDeviceIoStatus."""

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
            # One that does not answer is busy, with somebody else's question too; the next time is soon.
            with (
                contextlib.suppress(QmpUnreachable, QmpCommandError),
                Monitor.connect(self._vm.qmp_socket, seconds=_ANSWER) as monitor,
            ):
                self.trouble = _stopped(monitor) or panic_in(self._vm.serial_log, silence=self._silence)
                if self.trouble is not None:
                    monitor.execute("quit")
                    return


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
