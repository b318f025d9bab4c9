"""Which of the host's ports that a machine listens on are taken: asked when QEMU did not start, to say why."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from typing import NamedTuple

from imgtool.machine.compile.networks import loopback, networks, split_forward
from imgtool.machine.config import Machine
from imgtool.machine.values.network import User


class Port(NamedTuple):
    """A port of the host."""

    protocol: str
    address: str
    number: int


def taken_ports(machine: Machine) -> Iterator[Port]:
    """The host's ends of `hostfwd` that another process listens on now."""
    for network in networks(machine):
        for rule in network.hostfwd if isinstance(network, User) else ():
            protocol, address, port, _ = split_forward(loopback(rule))
            found = Port(protocol, address.removeprefix("[").removesuffix("]"), int(port))
            if _is_taken(found):
                yield found


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
