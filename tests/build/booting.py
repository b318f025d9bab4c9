"""A VM that is booted by the library, with what ways into its guest need."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from imgtool.build.executor import Executor, Kind, connect, equip
from imgtool.machine.config import Machine
from imgtool.machine.launch import launch
from imgtool.machine.plan import prepare
from imgtool.machine.runtime import release
from imgtool.machine.vm import Vm
from imgtool.qemu.programs import Programs
from imgtool.qemu.system import Process

READY_SECONDS = 900.0
"""A bound for a guest that hangs, not for one that is slow on a busy machine."""


class Booted(NamedTuple):
    vm: Vm
    process: Process
    folder: str
    """Of the keys that lead in."""

    def connect(self, kind: Kind) -> Executor:
        state = self.vm.state()
        assert state is not None
        way = connect(self.vm, state, kind, self.folder)
        way.wait_ready(seconds=READY_SECONDS)
        return way

    def end(self) -> None:
        self.process.end()
        self.process.close()
        release(self.vm)


def boot(machine: Machine, kinds: Sequence[Kind], folder: str) -> Booted:
    """Starts `machine` with its runtime directory and its keys in `folder`, whose name has to be short: the paths of
    sockets have room for 107 bytes."""
    access = os.path.join(folder, f"{machine.name}.access")
    os.makedirs(access, mode=0o700, exist_ok=True)
    for kind in kinds:
        machine = equip(machine, kind, access)
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = folder
    try:
        started = launch(prepare(machine, Programs(), detached=True), Programs())
    finally:
        if before is None:
            del os.environ["XDG_RUNTIME_DIR"]
        else:
            os.environ["XDG_RUNTIME_DIR"] = before
    return Booted(started.vm, started.process, access)
