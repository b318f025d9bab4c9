"""Reaching a guest's SSH server: a forwarded port of the user network, or the guest's own address."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from imgtool.errors import MachineError, ProgramError
from imgtool.machine import agent
from imgtool.machine.config import Machine
from imgtool.machine.host import AGENT_SOCKET
from imgtool.machine.seed import login
from imgtool.machine.values.network import Passt, User
from imgtool.machine.vm import State, Vm
from imgtool.qemu.qmp import Monitor
from imgtool.qemu.search import which

PORT = 22
KNOWN_HOSTS = "known_hosts"

_FORWARD = re.compile(r"TCP\[HOST_FORWARD\]\s+\d+\s+(?P<host>\S+)\s+(?P<port>\d+)\s+\S+\s+(?P<guest>\d+)\s")


WAYS = "a user network, or --agent with qemu-guest-agent in the guest, which tells its address"
"""By which imgtool reaches a guest's SSH server."""


class NoWay(MachineError):  # noqa: N818 - says what is so
    """No address is known at which the guest could be reached."""

    code = "no-way"


class _Address(msgspec.Struct):
    kind: str = msgspec.field(name="ip-address-type")
    text: str = msgspec.field(name="ip-address")


class _Interface(msgspec.Struct):
    addresses: tuple[_Address, ...] = msgspec.field(name="ip-addresses", default=())


class Endpoint(NamedTuple):
    host: str
    port: int


def has_way(machine: Machine) -> bool:
    """Whether there is anything for `endpoint` to go by."""
    networks = (User(),) if machine.networks is None else machine.networks
    forwards = [text for network in networks if isinstance(network, Passt) for text in network.hostfwd]
    return (
        any(isinstance(network, User) for network in networks)
        or any(forward_of(text) for text in forwards)
        or bool(networks and machine.agent)
    )


def endpoint(vm: Vm, state: State) -> Endpoint:
    """Where the guest's port 22 is. On a user network that forwards none yet, one is forwarded now, from a free port
    of the loopback address. NoWay when there is nothing to go by."""
    networks = (User(),) if state.machine.networks is None else state.machine.networks
    for place, network in enumerate(networks):
        if isinstance(network, User):
            return _user_forward(vm, network.id or f"net{place}")
        if isinstance(network, Passt):
            found = next((forward_of(text) for text in network.hostfwd if forward_of(text)), None)
            if found is not None:
                return found
    if networks and state.machine.agent:
        return Endpoint(_agent_address(vm), PORT)
    raise NoWay(
        f"there is no way to the guest of {vm.name}",
        hint=WAYS,
    )


def forward_of(text: str) -> Endpoint | None:
    """The host's end of a `hostfwd` that leads to port 22: `tcp:[addr]:port-[addr]:22`."""
    match = re.fullmatch(r"tcp:(?P<host>[^:]*):(?P<port>\d+)-[^:]*:22", text)
    return Endpoint(match["host"] or "127.0.0.1", int(match["port"])) if match else None


def parse_forwards(text: str) -> Endpoint | None:
    """The forward to port 22 in the monitor's `info usernet`."""
    for match in _FORWARD.finditer(text):
        if int(match["guest"]) == PORT:
            host = match["host"]
            return Endpoint("127.0.0.1" if host in ("*", "0.0.0.0") else host, int(match["port"]))
    return None


def _user_forward(vm: Vm, netdev: str) -> Endpoint:
    with Monitor.connect(vm.qmp_socket) as monitor:
        found = parse_forwards(_monitor_command(monitor, "info usernet"))
        if found is not None:
            return found
        for _ in range(8):
            port = _free_port()
            # Another program may take the port first: QEMU then says so, and the next one is tried.
            said = _monitor_command(monitor, f"hostfwd_add {netdev} tcp:127.0.0.1:{port}-:{PORT}")
            if not said.strip():
                return Endpoint("127.0.0.1", port)
    raise NoWay(f"QEMU forwards no port to the guest of {vm.name}: {said.strip()}")


def _monitor_command(monitor: Monitor, line: str) -> str:
    """QMP has no command for the user network's forwards."""
    return str(monitor.execute("human-monitor-command", {"command-line": line}))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _agent_address(vm: Vm) -> str:
    try:
        with agent.session(vm.file(AGENT_SOCKET)) as guest:
            interfaces = guest.ask(tuple[_Interface, ...], "guest-network-get-interfaces")
    except agent.AgentUnavailable as error:
        raise NoWay(f"the guest of {vm.name} has not told its address: {error.message}", hint=error.hint) from None
    for address in (address for interface in interfaces for address in interface.addresses):
        if address.kind == "ipv4" and _leads_to_guest(address.text):
            return address.text
    raise NoWay(f"the guest of {vm.name} has no address yet")


def _leads_to_guest(address: str) -> bool:
    """Whether it is an IPv4 address and not this host's own: the guest's word becomes one of ssh, on this host."""
    try:
        return socket.inet_pton(socket.AF_INET, address)[0] != 127
    except (OSError, ValueError):
        return False


def user_of(state: State) -> str | None:
    """The user that imgtool's own cloud-init seed made, if it made one."""
    wanted = state.machine.cloud_init
    return login(wanted) if wanted is not None and (wanted.ssh_keys or wanted.user) else None


def identities_of(state: State) -> list[str]:
    """The private keys beside the public ones that the seed lets in."""
    wanted = state.machine.cloud_init
    keys = [path.removesuffix(".pub") for path in (wanted.ssh_keys if wanted else ()) if path.endswith(".pub")]
    return [key for key in keys if os.path.exists(key)]


def command_line(
    vm: Vm,
    state: State,
    command: Sequence[str] = (),
    *,
    user: str | None = None,
    identity: str | None = None,
    options: Sequence[str] = (),
) -> list[str]:
    """OpenSSH's command line for the guest, or for `command` there. `user` and `identity` are what the VM's own
    cloud-init seed says unless given; `options` are values of its `-o`. NoWay as `endpoint`, ProgramError when there
    is no OpenSSH."""
    program = which("ssh")
    if program is None:
        raise ProgramError("ssh was not found on PATH", hint="on Debian: apt-get install openssh-client")
    return ssh_argv(
        program,
        endpoint(vm, state),
        known_hosts=vm.file(KNOWN_HOSTS),
        user=user or user_of(state),
        identities=[identity] if identity else identities_of(state),
        options=[word for option in options for word in ("-o", option)],
        command=command,
    )


def ssh_argv(
    program: str,
    place: Endpoint,
    *,
    known_hosts: str,
    user: str | None = None,
    identities: Sequence[str] = (),
    options: Sequence[str] = (),
    command: Sequence[str] = (),
) -> list[str]:
    """OpenSSH's command line. The guest's host key is taken at first sight and kept for the life of the VM alone: the
    next VM behind this port is another host. Of two values OpenSSH takes the first, so `options` win. A user network
    answers for a guest that does not, for ever: hence the time-out."""
    # OpenSSH splits a list of files at blanks and expands `%`.
    keys = known_hosts.replace("\\", r"\\").replace('"', r"\"").replace("%", "%%")
    return [
        program,
        *("-p", str(place.port)),
        *(("-l", user) if user else ()),
        *(word for identity in identities for word in ("-i", identity)),
        *options,
        *("-o", f'UserKnownHostsFile="{keys}"'),
        *("-o", "StrictHostKeyChecking=accept-new"),
        *("-o", "LogLevel=ERROR"),
        *("-o", "ConnectTimeout=60"),
        "--",
        place.host,
        *command,
    ]
