"""Ending a VM: asking the guest, waiting, and then ending it all the same."""

from __future__ import annotations

import time
from collections.abc import Callable
from signal import SIGKILL, SIGTERM
from typing import Literal

import msgspec

from imgtool.errors import MachineError
from imgtool.machine import agent
from imgtool.machine.host import AGENT_SOCKET
from imgtool.machine.process import ProcessId
from imgtool.machine.runtime import release
from imgtool.machine.vm import State, Vm
from imgtool.qemu.qmp import Monitor, QmpCommandError, QmpUnreachable

How = Literal["powered-off", "quit", "terminated", "killed"]


class Ended(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What `vm stop` and `vm kill` did."""

    name: str
    """The VM's."""
    how: How
    """powered-off: by the guest itself. quit: QEMU was told to end. terminated, killed: by SIGTERM, SIGKILL."""


_ASK_AGAIN = 5.0
"""Seconds between two presses of the power button: one during the guest's start goes unheard."""
_HALTED = ("paused", "io-error")
"""QAPI's RunState of a machine whose guest hears nothing until it goes on."""
_DEAF = ("prelaunch", "inmigrate", "postmigrate", "shutdown", "guest-panicked", "internal-error")
"""RunState of one whose guest has not begun, or will do nothing more."""
_QUIT_SECONDS = 10.0
_MONITOR_SECONDS = 5.0
_AGENT_SECONDS = 2.0


def stop(vm: Vm, state: State, *, seconds: float, on_step: Callable[[str], None] = lambda _: None) -> How:
    """Asks the guest to power off (through its agent where there is one, and by the ACPI power button), waits
    `seconds`, then ends QEMU: `quit`, SIGTERM, SIGKILL. Returns what it took; nothing but logs is left."""
    qemu = _process(vm)
    how: How = "powered-off"
    obstacle = _power_off(vm, state, qemu, seconds)
    if obstacle is not None:
        on_step(f"{vm.name} {obstacle}; it is ended")
        how = end(vm, qemu)
    release(vm)
    return how


def kill(vm: Vm) -> None:
    """Ends QEMU at once, as pulling the plug does."""
    qemu = _process(vm)
    qemu.send(SIGKILL)
    if not qemu.wait(_QUIT_SECONDS):
        raise MachineError(f"{vm.name} (pid {qemu.pid}) cannot be killed", hint="a device it waits for may hang")
    release(vm)


def end(vm: Vm, qemu: ProcessId) -> How:
    """Ends QEMU without asking the guest. Images are closed properly unless it comes to SIGKILL."""
    try:
        with Monitor.connect(vm.qmp_socket, seconds=_MONITOR_SECONDS) as monitor:
            monitor.execute("quit", seconds=_MONITOR_SECONDS)
    except (QmpUnreachable, QmpCommandError):
        pass  # it may have ended before it could answer; if not, signals follow
    if qemu.wait(_QUIT_SECONDS):
        return "quit"
    qemu.send(SIGTERM)
    if qemu.wait(_QUIT_SECONDS):
        return "terminated"
    qemu.send(SIGKILL)
    qemu.wait(_QUIT_SECONDS)
    return "killed"


def _process(vm: Vm) -> ProcessId:
    qemu = vm.qemu()
    if qemu is None:
        raise MachineError(f"{vm.name} is only being started", hint="wait a moment and try again")
    return qemu


def _power_off(vm: Vm, state: State, qemu: ProcessId, seconds: float) -> str | None:
    """None once QEMU has ended; else why it has not, what it did not do, or what it is."""
    deadline = time.monotonic() + seconds
    if state.machine.agent and seconds > 0:
        _ask_agent(vm, seconds)
    while (left := deadline - time.monotonic()) > 0:
        try:
            with Monitor.connect(vm.qmp_socket, seconds=min(left, _MONITOR_SECONDS)) as monitor:
                status = monitor.execute("query-status")["status"]
                if status in _DEAF:
                    return f"has no guest that could power off ({status})"
                if status in _HALTED:
                    monitor.execute("cont")
                monitor.execute("system_powerdown")
        except (QmpUnreachable, QmpCommandError):
            pass  # it has just ended, which the wait below sees, or it is stuck, which the deadline ends
        if qemu.wait(min(_ASK_AGAIN, max(0.0, deadline - time.monotonic()))):
            return None
    return f"did not power off within {seconds:g} s" if qemu.alive else None


def _ask_agent(vm: Vm, seconds: float) -> None:
    try:
        with agent.session(vm.file(AGENT_SOCKET), seconds=min(seconds, _AGENT_SECONDS)) as guest:
            guest.tell("guest-shutdown", {"mode": "powerdown"})
    except agent.AgentUnavailable:
        pass  # the power button is pressed in any case
