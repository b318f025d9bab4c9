"""Whether the host's ports that something is to listen on can be had: asked when QEMU did not start, to say why."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from imgtool.errors import MachineError
from imgtool.machine.compile.networks import loopback, networks, split_forward
from imgtool.machine.config import Machine
from imgtool.machine.values.network import User

_LOOPBACK = "127.0.0.1"
_VNC = 5900
"""The TCP port of VNC's display 0."""
_WEBSOCKET = 5700
"""Of the same for browsers."""


class Port(NamedTuple):
    """A port of the host."""

    protocol: str
    address: str
    number: int
    wanted: Literal["hostfwd", "vnc", "websocket", "spice", "nbd"]
    """What it is needed for."""


_PURPOSES = {
    "hostfwd": ("forward it", "hostfwd"),
    "vnc": ("show its screen there", "--display vnc=:N, or none and the first free one is taken"),
    "websocket": ("show its screen to browsers there", "websocket="),
    "spice": ("show its screen there", "port="),
    "nbd": ("serve there", "--port"),
}
"""What a port is for, and what to choose where it is not to be had."""


def listening(port: Port) -> int | None:
    """The errno with which this process is kept from listening on `port`; None where it could."""
    family = socket.AF_INET6 if ":" in port.address else socket.AF_INET
    kind = socket.SOCK_DGRAM if port.protocol == "udp" else socket.SOCK_STREAM
    with socket.socket(family, kind) as probe:
        if kind == socket.SOCK_STREAM:  # as QEMU does, so that connections which are closing do not count
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((port.address, port.number))
        except OSError as error:
            return error.errno
    return None


def taken(port: Port, who: str, *, listen: Callable[[Port], int | None] = listening) -> MachineError | None:
    """Why `who` cannot have `port` now; None where it can, or where the port is not what hinders it."""
    obstacle = listen(port)
    which = f"{port.protocol} port {port.number} of {port.address}"
    purpose, other = _PURPOSES[port.wanted]
    if obstacle == errno.EADDRINUSE:
        return MachineError(
            f"{which} is in use: {who} cannot {purpose}",
            hint=f"choose another {other}; `ss -ap 'sport = :{port.number}'` shows who has this one",
        )
    if obstacle == errno.EACCES:
        return MachineError(
            f"{which} is not for this user: {who} cannot {purpose}",
            hint=f"choose another {other}, with a port above 1023: the others are root's",
        )
    return None


def port_failure(
    machine: Machine, name: str, *, listen: Callable[[Port], int | None] = listening
) -> MachineError | None:
    """Why `machine`, called `name`, did not start, where that is a port of the host that it cannot have now."""
    failures = (taken(port, name, listen=listen) for port in _wanted(machine))
    return next((failure for failure in failures if failure is not None), None)


def _wanted(machine: Machine) -> Iterator[Port]:
    for network in networks(machine):
        for rule in network.hostfwd if isinstance(network, User) else ():
            protocol, address, port, _ = split_forward(loopback(rule))
            yield Port(protocol, address.removeprefix("[").removesuffix("]"), int(port), "hostfwd")
    display = machine.display
    where = display.address or _LOOPBACK
    if display.type == "vnc" and display.display is not None and display.path is None:
        yield Port("tcp", where, _VNC + display.display, "vnc")
        if display.websocket not in (None, False):
            own = _WEBSOCKET + display.display if display.websocket is True else int(display.websocket)
            yield Port("tcp", where, own, "websocket")
    for number in (display.port, display.tls_port) if display.type == "spice" else ():
        if number is not None:
            yield Port("tcp", where, number, "spice")
