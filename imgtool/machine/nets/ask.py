"""From a person's words to a network's configuration. Pure: what the host has to say is said in `guard`."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Literal, cast

from imgtool.errors import UsageError
from imgtool.image.names import printable
from imgtool.machine.nets import names
from imgtool.machine.nets.values import Config, Forward

IPv4Network = ipaddress.IPv4Network

_PRIVATE = tuple(IPv4Network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))
_UNIQUE_LOCAL = ipaddress.IPv6Network("fc00::/7")


def nat(
    name: str,
    subnet: str,
    *,
    bridge: str | None = None,
    dhcp_range: str | None = None,
    dhcp: bool = True,
    forwards: Sequence[str] = (),
    isolated: bool = False,
    ipv6: str | None = None,
) -> Config:
    """The network of `imgtool net create NAME --nat SUBNET`. UsageError for what makes no sense."""
    network = parse_subnet(subnet)
    if dhcp_range is not None and not dhcp:
        raise UsageError("--dhcp-range and --no-dhcp contradict each other")
    if isolated and forwards:
        raise UsageError(
            "--isolated keeps everything from outside away, and --forward lets it in", hint="leave one of them out"
        )
    gateway = network[1]
    addresses = None
    if dhcp:
        addresses = parse_range(dhcp_range, network) if dhcp_range else _all_but_gateway(network)
    network6 = parse_ipv6_subnet(ipv6) if ipv6 else None
    return Config(
        name=names.network_name(name),
        kind="nat",
        bridge=names.interface_name(bridge) if bridge else names.bridge_name(name),
        mac=names.bridge_mac(name),
        subnet=str(network),
        address=f"{gateway}/{network.prefixlen}",
        dhcp_range=addresses,
        ipv6_subnet=str(network6) if network6 else None,
        ipv6_address=f"{network6[1]}/{network6.prefixlen}" if network6 else None,
        isolated=isolated,
        forwards=_parse_forwards(forwards, network),
    )


def over_nic(name: str, nic: str, *, mac: str, mtu: int | None, bridge: str | None = None) -> Config:
    """The network of `imgtool net create NAME --bridge NIC`. The bridge answers under the NIC's own MAC address, for
    the LAN's DHCP server and switch know that one."""
    return Config(
        name=names.network_name(name),
        kind="bridge",
        bridge=names.interface_name(bridge) if bridge else names.bridge_name(name),
        mac=mac,
        nic=nic,
        mtu=mtu,
    )


def parse_subnet(text: str) -> IPv4Network:
    """The subnet in `text`, large enough for the gateway and a guest, and of addresses a host may have."""
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError:
        raise _no_subnet(text) from None
    if isinstance(interface, ipaddress.IPv6Interface):
        raise UsageError(
            f"--nat {printable(text)} is IPv6", hint="give an IPv4 subnet, and the IPv6 one with --ipv6 in addition"
        )
    network = interface.network
    if "/" not in text:
        raise UsageError(f"{text} has no prefix length", hint=f"write it as {text}/24, for instance")
    if interface.ip != network.network_address:
        raise UsageError(
            f"{printable(text)} is an address inside a subnet",
            hint=f"the subnet is {network}; its gateway is its first",
        )
    if network.prefixlen > 30:
        raise UsageError(
            f"{network} has no room for a gateway and a guest", hint="/30 holds one guest, /24 holds 253"
        )
    if network.prefixlen < 8 or _special(network):
        raise UsageError(
            f"{network} is not for hosts to use",
            hint="private subnets are in 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16",
        )
    return network


def parse_ipv6_subnet(text: str) -> ipaddress.IPv6Network:
    """A /64, which is what guests need to choose their addresses (RFC 4862)."""
    try:
        network = ipaddress.IPv6Network(text)
    except ValueError as error:
        raise UsageError(
            f"{printable(text)} is not an IPv6 subnet: {error}", hint="for instance fd42:1::/64"
        ) from None
    if network.prefixlen != 64:
        raise UsageError(
            f"{network} is not a /64, from which alone guests choose their addresses", hint="fd42:1::/64"
        )
    if network.is_multicast or network.is_link_local or network.is_loopback or network.is_unspecified:
        raise UsageError(f"{network} is not for hosts to use", hint="unique local subnets are in fd00::/8")
    return network


