"""Which of the host's ports that a machine listens on are taken: asked when QEMU did not start, to say why."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from typing import Literal, NamedTuple

from imgtool.machine.compile.networks import loopback, networks, split_forward
from imgtool.machine.config import Machine
from imgtool.machine.values.network import User

_LOOPBACK = "127.0.0.1"
_VNC = 5900
"""The TCP port of VNC's display 0."""


class Port(NamedTuple):
    """A port of the host."""

    protocol: str
    address: str
    number: int
    wanted: Literal["hostfwd", "vnc", "spice"]
    """What the machine needs it for."""


def taken_ports(machine: Machine) -> Iterator[Port]:
    """The ports of the host that `machine` wants and another process listens on now."""
    return (port for port in _wanted(machine) if _is_taken(port))


def _wanted(machine: Machine) -> Iterator[Port]:
    for network in networks(machine):
        for rule in network.hostfwd if isinstance(network, User) else ():
            protocol, address, port, _ = split_forward(loopback(rule))
            yield Port(protocol, address.removeprefix("[").removesuffix("]"), int(port), "hostfwd")
    display = machine.display
    where = display.address or _LOOPBACK
    if display.type == "vnc" and display.display is not None and display.path is None:
        yield Port("tcp", where, _VNC + display.display, "vnc")
    if display.type == "spice" and display.port is not None:
        yield Port("tcp", where, display.port, "spice")


def _is_taken(port: Port) -> bool:
    family = socket.AF_INET6 if ":" in port.address else socket.AF_INET
    kind = socket.SOCK_DGRAM if port.protocol == "udp" else socket.SOCK_STREAM
    with socket.socket(family, kind) as probe:
        if kind == socket.SOCK_STREAM:  # as QEMU does, so that connections which are closing do not count
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((port.address, port.number))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False
