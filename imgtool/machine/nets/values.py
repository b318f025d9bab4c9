"""What a network is: how it was asked for, and what is seen of it."""

from __future__ import annotations

from typing import Literal

import msgspec


class Value(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """A part of a document about networks: immutable, with kebab-case names in JSON."""


class Forward(Value, frozen=True, kw_only=True):
    """A port of the host handed to a guest: DNAT."""

    protocol: Literal["tcp", "udp"]
    """TCP or UDP."""
    host_port: int
    """The port on this host."""
    guest: str
    """The guest's IPv4 address, inside the subnet."""
    guest_port: int
    """The port in the guest."""
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
    """The IPv4 or IPv6 address."""
    mac: str
    """Of the guest's network card."""
    hostname: str | None = None
    """What the guest calls itself; None when it does not say."""
    expires: int | None = None
    """Seconds since 1970; None is never."""


class Member(Value, frozen=True, kw_only=True):
    """An interface in the bridge."""

    name: str
    """The interface's name on this host."""
    kind: str | None = None
    """The kernel's word: `tun` for a tap, `veth`; None for hardware."""
    up: bool
    """Whether it is switched on."""


State = Literal["active", "broken", "stale", "unfinished", "changing", "elsewhere"]


class Network(Value, frozen=True, kw_only=True):
    """A network and how it is."""

    name: str
    """For `--network nat,net=NAME`."""
    kind: Literal["nat", "bridge"]
    """nat: a subnet of its own behind this host. bridge: guests on the network of a card of this host."""
    state: State
    """active: all of it is there. broken: a part is missing, `problems` says which. stale: its bridge is gone.
    unfinished: imgtool died while making or deleting it. changing: that is being done right now. elsewhere: it was
    made in another network namespace, into which this process does not see."""
    bridge: str
    """The bridge's name on this host."""
    mac: str
    """The bridge's MAC address."""
    subnet: str | None = None
    """Of a NAT network: `192.168.77.0/24`; the host has its first address."""
    addresses: tuple[str, ...] = ()
    """The bridge's addresses as they are now, with their prefix lengths."""
    dhcp_range: tuple[str, str] | None = None
    """The first and the last address that DHCP gives out; None is no DHCP."""
    ipv6_subnet: str | None = None
    """A /64 from which guests choose their addresses; None is no IPv6."""
    isolated: bool = False
    """Guests reach each other and this host, and nothing else."""
    forwards: tuple[Forward, ...] = ()
    """Ports of this host that lead to guests."""
    nic: str | None = None
    """Of a bridge: the card of this host that is in it."""
    dnsmasq: int | None = None
    """Its process id, while it runs."""
    leases: tuple[Lease, ...] = ()
    """The addresses that DHCP gave out."""
    members: tuple[Member, ...] = ()
    """The interfaces in the bridge, those of running guests among them."""
    problems: tuple[str, ...] = ()
    """What is not as it should be, in words."""
    directory: str
    """Where imgtool keeps what it knows of it."""


class Plan(Value, frozen=True, kw_only=True):
    """What a change would do: the commands in their order, and what is to be known before."""

    network: str
    """The network's name."""
    commands: tuple[tuple[str, ...], ...]
    """The argv of every program, in order."""
    warnings: tuple[str, ...] = ()
    """What is to be known before, in words."""