def parse_range(text: str, subnet: IPv4Network) -> tuple[str, str]:
    """`A-B` as the first and last address of DHCP; both inside `subnet`, the gateway outside of the range."""
    first_text, dash, last_text = text.partition("-")
    try:
        first, last = (ipaddress.IPv4Address(word.strip()) for word in (first_text, last_text))
    except ValueError:
        raise UsageError(
            f"'{printable(text)}' is not a range of addresses", hint=f"for instance {_example_range(subnet)}"
        ) from None
    if not dash or first > last:
        raise UsageError(f"{text} ends before it begins")
    for address in (first, last):
        if address not in subnet or address in (subnet.network_address, subnet.broadcast_address):
            raise UsageError(
                f"{address} is not a guest's address in {subnet}", hint=f"for instance {_example_range(subnet)}"
            )
    if first <= subnet[1] <= last:
        raise UsageError(f"{subnet[1]} is the gateway's address", hint=f"for instance {_example_range(subnet)}")
    return str(first), str(last)


def parse_forward(text: str, subnet: IPv4Network) -> Forward:
    """`tcp:HOSTPORT:GUEST:PORT`, or `tcp:ADDRESS:HOSTPORT:GUEST:PORT` for one address of the host."""
    words = text.split(":")
    if len(words) not in (4, 5) or words[0] not in ("tcp", "udp"):
        raise UsageError(
            f"'{printable(text)}' forwards no port",
            hint=f"write tcp:HOSTPORT:GUEST:PORT, for instance tcp:8080:{subnet[2]}:80",
        )
    host = _host_address(words[1], text) if len(words) == 5 else None
    try:
        guest = ipaddress.IPv4Address(words[-2])
    except ValueError:
        raise UsageError(f"'{printable(words[-2])}' in {printable(text)} is not an IPv4 address") from None
    if guest not in subnet or guest in (subnet.network_address, subnet.broadcast_address, subnet[1]):
        raise UsageError(f"{guest} in {printable(text)} is not a guest's address in {subnet}")
    return Forward(
        protocol=cast(Literal["tcp", "udp"], words[0]),
        host=host,
        host_port=_port(words[-3], text),
        guest=str(guest),
        guest_port=_port(words[-1], text),
    )


def warnings(config: Config) -> list[str]:
    """What is allowed and yet probably not meant."""
    found = []
    if config.subnet is not None:
        subnet = IPv4Network(config.subnet)
        if not any(subnet.subnet_of(private) for private in _PRIVATE):
            found.append(
                f"{subnet} is not private: guests and this host lose sight of the real {subnet} "
                "(private ones are in 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16)"
            )
    if config.ipv6_subnet is not None:
        subnet6 = ipaddress.IPv6Network(config.ipv6_subnet)
        if not subnet6.subnet_of(_UNIQUE_LOCAL):
            found.append(f"{subnet6} is not unique local (fd00::/8): this host loses sight of the real {subnet6}")
    return found


def _special(network: IPv4Network) -> bool:
    return (
        network.is_loopback
        or network.is_link_local
        or network.is_multicast
        or network.is_reserved
        or network.is_unspecified
        or network.network_address in IPv4Network("0.0.0.0/8")
    )


def _parse_forwards(texts: Sequence[str], subnet: IPv4Network) -> tuple[Forward, ...]:
    forwards = tuple(parse_forward(text, subnet) for text in texts)
    for number, forward in enumerate(forwards):
        for other in forwards[:number]:
            if clash(forward, other):
                raise UsageError(f"{forward} and {other} forward the same port of this host")
    return forwards


def clash(one: Forward, other: Forward) -> bool:
    """Whether a connection could be meant for both."""
    return (one.protocol, one.host_port) == (other.protocol, other.host_port) and (
        one.host is None or other.host is None or one.host == other.host
    )


def _host_address(word: str, text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(word))
    except ValueError:
        raise UsageError(f"'{printable(word)}' in {printable(text)} is not an IPv4 address") from None


def _port(word: str, text: str) -> int:
    if not (word.isascii() and word.isdigit() and 1 <= int(word) <= 65535):
        raise UsageError(f"'{printable(word)}' in {printable(text)} is no port", hint="ports are 1 to 65535")
    return int(word)


def _all_but_gateway(network: IPv4Network) -> tuple[str, str]:
    return str(network[2]), str(network[-2])


def _example_range(subnet: IPv4Network) -> str:
    return f"{subnet[2]}-{subnet[-2]}"


def _no_subnet(text: str) -> UsageError:
    return UsageError(f"'{printable(text)}' is not a subnet", hint="for instance 10.77.0.0/24")
