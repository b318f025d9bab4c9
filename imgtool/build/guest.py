"""The VM a build works in: started once, and given a new overlay to write to whenever a layer is closed."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
from msgspec.structs import replace

from imgtool.build.executor import Access, Executor, ExecutorError, Kind, connect, equip
from imgtool.build.executors.choose import connect_any, equip_for_any, ways_into
from imgtool.build.guestwatch import GuestWatch, Trouble
from imgtool.build.recipe import Guest as GuestMachine
from imgtool.build.recipe import seconds_of
from imgtool.errors import MachineError
from imgtool.machine.compile.start import wants_uefi
from imgtool.machine.config import Machine
from imgtool.machine.launch import Started, launch
from imgtool.machine.plan import prepare
from imgtool.machine.readiness import parse_wait, wait_until
from imgtool.machine.runtime import check_name, release, vms
from imgtool.machine.values.storage import Drive
from imgtool.machine.vm import State, hold
from imgtool.qemu.programs import Programs
from imgtool.qemu.qmp import Monitor

SYSTEM = "system"
"""The id of the disk that is built, and of its first block node."""

_POWER_OFF_SECONDS = 120.0


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be started."""

    name: str
    """What the VM is called, when that is free."""
    image: str
    format: str
    machine: GuestMachine
    executors: tuple[Access, ...]
    """The ways into the guest that will be used."""
    throwaway: bool = False
    """Nothing is written to `image`."""
    folder: str
    """For what the VM keeps while it runs (UEFI variables, TPM state)."""


class Guest(Protocol):
    """A running VM of a build."""

    @property
    def name(self) -> str: ...

    def executor(self, kind: Access) -> Executor:
        """The way of this kind into the guest, which answers."""

    def let_go(self) -> None:
        """Closes the ways into the guest, so that somebody else may use its console."""

    def reboot(self, kind: Access, seconds: float) -> None:
        """Has the guest reboot, by the way of this kind. ExecutorError when it does not come back in time."""

    def snapshot(self, overlay: str) -> None:
        """From now on the guest writes to the image `overlay`, whose backing file is the one it wrote to until now.
        When this returns, that one is complete and only read."""

    def power_off(self) -> None:
        """Has the guest shut down properly, and returns when its image is closed. MachineError when it does not."""

    def kill(self) -> None:
        """Ends it at once. Harmless when it has ended."""

    def trouble(self) -> Trouble | None:
        """Why it was ended although a step went on, if it was."""


Starter = Callable[[Start], Guest]
"""Starts a VM and returns when its guest is ready."""


def machine_for(start: Start, access: str) -> Machine:
    """The machine as it is booted: the recipe's, with the disk, with what the executors need, and with nothing that
    would outlive it. Files for access lie in `access`."""
    given = start.machine
    machine = Machine(**{name: getattr(given, name) for name in Machine.__struct_fields__})
    for kind in start.executors:
        machine = equip_for_any(machine, access) if kind == "auto" else equip(machine, kind, access)
    if machine.cloud_init is not None and machine.cloud_init.hostname is None:
        machine = replace(machine, cloud_init=replace(machine.cloud_init, hostname=start.name))
    if wants_uefi(machine) and machine.firmware.vars is None:
        machine = replace(
            machine, firmware=replace(machine.firmware, vars=os.path.join(start.folder, "uefi-vars.qcow2"))
        )
    if machine.tpm is not None and machine.tpm.state is None:
        machine = replace(machine, tpm=replace(machine.tpm, state=os.path.join(start.folder, "tpm")))
    disk = Drive(
        file=start.image,
        format=start.format,
        interface="virtio",
        id=SYSTEM,
        snapshot=start.throwaway,
        # What a killed build leaves of a layer is thrown away; a finished one is brought to disk as it is sealed.
        cache="unsafe",
        discard="unmap",
    )
    return replace(
        machine,
        name=None,
        drives=(disk, *machine.drives),
        ephemeral=True,
        safety=replace(machine.safety, run_as=None),
    )


def starter(programs: Programs, access: str) -> Starter:
    """Starts real VMs. `access` is the folder, kept from build to build, for the keys that lead into guests."""

    def start(wanted: Start) -> RunningGuest:
        os.makedirs(access, mode=0o700, exist_ok=True)
        machine = replace(machine_for(wanted, access), name=_free(wanted.name))
        plan = prepare(machine, programs, detached=True)
        guest = RunningGuest(launch(plan, programs, tied=True), wanted, access)
        try:
            guest.wait_ready()
        except BaseException:
            guest.kill()
            raise
        return guest

    return start


def _free(name: str) -> str:
    taken = {vm.name for vm, _ in vms()}
    number, found = 1, check_name(name)
    while found in taken:
        number += 1
        found = check_name(f"{name}-{number}")
    return found


