"""What the host says to a network that is asked for: who has its addresses, its ports, its names."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from imgtool.errors import MachineError, RefusedError
from imgtool.image.names import printable
from imgtool.machine.nets import ask, forwarding, iproute
from imgtool.machine.nets.iproute import Link, SeenAddress, SeenRoute
from imgtool.machine.nets.values import Config, Forward
from imgtool.qemu.process import Runner

Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network

_LISTENING = "0A"
"""TCP_LISTEN in /proc/net/tcp; a UDP socket waits in 07."""


def check_bridge_is_free(config: Config, links: Sequence[Link]) -> None:
    for link in links:
        if link.ifname == config.bridge:
            raise RefusedError(
                f"there is an interface {config.bridge} already, which is not of this network",
                hint="choose another name with --bridge-name",
            )


def check_subnets(config: Config, ip: str, runner: Runner) -> None:
    """RefusedError where an address or route of the host lies in a subnet of the network's, or around it."""
    addresses = iproute.seen_addresses(ip, runner)
    for family, text in ((4, config.subnet), (6, config.ipv6_subnet)):
        if text is None:
            continue
        routes = iproute.ask(iproute.routes_argv(ip, family), list[SeenRoute], runner)
        holders = list(_holders(family, addresses, routes))
        wanted = ipaddress.ip_network(text)
        for held, who in holders:
            if _overlap(wanted, held):
                free = _free_subnet([net for net, _ in holders]) if family == 4 else None
                raise RefusedError(
                    f"{wanted} overlaps {held}, which is {who}",
                    hint=(f"{free} is free here" if free else "choose another subnet")
                    + "; --force takes it nevertheless",
                )


def check_forwards(config: Config, others: Iterable[Config]) -> None:
    """RefusedError where a port to be forwarded belongs to another network, or something listens to it here."""
    for forward in config.forwards:
        for other in others:
            for theirs in other.forwards:
                if ask.clash(forward, theirs):
                    raise RefusedError(
                        f"{forward} takes a port that the network {other.name} forwards already ({theirs})",
                        hint="choose another port of this host",
                    )


def check_ports(config: Config) -> None:
    """RefusedError where a forwarded port would take the connections of a service of this host."""
    for forward in config.forwards:
        if _listened_to(forward):
            raise RefusedError(
                f"something on this host listens to {forward.protocol} port {forward.host_port}, and would get no "
                "connections any more",
                hint=f"`ss -lnp sport = :{forward.host_port}` shows what; choose another port, or say --force",
            )


def check_router_advertisements(config: Config, ip: str, runner: Runner) -> None:
    """RefusedError where turning on IPv6 forwarding would cost the host its own IPv6 default route: a host that
    routes stops listening to routers (accept_ra 1; ip-sysctl.rst)."""
    if forwarding.IPV6 not in forwarding.wanted(config) or forwarding.read(forwarding.IPV6) != "0":
        return
    routes = iproute.ask(iproute.routes_argv(ip, 6, "main"), list[SeenRoute], runner)
    for route in routes:
        device = route.dev or ""
        setting = f"net/ipv6/conf/{device}/accept_ra"
        if route.dst == "default" and route.protocol == "ra" and forwarding.read(setting) != "2":
            raise RefusedError(
                f"{printable(device)} learns its IPv6 default route from a router, and would lose it with --ipv6",
                hint=f"`sysctl -w {setting}=2` keeps it; then try again",
            )


def check_made_here(name: str, made_in: int, here: int) -> None:
    if made_in != here:
        raise MachineError(
            f"the network {name} was made in another network namespace",
            hint="run imgtool there (`nsenter --net`, `ip netns exec`); "
            f"if that is gone, `imgtool net delete --force {name}` forgets the network",
        )


def _holders(
    family: int, addresses: Iterable[tuple[str, SeenAddress]], routes: Iterable[SeenRoute]
) -> Iterable[tuple[Subnet, str]]:
    wanted = "inet6" if family == 6 else "inet"
    for device, address in addresses:
        if address.family == wanted and address.local and address.scope != "link":
            network = ipaddress.ip_interface(f"{address.local}/{address.prefixlen}").network
            yield network, f"that of {printable(device)} ({address.local})"
    for route in routes:
        if route.dst != "default" and route.type in ("unicast", "blackhole", "unreachable", "prohibit"):
            devices = ", ".join(sorted(printable(device) for device in route.devices))
            gateway = f" via {route.gateway}" if route.gateway else ""
            yield (
                ipaddress.ip_network(route.dst),
                f"routed{gateway}" + (f" through {devices}" if devices else " away"),
            )


def _overlap(one: Subnet, other: Subnet) -> bool:
    # Everything lies in a route as wide as the default one (VPNs split that in two: 0.0.0.0/1 and 128.0.0.0/1).
    return one.version == other.version and other.prefixlen > 1 and one.overlaps(other)


def _free_subnet(taken: Sequence[Subnet]) -> ipaddress.IPv4Network | None:
    for candidate in ipaddress.IPv4Network("10.77.0.0/16").subnets(new_prefix=24):
        if not any(_overlap(candidate, held) for held in taken):
            return candidate
    return None


def _listened_to(forward: Forward) -> bool:
    for suffix in ("", "6"):
        try:
            with open(f"/proc/net/{forward.protocol}{suffix}") as file:
                rows = [line.split() for line in file.readlines()[1:]]
        except OSError:
            continue
        for row in rows:
            address, _, port = row[1].rpartition(":")
            waiting = row[3] == _LISTENING if forward.protocol == "tcp" else row[2].endswith(":0000")
            if waiting and int(port, 16) == forward.host_port and _meets(address, forward.host):
                return True
    return False


def _meets(address: str, host: str | None) -> bool:
    """Whether a socket at `address` (hex, in the words of /proc/net/tcp: each 32-bit word as the host stores it) gets
    what comes to `host`."""
    if host is None or set(address) == {"0"}:
        return True
    last = bytes.fromhex(address[-8:])
    return str(ipaddress.IPv4Address(last[::-1])) == host
