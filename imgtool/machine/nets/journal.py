"""What has to be undone: written before each step is taken, so that whoever comes later knows, however imgtool died.

A record says that something may have been done. Undoing it looks first whether it was (`imgtool.machine.nets.undo`).
"""

from __future__ import annotations

import os

import msgspec

from imgtool.errors import DecodeError
from imgtool.machine.nets.iproute import Address, Route

FILE = "journal"


class Record(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", tag_field="made", omit_defaults=True):
    """One thing to undo."""


class LinkMade(Record, frozen=True, kw_only=True, tag="link"):
    """The interface `name`, ours if it has this `mac`."""

    name: str
    mac: str


class TableMade(Record, frozen=True, kw_only=True, tag="table"):
    family: str
    name: str


class ForwardingOn(Record, frozen=True, kw_only=True, tag="forwarding"):
    """The host routes; `imgtool.machine.nets.forwarding` keeps what was before, for all networks together."""


class DnsmasqStarted(Record, frozen=True, kw_only=True, tag="dnsmasq"):
    """Found by its directory, which is in its argv."""


class NicMoved(Record, frozen=True, kw_only=True, tag="nic"):
    """A NIC was put into a bridge and gave it its addresses and routes, which were these at the time `when`."""

    nic: str
    bridge: str
    up: bool
    addresses: tuple[Address, ...]
    routes: tuple[Route, ...]
    routes6: tuple[Route, ...]
    when: int
    """Seconds since 1970: addresses and routes may have an end."""


Undo = LinkMade | TableMade | ForwardingOn | DnsmasqStarted | NicMoved


def append(directory: str, record: Undo) -> None:
    """Adds `record`, on the disk before it returns."""
    with open(os.path.join(directory, FILE), "ab") as file:
        file.write(msgspec.json.encode(record) + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read(directory: str) -> list[Undo]:
    """The records in their order. A last line without an end was never acted upon."""
    try:
        with open(os.path.join(directory, FILE), "rb") as file:
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    try:
        return [msgspec.json.decode(line, type=Undo) for line in lines]
    except msgspec.MsgspecError as error:
        raise DecodeError(f"the journal of a network cannot be read: {error}", path=directory) from None
