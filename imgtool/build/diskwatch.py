"""A build's VM whose disk cannot be written any more. QEMU stops its CPUs until somebody makes room (`werror`), which
lets no step go on; nobody watches a build that closely, so it is ended, and says why."""

from __future__ import annotations

import contextlib
import threading

from imgtool.machine.vm import Vm
from imgtool.qemu.qmp import Monitor, QmpCommandError, QmpUnreachable

_PERIOD = 3.0
_ANSWER = 5.0

_WHY = {"nospace": "there is no space left for what it writes", "failed": "its disk cannot be written"}
"""By QAPI's BlockDeviceIoStatus."""


class DiskWatch:
    """Looks now and then, from a thread, whether the VM was stopped by its disks, and ends it then."""

    def __init__(self, vm: Vm, *, period: float = _PERIOD) -> None:
        self.trouble: str | None = None
        """Why the VM was ended; None when it was not."""
        self._vm = vm
        self._period = period
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name=f"disks of {vm.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(self._period):
            # One that does not answer is busy, with somebody else's question too; the next time is soon.
            with contextlib.suppress(QmpUnreachable, QmpCommandError):
                with Monitor.connect(self._vm.qmp_socket, seconds=_ANSWER) as monitor:
                    if monitor.execute("query-status")["status"] != "io-error":
                        continue
                    states = [item.get("io-status") for item in monitor.execute("query-block")]
                    self.trouble = next((_WHY[state] for state in states if state in _WHY), _WHY["failed"])
                    monitor.execute("quit")
                return
