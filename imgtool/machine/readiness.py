"""Waiting until a guest is ready. That a TCP port opens says nothing: QEMU's user network accepts connections before
the guest has a kernel. What counts is something only the guest can have said."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import msgspec

from imgtool.errors import ConfigError, MachineError, UsageError
from imgtool.image.names import printable
from imgtool.machine import agent, ssh
from imgtool.machine.config import Machine
from imgtool.machine.host import AGENT_SOCKET
from imgtool.machine.serial import Follower, Timeline, tail
from imgtool.machine.vm import QEMU_LOG, State, Vm
from imgtool.qemu.qmp import Monitor, QmpUnreachable

_REST = 2.0
"""Seconds a serial port may take for what the guest has written to it."""
_POLL = 0.1
_PROBE_SECONDS = 2.0
_SHOWN_LINES = 12

Kind = Literal["running", "serial", "ssh", "agent", "cloud-init"]


class NotReady(MachineError):  # noqa: N818 - says what is so
    """The guest did not become ready, in time or at all."""

    code = "not-ready"


class Reached(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What `vm wait` saw."""

    name: str
    """The VM's."""
    reached: str
    """What was waited for, in the words of `--for`."""


class Wait(NamedTuple):
    """What `--wait` names."""

    kind: Kind
    pattern: re.Pattern[str] | None = None

    def __str__(self) -> str:
        return self.kind if self.pattern is None else f"{self.kind}:{self.pattern.pattern}"


def parse_wait(text: str, option: str = "--wait", *, besides: Sequence[str] = ()) -> Wait:
    """`running`, `serial:REGEX`, `ssh`, `agent`, `cloud-init`. UsageError about `option` for anything else;
    `besides` is what its caller knows itself."""
    kind, colon, pattern = text.partition(":")
    if kind == "serial" and colon:
        try:
            return Wait("serial", re.compile(pattern))
        except re.error as error:
            raise UsageError(f"{option}: {printable(pattern)!r} is no regular expression: {error}") from None
    if kind in ("running", "ssh", "agent", "cloud-init") and not colon:
        return Wait(kind)  # type: ignore[arg-type]
    known = ("running", "serial:REGEX", "ssh", "agent", "cloud-init", *besides)
    raise UsageError(f"{option} cannot be {printable(text)!r}", hint=f"it can be {', '.join(known)}")


def check_wait(wait: Wait, machine: Machine) -> None:
    """ConfigError for what the guest of `machine` can never tell: waiting for it would only take time."""
    if wait.kind == "agent" and not machine.agent:
        raise ConfigError("the guest has no channel for an agent to wait for", hint="boot it with --agent")
    if wait.kind == "ssh" and not ssh.has_way(machine):
        raise ConfigError("there is no way to the guest's SSH server to wait for", hint=ssh.WAYS)


def wait_until(
    vm: Vm,
    wait: Wait,
    *,
    seconds: float,
    begun: float | None = None,
    timeline: Timeline | None = None,
) -> None:
    """Returns once the guest is ready in the sense of `wait`; each line of a serial console that came since the VM
    was started counts. ConfigError as `check_wait`; NotReady when it takes over `seconds` or the VM ends: with how
    far the guest came, and what its serial console said last. `begun` is the start in time.monotonic(), for the
    timeline."""
    state = vm.state()
    if state is None:
        raise MachineError(f"the VM {vm.name} has ended")
    check_wait(wait, state.machine)
    asked = timeline is not None
    timeline = timeline if timeline is not None else Timeline()
    begun = time.monotonic() if begun is None else begun
    deadline = time.monotonic() + seconds
    follower = Follower(vm.serial_log)
    probe = _probes(vm, state, wait)
    while True:
        matched = False
        for line in follower.lines():
            timeline.see(line.text, time.monotonic() - begun)
            matched = matched or (wait.pattern is not None and wait.pattern.search(line.text) is not None)
        if matched or next(probe) or (wait.kind == "cloud-init" and timeline.reached("cloud-init")):
            ready = time.monotonic() - begun
            if asked:
                _see_rest(follower, timeline, ready)
            timeline.mark("ready", ready)
            return
        if not vm.running:
            raise _ended(vm, wait)
        if time.monotonic() >= deadline:
            raise _late(vm, wait, seconds, timeline)
        time.sleep(_POLL)