class RunningGuest:
    """A VM under QEMU that ends with this process."""

    def __init__(self, started: Started, wanted: Start, access: str) -> None:
        self.vm = started.vm
        self._process = started.process
        self._begun = started.begun
        self._wanted = wanted
        self._access = access
        self._executors: dict[Kind, Executor] = {}
        self._chosen: Kind | None = None
        """What `auto` was resolved to."""
        self._node = SYSTEM
        self._written = wanted.image
        self._snapshots = 0
        self._watch = GuestWatch(started.vm)

    @property
    def name(self) -> str:
        return self.vm.name

    def wait_ready(self) -> None:
        machine = self._wanted.machine
        seconds = seconds_of(machine.boot_timeout)
        deadline = time.monotonic() + seconds
        if machine.ready is not None:
            wait_until(self.vm, parse_wait(machine.ready), seconds=seconds, begun=self._begun)
        for kind in self._wanted.executors:
            self._reach(kind, max(5.0, deadline - time.monotonic()))

    def executor(self, kind: Access) -> Executor:
        return self._reach(kind, seconds_of(self._wanted.machine.boot_timeout))

    def _reach(self, kind: Access, seconds: float) -> Executor:
        if kind == "auto":
            if self._chosen is None:
                return self._choose(seconds)
            kind = self._chosen
        return self._executors.get(kind) or self._connect(kind, seconds)

    def _choose(self, seconds: float) -> Executor:
        state = self._state()
        kinds = ways_into(state.machine, self._access)
        executor = connect_any(self.vm, state, self._access, seconds=seconds, kinds=kinds)
        self._chosen = executor.kind
        self._executors[executor.kind] = executor
        return executor

    def _state(self) -> State:
        state = self.vm.state()
        if state is None:
            raise MachineError(f"the VM {self.name} has ended")
        return state

    def _connect(self, kind: Kind, seconds: float) -> Executor:
        executor = connect(self.vm, self._state(), kind, self._access)
        try:
            executor.wait_ready(seconds=seconds)
        except BaseException:
            executor.close()
            raise
        self._executors[kind] = executor
        return executor

    def let_go(self) -> None:
        for executor in self._executors.values():
            executor.close()
        self._executors.clear()

    def reboot(self, kind: Access, seconds: float) -> None:
        executor = self.executor(kind)
        for other in [other for other in self._executors if other != executor.kind]:
            self._executors.pop(other).close()
        executor.reboot(seconds=seconds)

    def snapshot(self, overlay: str) -> None:
        self._snapshots += 1
        node = f"{SYSTEM}-layer-{self._snapshots}"
        with Monitor.connect(self.vm.qmp_socket) as monitor:
            monitor.execute("blockdev-add", overlay_node(node, overlay))
            monitor.execute("blockdev-snapshot", {"node": self._node, "overlay": node})
        self._node = node
        closed, self._written = hold(self._written, writable=False), overlay
        state = self.vm.state()
        if state is not None:
            # Other builds may stand on what is closed, while this one goes on.
            others = [one for one in state.images if (one.device, one.inode) != (closed.device, closed.inode)]
            self.vm.update(images=(*others, closed, hold(overlay, writable=True)))

    def power_off(self) -> None:
        if not self._executors:
            self._reach(self._wanted.executors[0], 30)
        way = next(iter(self._executors.values()))
        if way.kind != "ssh" and "ssh" in ways_into(self._wanted.machine, self._access) and self._chosen is not None:
            from imgtool.build.executors.ssh import forget_key

            forget_key(way, self._access)  # it was let in for the case that no other way would lead in
        way.power_off()
        self.let_go()
        if self._process.wait(_POWER_OFF_SECONDS) is None:
            raise MachineError(
                f"the guest of {self.name} did not power off within {_POWER_OFF_SECONDS:g} s",
                hint=f"`imgtool vm log {self.name}` shows its console",
            )
        status = self._process.poll()
        if status != 0:
            raise self._process.failure()
        self.kill()

    def kill(self) -> None:
        self._watch.stop()
        with contextlib.suppress(ExecutorError, OSError):
            self.let_go()
        self._process.end()
        self._process.close()
        release(self.vm)

    def trouble(self) -> Trouble | None:
        return self._watch.trouble


def overlay_node(node: str, path: str) -> dict[str, object]:
    """`blockdev-add`'s argument for an overlay whose backing file `blockdev-snapshot` gives it. QAPI:
    BlockdevOptions."""
    common: dict[str, object] = {"cache": {"direct": False, "no-flush": True}, "discard": "unmap"}
    return {
        "driver": "qcow2",
        "node-name": node,
        "file": {"driver": "file", "filename": path, **common},
        "backing": None,
        **common,
    }


def kinds_used(kinds: Sequence[Access]) -> tuple[Access, ...]:
    """Each once, in the order of their first use."""
    return tuple(dict.fromkeys(kinds))
