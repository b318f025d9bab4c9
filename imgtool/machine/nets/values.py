"""What a network is: how it was asked for, and what is seen of it."""

from __future__ import annotations

from typing import Literal

import msgspec


class Value(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """A part of a document about networks: immutable, with kebab-case names in JSON."""


class Forward(Value, frozen=True, kw_only=True):
    """A port of the host handed to a guest: DNAT."""

    protocol: Literal["tcp", "udp"]
    host_port: int
    guest: str
    """The guest's IPv4 address, inside the subnet."""
    guest_port: int
    host: str | None = None
    """The one address of the host that is meant; None is every address of it."""

    def __str__(self) -> str:
        where = f"{self.host}:" if self.host else ""
        return f"{self.protocol}:{where}{self.host_port}:{self.guest}:{self.guest_port}"


class Config(Value, frozen=True, kw_only=True):
    """A network as it was asked for, with everything that was left open filled in. Making it is a pure function
    of this and of what is on the host."""

    name: str
    kind: Literal["nat", "bridge"]
    bridge: str
    mac: str
    """The bridge's. It is set by hand, so that it stays when taps come and go, and tells this bridge from another
    of its name."""
    subnet: str | None = None
    address: str | None = None
    """The host's on the bridge, the guests' gateway, with its prefix length."""
    dhcp_range: tuple[str, str] | None = None
    ipv6_subnet: str | None = None
    ipv6_address: str | None = None
    isolated: bool = False
    forwards: tuple[Forward, ...] = ()
    nic: str | None = None
    mtu: int | None = None
    """Of the NIC in the bridge; None is the kernel's default."""

    @property
    def forwards_packets(self) -> bool:
        """Whether the host has to route for its guests."""
        return self.kind == "nat" and not self.isolated


class Lease(Value, frozen=True, kw_only=True):
    """An address that dnsmasq gave out."""

    address: str
    mac: str
    hostname: str | None = None
    expires: int | None = None
    """Seconds since 1970; None is never."""


class Member(Value, frozen=True, kw_only=True):
    """An interface in the bridge."""

    name: str
    kind: str | None = None
    """The kernel's word: `tun` for a tap, `veth`; None for hardware."""
    up: bool


State = Literal["active", "broken", "stale", "unfinished", "changing", "elsewhere"]


class Network(Value, frozen=True, kw_only=True):
    """A network and how it is.

    `state`: *active*, all of it is there; *broken*, a part is missing, `problems` says which; *stale*, its bridge is
    gone; *unfinished*, imgtool died while making or deleting it; *changing*, that is being done right now;
    *elsewhere*, it was made in another network namespace, into which this process does not see.
    """

    name: str
    kind: Literal["nat", "bridge"]
    state: State
    bridge: str
    mac: str
    subnet: str | None = None
    addresses: tuple[str, ...] = ()
    """The bridge's addresses as they are now, with their prefix lengths."""
    dhcp_range: tuple[str, str] | None = None
    ipv6_subnet: str | None = None
    isolated: bool = False
    forwards: tuple[Forward, ...] = ()
    nic: str | None = None
    dnsmasq: int | None = None
    """Its process id, while it runs."""
    leases: tuple[Lease, ...] = ()
    members: tuple[Member, ...] = ()
    problems: tuple[str, ...] = ()
    directory: str


class Plan(Value, frozen=True, kw_only=True):
    """What a change would do: the commands in their order, and what is to be known before."""

    network: str
    commands: tuple[tuple[str, ...], ...]
    warnings: tuple[str, ...] = ()