def _see_rest(follower: Follower, timeline: Timeline, ready: float) -> None:
    """What the guest said before it was ready, and its serial port has still to bring: until that pauses."""
    deadline = time.monotonic() + _REST
    pauses = 0
    while pauses < 3 and time.monotonic() < deadline:
        pauses += 1
        for line in follower.lines():
            timeline.see(line.text, ready)
            pauses = 0
        time.sleep(_POLL)


def _probes(vm: Vm, state: State, wait: Wait) -> Iterator[bool]:
    """Looks, each time it is asked, whether the guest is ready; without end."""
    while True:
        if wait.kind == "running":
            yield _is_running(vm)
        elif wait.kind == "agent":
            yield _agent_answers(vm)
        elif wait.kind == "ssh":
            yield _sshd_answers(vm, state)
        elif wait.kind == "cloud-init" and state.machine.agent:
            yield _cloud_init_finished(vm)
        else:
            yield False


_STARTED = (
    *("running", "suspended"),
    # It was asked to start paused (-S), or to wait for another (-incoming): it is as ready as it will be.
    *("prelaunch", "paused", "inmigrate"),
    # Its guest ran, and stopped before anybody looked: at once where its disk cannot be written.
    *("io-error", "guest-panicked", "internal-error", "shutdown", "watchdog"),
)
"""QAPI's RunState of a machine that has been started."""


def _is_running(vm: Vm) -> bool:
    try:
        with Monitor.connect(vm.qmp_socket, seconds=_PROBE_SECONDS) as monitor:
            return monitor.execute("query-status")["status"] in _STARTED
    except QmpUnreachable:
        return False


def _agent_answers(vm: Vm) -> bool:
    try:
        with agent.session(vm.file(AGENT_SOCKET), seconds=_PROBE_SECONDS):
            return True
    except agent.AgentUnavailable:
        return False


def _sshd_answers(vm: Vm, state: State) -> bool:
    """Whether an SSH server says its greeting (RFC 4253, 4.2), which QEMU never does in its stead."""
    try:
        place = ssh.endpoint(vm, state)
        with socket.create_connection((place.host, place.port), timeout=_PROBE_SECONDS) as connection:
            connection.settimeout(_PROBE_SECONDS)
            greeting = b""
            while b"\n" not in greeting and len(greeting) < 4096:
                piece = connection.recv(256)
                if not piece:
                    return False
                greeting += piece
            return any(line.startswith(b"SSH-") for line in greeting.split(b"\n"))
    except (OSError, ssh.NoWay, QmpUnreachable):
        return False


def _cloud_init_finished(vm: Vm) -> bool:
    """Its result file is written when the last stage has ended, well or not."""
    try:
        with agent.session(vm.file(AGENT_SOCKET), seconds=_PROBE_SECONDS) as guest:
            return guest.execute(["test", "-e", "/run/cloud-init/result.json"], seconds=_PROBE_SECONDS).status == 0
    except (agent.AgentUnavailable, agent.AgentError):
        return False


def _ended(vm: Vm, wait: Wait) -> NotReady:
    said = tail(vm.file(QEMU_LOG), 5)
    return NotReady(
        f"{vm.name} ended before it was ready ({printable(str(wait))})" + "".join(f"\n  {line}" for line in said),
        hint=f"`imgtool vm log {vm.name}` shows the serial console",
    )


def _late(vm: Vm, wait: Wait, seconds: float, timeline: Timeline) -> NotReady:
    stage = timeline.last
    came = f"the guest came as far as: {stage}" if stage else "the guest has said nothing yet"
    said = tail(vm.serial_log, _SHOWN_LINES)
    if said:
        came += "; its serial console ends so:"
    return NotReady(
        f"{vm.name} was not ready ({printable(str(wait))}) after {seconds:g} s; {came}"
        + "".join(f"\n  {line}" for line in said),
        hint=f"it runs on: `imgtool vm wait {vm.name}` waits again, `imgtool vm stop {vm.name}` ends it",
    )
