"""Putting a NIC into a bridge, which takes over its addresses and routes; and the way back."""

from __future__ import annotations

import ipaddress
import os
import time
from typing import Any, TypeVar

import msgspec

from imgtool.errors import CommandError, MachineError, RefusedError
from imgtool.image.names import printable
from imgtool.machine.nets import iproute
from imgtool.machine.nets.iproute import Address, Link, Route, SeenRoute
from imgtool.machine.nets.journal import NicMoved
from imgtool.qemu.process import Runner

_UNSUITABLE = {
    "bridge": "is a bridge itself: give `--network bridge,br=…` its name",
    "tun": "is a tap or tunnel",
    "dummy": None,
    "veth": None,
    "vlan": None,
    "bond": None,
    "team": None,
    "macvlan": None,
    "wireguard": "is a tunnel",
    "ipvlan": "shares its MAC address, so that nothing behind a bridge on it would get an answer",
}
"""Why an interface of a kind cannot be in a bridge; None where it can."""


def look(ip: str, nic: str, bridge: str, runner: Runner) -> tuple[Link, NicMoved]:
    """The NIC and all that has to be put back on it one day. MachineError when it cannot be in a bridge, RefusedError
    when it has something that imgtool could not put back as it was."""
    link = iproute.find_link(ip, nic, runner)
    _check_suitable(nic, link)
    assert link is not None
    raw = iproute.ask(iproute.addresses_argv(ip, nic), list[iproute.AddressedLink], runner)
    entries = [entry for seen in raw for entry in seen.addr_info if not _kernels_own(entry)]
    addresses = tuple(_strictly(entry, Address, nic) for entry in entries)
    routes = tuple(_routes(ip, 4, nic, runner))
    routes6 = tuple(_routes(ip, 6, nic, runner))
    return link, NicMoved(
        nic=nic,
        bridge=bridge,
        up=link.up,
        addresses=addresses,
        routes=tuple(route for route in routes if not _made_by_address(route, addresses)),
        routes6=tuple(route for route in routes6 if not _made_by_address(route, addresses)),
        when=int(time.time()),
    )


def move_argvs(ip: str, moved: NicMoved) -> list[list[str]]:
    """From the NIC to the bridge, which is up already."""
    argvs = [iproute.join_argv(ip, moved.nic, moved.bridge)]
    argvs += [[ip, "-6", "route", "delete", *_words(route, moved.nic)] for route in moved.routes6]
    argvs += _flush(ip, moved)
    return argvs + _put(ip, moved, moved.bridge, passed=0)


def back_argvs(ip: str, moved: NicMoved, link: Link | None, addresses: list[Address], *, now: int) -> list[list[str]]:
    """From the bridge, which is gone, to the NIC, which has `addresses` now."""
    if link is None:
        return []  # the NIC itself went away, with all it had
    argvs = []
    if link.master == moved.bridge:
        argvs.append(iproute.leave_argv(ip, moved.nic))
    if moved.up and not link.up:
        argvs.append(iproute.up_argv(ip, moved.nic))
    passed = max(now - moved.when, 0)
    if [_identity(address) for address in addresses] != [_identity(address) for address in moved.addresses]:
        argvs += _flush(ip, moved) if addresses else []
        argvs += _put(ip, moved, moved.nic, passed=passed)
    else:
        argvs += _put_routes(ip, moved, moved.nic, passed=passed)
    if link.up and not moved.up:
        argvs.append(iproute.down_argv(ip, moved.nic))
    return argvs


def present_addresses(ip: str, nic: str, runner: Runner) -> list[Address]:
    """What the NIC has now of the kind that was moved."""
    raw = iproute.ask(iproute.addresses_argv(ip), list[iproute.AddressedLink], runner)
    entries = [entry for seen in raw if seen.ifname == nic for entry in seen.addr_info if not _kernels_own(entry)]
    return [msgspec.convert(entry, Address, strict=False) for entry in entries]


def session_reasons(ip: str, nic: str, runner: Runner, *, client: str | None) -> list[str]:
    """Why whoever types this may lose the connection when `nic` goes into a bridge. `client` is the address that an
    SSH session comes from."""
    reasons = []
    if client is not None:
        try:
            found = iproute.ask(iproute.route_to_argv(ip, client), list[SeenRoute], runner)
        except CommandError:
            found = []  # no way there from here
        if any(nic in route.devices for route in found):
            reasons.append(f"the SSH session from {printable(client)} comes in through it")
    routes = [
        route
        for family in (4, 6)
        for route in iproute.ask(iproute.routes_argv(ip, family, "main"), list[SeenRoute], runner)
    ]
    if any(route.dst == "default" and nic in route.devices for route in routes):
        reasons.append("the default route goes through it")
    links = iproute.links(ip, runner)
    others = [link for link in links if link.ifname != nic and link.up and _is_nic(link)]
    if not others and any(link.ifname == nic and link.up for link in links):
        reasons.append("it is the only NIC that is up")
    return reasons


def ssh_client() -> str | None:
    """The address that this SSH session comes from: sshd sets SSH_CONNECTION, and sudo takes it away again, so that
    the processes above this one are asked, too."""
    value = os.environ.get("SSH_CONNECTION")
    pid = os.getpid()
    while not value and pid > 1:
        pid = _parent(pid)
        value = _variable(pid, b"SSH_CONNECTION")
    words = (value or "").split()
    try:
        return str(ipaddress.ip_address(words[0].partition("%")[0])) if words else None
    except ValueError:
        return None


