"""Which way leads into a guest, where nobody says: the first of agent, SSH and serial port that does."""

from __future__ import annotations

import time
from collections.abc import Sequence

from imgtool.build.executor import KINDS, Executor, ExecutorError, GuestLost, Kind, connect, equip
from imgtool.errors import ConfigError, MachineError
from imgtool.machine.config import Machine
from imgtool.machine.runtime import State, Vm

_FIRST_SECONDS = 5.0
"""What each way is given in the first round; it is twice as much in each that follows."""


def equip_for_any(machine: Machine, folder: str) -> Machine:
    """`machine` with what every way needs, but for those that what the machine says rules out."""
    for kind in KINDS:
        try:
            machine = equip(machine, kind, folder)
        except ConfigError:
            continue
    return machine


def connect_any(vm: Vm, state: State, folder: str, *, seconds: float, kinds: Sequence[Kind] = KINDS) -> Executor:
    """The first way that is ready. ExecutorError after `seconds`, with how far each came; GuestLost when the VM
    ends."""
    deadline = time.monotonic() + seconds
    patience = _FIRST_SECONDS
    while True:
        failed: list[str] = []
        for kind in kinds:
            executor = connect(vm, state, kind, folder)
            try:
                executor.wait_ready(seconds=max(0.1, min(patience, deadline - time.monotonic())))
            except GuestLost:
                executor.close()
                raise
            except MachineError as error:
                executor.close()
                failed.append(f"{kind}: {error.message}")
                continue
            except BaseException:
                executor.close()
                raise
            return executor
        if time.monotonic() >= deadline:
            raise ExecutorError(
                f"no way leads into the guest of {vm.name}:" + "".join(f"\n  {words}" for words in failed),
                hint="qemu-guest-agent, sshd with cloud-init, or a root shell on the serial port is needed",
            )
        patience *= 2
