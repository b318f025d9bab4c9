"""Which way leads into a guest, where nobody says: the first of agent, SSH and serial port that does."""

from __future__ import annotations

import time
from collections.abc import Sequence

from imgtool.build.executor import KINDS, Executor, ExecutorError, GuestLost, Kind, connect, equip
from imgtool.errors import ConfigError, MachineError
from imgtool.machine.config import Machine
from imgtool.machine.vm import State, Vm

_FIRST_SECONDS = 5.0
"""What each way is given in the first round; it is twice as much in each that follows."""
_LAST_SECONDS = 3.0
"""What the better ways are given once more when a lesser one leads in: they may have come up meanwhile."""


def equip_for_any(machine: Machine, folder: str) -> Machine:
    """`machine` with what every way needs, but for those that what the machine says rules out."""
    for kind in ways_into(machine, folder):
        machine = equip(machine, kind, folder)
    return machine


def ways_into(machine: Machine, folder: str) -> tuple[Kind, ...]:
    """The ways that what the machine says does not rule out, the best first."""
    found = []
    for kind in KINDS:
        try:
            machine = equip(machine, kind, folder)
        except ConfigError:
            continue
        found.append(kind)
    return tuple(found)


def connect_any(vm: Vm, state: State, folder: str, *, seconds: float, kinds: Sequence[Kind] = KINDS) -> Executor:
    """The first way that is ready; of several that are, the best. ExecutorError after `seconds`, with how far each
    came; GuestLost when the VM ends."""
    deadline = time.monotonic() + seconds
    patience = _FIRST_SECONDS
    while True:
        failed: list[str] = []
        for number, kind in enumerate(kinds):
            try:
                found = _ready(vm, state, folder, kind, max(0.1, min(patience, deadline - time.monotonic())))
            except GuestLost:
                raise
            except MachineError as error:
                failed.append(f"{kind}: {error.message}")
                continue
            return _better(vm, state, folder, kinds[:number], found)
        if time.monotonic() >= deadline:
            raise ExecutorError(
                f"no way leads into the guest of {vm.name}:" + "".join(f"\n  {words}" for words in failed),
                hint="qemu-guest-agent, sshd with cloud-init, or a root shell on the serial port is needed",
            )
        patience *= 2


def _better(vm: Vm, state: State, folder: str, kinds: Sequence[Kind], found: Executor) -> Executor:
    """The first of `kinds` that is ready by now, else what was found: which way is taken is not to depend on the
    order in which the services of a guest come up."""
    for kind in kinds:
        try:
            better = _ready(vm, state, folder, kind, _LAST_SECONDS)
        except GuestLost:
            found.close()
            raise
        except MachineError:
            continue
        found.close()
        return better
    return found


def _ready(vm: Vm, state: State, folder: str, kind: Kind, seconds: float) -> Executor:
    executor = connect(vm, state, kind, folder)
    try:
        executor.wait_ready(seconds=seconds)
    except BaseException:
        executor.close()
        raise
    return executor