def _check_suitable(nic: str, link: Link | None) -> None:
    shown = printable(nic)
    if link is None:
        raise MachineError(f"there is no interface {shown}", hint="`ip -brief link` lists them")
    reason = None
    if link.master:
        reason = f"is in {printable(link.master)} already"
    elif "LOOPBACK" in link.flags or link.link_type != "ether":
        reason = "is not an Ethernet interface"
    elif os.path.isdir(f"/sys/class/net/{nic}/wireless") or os.path.isdir(f"/sys/class/net/{nic}/phy80211"):
        reason = "is a wireless interface: an access point takes frames of this host alone"
    elif link.kind is not None:
        reason = _UNSUITABLE.get(link.kind)
    if reason is not None:
        raise MachineError(
            f"{shown} cannot go into a bridge: it {reason}",
            hint="`imgtool net create NAME --nat SUBNET` needs no NIC",
        )


def _is_nic(link: Link) -> bool:
    """Whether a session could come through `link`, rather than stay on this host."""
    return "LOOPBACK" not in link.flags and link.link_type == "ether" and link.kind in _CARRIERS and not link.master


def _kernels_own(entry: dict[str, Any]) -> bool:
    """What the kernel gives an interface by itself: IPv6 link-local addresses, and passing ones for privacy."""
    return entry.get("family") == "inet6" and (entry.get("scope") == "link" or bool(entry.get("temporary")))


def _routes(ip: str, family: int, nic: str, runner: Runner) -> list[Route]:
    raw = iproute.ask(iproute.routes_argv(ip, family), list[dict[str, Any]], runner)
    found = []
    for entry in raw:
        if any(hop.get("dev") == nic for hop in entry.get("nexthops", ())):
            raise RefusedError(
                f"{printable(nic)} has a part in the multipath route to {printable(str(entry.get('dst')))}, which "
                "imgtool cannot move",
                hint="delete that route first, or make the bridge by hand and use `--network bridge,br=…`",
            )
        if entry.get("dev") == nic and entry.get("table") != "local" and not _link_scoped(entry):
            found.append(_strictly(entry, Route, nic))
    return found


def _link_scoped(entry: dict[str, Any]) -> bool:
    destination = str(entry.get("dst"))
    return destination.startswith(("fe80::/", "ff00::/")) and entry.get("protocol") == "kernel"


_CARRIERS = (None, "veth", "bond", "team", "vlan", "macvlan")

T = TypeVar("T", Address, Route)


def _strictly(entry: dict[str, Any], kind: type[T], nic: str) -> T:
    entry = dict(entry)
    if "flags" in entry:  # the state of the moment
        entry["flags"] = [flag for flag in entry["flags"] if flag not in ("linkdown", "dead")]
    try:
        return msgspec.convert(entry, kind)
    except msgspec.ValidationError as error:
        what = entry.get("local") or entry.get("dst")
        raise RefusedError(
            f"{printable(nic)} has {printable(str(what))} with properties that imgtool could not put back: {error}",
            hint="make the bridge by hand and use `--network bridge,br=…`",
        ) from None


def _made_by_address(route: Route, addresses: tuple[Address, ...]) -> bool:
    """Whether the kernel makes `route` when its address is added (fib_add_ifaddr, addrconf_prefix_route)."""
    if route.protocol != "kernel" or route.gateway or route.table != "main":
        return False
    metric = 256 if ":" in route.dst else 0
    for address in addresses:
        if address.noprefixroute:
            continue
        peer = ipaddress.ip_interface(f"{address.address or address.local}/{address.prefixlen}").network
        own = (address.metric or metric) == (route.metric or 0)
        if own and ipaddress.ip_network(route.dst) == peer:
            return True
    return False


def _identity(address: Address) -> tuple[Any, ...]:
    return (address.interface, address.address, address.broadcast, address.scope, address.label, address.metric)


def _flush(ip: str, moved: NicMoved) -> list[list[str]]:
    families = {address.family for address in moved.addresses}
    argvs = []
    if "inet" in families:
        argvs.append([ip, "-4", "address", "flush", "dev", moved.nic])
    if "inet6" in families:
        argvs.append([ip, "-6", "address", "flush", "dev", moved.nic, "scope", "global"])
    return argvs


def _put(ip: str, moved: NicMoved, device: str, *, passed: int) -> list[list[str]]:
    # The kernel lists the IPv4 addresses of an interface oldest first, the IPv6 ones newest first.
    four = [address for address in moved.addresses if address.family == "inet"]
    six = [address for address in moved.addresses if address.family == "inet6"]
    argvs = [
        iproute.put_address_argv(ip, address, device, passed=passed, old_device=moved.nic)
        for address in (*four, *reversed(six))
        if address.valid_life_time > passed
    ]
    return argvs + _put_routes(ip, moved, device, passed=passed)


def _put_routes(ip: str, moved: NicMoved, device: str, *, passed: int) -> list[list[str]]:
    return [
        [ip, family, "route", "replace", *_words(route, device, passed=passed)]
        for family, routes in (("-4", moved.routes), ("-6", moved.routes6))
        for route in sorted(routes, key=_reach)
        if route.expires is None or route.expires > passed
    ]


def _reach(route: Route) -> int:
    """Routes to gateways come before those through them."""
    return 0 if not (route.gateway or route.via) else 1 if route.dst != "default" else 2


def _words(route: Route, device: str, *, passed: int = 0) -> list[str]:
    return iproute.route_words(route, device, passed=passed)


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        return 0


def _variable(pid: int, name: bytes) -> str | None:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            for word in file.read().split(b"\0"):
                key, _, value = word.partition(b"=")
                if key == name:
                    return os.fsdecode(value)
    except OSError:
        pass
    return None
