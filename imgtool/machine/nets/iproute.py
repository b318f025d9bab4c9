"""`ip` from iproute2: its argv, and its JSON as typed values (iproute2 5.10 and newer)."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from imgtool.errors import DecodeError
from imgtool.image.names import printable
from imgtool.qemu.process import Limits, Runner, failure

LIMITS = Limits(seconds=30)
FOREVER = 2**32 - 1
"""The lifetime of an address that has none."""


class LinkInfo(msgspec.Struct, frozen=True):
    info_kind: str | None = None
    info_slave_kind: str | None = None


class Link(msgspec.Struct, frozen=True):
    """An interface, as `ip -json -details link` shows it."""

    ifname: str
    flags: tuple[str, ...] = ()
    mtu: int = 0
    master: str | None = None
    link_type: str = ""
    address: str | None = None
    linkinfo: LinkInfo = LinkInfo()

    @property
    def kind(self) -> str | None:
        return self.linkinfo.info_kind

    @property
    def up(self) -> bool:
        return "UP" in self.flags


class Address(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An address of an interface. Only what imgtool can give back exactly: anything else does not decode."""

    family: str
    local: str
    prefixlen: int
    broadcast: str | None = None
    address: str | None = None
    """The other end of a point-to-point address."""
    scope: str = "global"
    label: str | None = None
    metric: int | None = None
    protocol: str | None = None
    valid_life_time: int = FOREVER
    preferred_life_time: int = FOREVER
    noprefixroute: bool = False
    nodad: bool = False
    mngtmpaddr: bool = False
    home: bool = False
    autojoin: bool = False
    # States that the kernel works out by itself.
    secondary: bool = False
    dynamic: bool = False
    tentative: bool = False
    dadfailed: bool = False
    deprecated: bool = False
    optimistic: bool = False
    temporary: bool = False
    permanent: bool = False
    stable_privacy: bool = msgspec.field(name="stable-privacy", default=False)

    @property
    def interface(self) -> str:
        return f"{self.local}/{self.prefixlen}"


class Metrics(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a route says of the connections over it, as far as `ip` takes back the very words it shows."""

    mtu: int | None = None
    advmss: int | None = None
    window: int | None = None
    hoplimit: int | None = None
    initcwnd: int | None = None
    initrwnd: int | None = None
    quickack: int | None = None


class Route(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A route, as `ip -json -details route show` has it; strict like Address."""

    dst: str
    type: str = "unicast"
    gateway: str | None = None
    via: dict[str, str] | None = None
    dev: str | None = None
    table: str = "main"
    protocol: str = "boot"
    scope: str = "global"
    prefsrc: str | None = None
    src: str | None = msgspec.field(name="from", default=None)
    tos: str | None = None
    metric: int | None = None
    pref: str | None = None
    expires: int | None = None
    flags: tuple[str, ...] = ()
    metrics: tuple[Metrics, ...] = ()


class Hop(msgspec.Struct, frozen=True):
    dev: str | None = None


class SeenAddress(msgspec.Struct, frozen=True):
    """An address of any kind, for looking only."""

    family: str
    local: str | None = None
    prefixlen: int = 0
    scope: str = "global"


class SeenRoute(msgspec.Struct, frozen=True):
    """A route of any kind, for looking only."""

    dst: str
    type: str = "unicast"
    dev: str | None = None
    table: str = "main"
    protocol: str = ""
    gateway: str | None = None
    nexthops: tuple[Hop, ...] = ()

    @property
    def devices(self) -> set[str]:
        return {hop.dev for hop in self.nexthops if hop.dev} | ({self.dev} if self.dev else set())


class AddressedLink(msgspec.Struct, frozen=True):
    """An interface with its addresses, as `ip -json address` shows it; each address as it came."""

    ifname: str = ""
    addr_info: tuple[dict[str, Any], ...] = ()


T = TypeVar("T")


def links_argv(ip: str) -> list[str]:
    return [ip, "-json", "-details", "link", "show"]


def addresses_argv(ip: str, device: str | None = None) -> list[str]:
    return [ip, "-json", "address", "show", *(("dev", device) if device else ())]


def routes_argv(ip: str, family: int, table: str = "all") -> list[str]:
    return [ip, "-json", "-details", f"-{family}", "route", "show", "table", table]


def route_to_argv(ip: str, address: str) -> list[str]:
    return [ip, "-json", "route", "get", address]


def add_bridge_argv(ip: str, name: str, mac: str, mtu: int | None) -> list[str]:
    """A bridge that forwards at once: without spanning tree there is no loop to listen for."""
    size = ("mtu", str(mtu)) if mtu else ()
    return [
        *(ip, "link", "add", "name", name, "address", mac, *size),
        *("type", "bridge", "stp_state", "0", "forward_delay", "0"),
    ]


def delete_link_argv(ip: str, name: str) -> list[str]:
    return [ip, "link", "delete", "dev", name]


def up_argv(ip: str, name: str) -> list[str]:
    return [ip, "link", "set", "dev", name, "up"]


def down_argv(ip: str, name: str) -> list[str]:
    return [ip, "link", "set", "dev", name, "down"]


def join_argv(ip: str, name: str, bridge: str) -> list[str]:
    return [ip, "link", "set", "dev", name, "master", bridge, "up"]


def leave_argv(ip: str, name: str) -> list[str]:
    return [ip, "link", "set", "dev", name, "nomaster"]


def plug_tap_argv(ip: str, name: str, bridge: str, mac: str, mtu: int) -> list[str]:
    """Puts a tap into a bridge, without an address of the host's own on it."""
    return [
        *(ip, "link", "set", "dev", name, "address", mac, "mtu", str(mtu)),
        *("addrgenmode", "none", "master", bridge, "up"),
    ]


def add_address_argv(ip: str, interface: str, device: str) -> list[str]:
    """`interface` is address/prefix. IPv6 without duplicate detection: an empty bridge has no carrier to ask on, and
    dnsmasq needs the address at once."""
    if ":" in interface:
        return [ip, "-6", "address", "add", interface, "dev", device, "nodad"]
    return [ip, "address", "add", interface, "broadcast", "+", "dev", device]


def put_address_argv(ip: str, address: Address, device: str, *, passed: int, old_device: str) -> list[str]:
    """Gives `device` an address that `old_device` had `passed` seconds ago. A label begins with the device's name."""
    words = [ip, "-6" if address.family == "inet6" else "-4", "address", "replace"]
    if address.address:
        words += [address.local, "peer", f"{address.address}/{address.prefixlen}"]
    else:
        words.append(address.interface)
    if address.broadcast:
        words += ["broadcast", address.broadcast]
    if address.label and address.label != old_device:
        label = device + address.label.removeprefix(old_device)
        if len(label) <= 15:
            words += ["label", label]
    if address.scope != "global":
        words += ["scope", address.scope]
    if address.metric is not None:
        words += ["metric", str(address.metric)]
    if address.protocol and not address.protocol.startswith("kernel"):
        words += ["proto", address.protocol]
    words += ["dev", device]
    for word, seconds in (("valid_lft", address.valid_life_time), ("preferred_lft", address.preferred_life_time)):
        if seconds != FOREVER:
            words += [word, str(max(seconds - passed, 0))]
    words += [flag for flag in ("noprefixroute", "nodad", "mngtmpaddr", "home", "autojoin") if getattr(address, flag)]
    return words


def route_words(route: Route, device: str, *, passed: int) -> list[str]:
    """`route` in the words of `ip route`, through `device`."""
    words = [] if route.type == "unicast" else [route.type]
    words.append(route.dst)
    if route.via:
        words += ["via", route.via["family"], route.via["host"]]
    is_ipv6 = route.pref is not None
    named = {
        "from": route.src,
        "tos": route.tos,
        "via": route.gateway,
        "dev": device,
        "table": route.table,
        "protocol": route.protocol,
        "scope": None if is_ipv6 else route.scope,
        "src": route.prefsrc,
        "metric": route.metric,
        "pref": None if route.pref == "medium" else route.pref,
        "expires": None if route.expires is None else max(route.expires - passed, 1),
    }
    for metrics in route.metrics:
        named |= msgspec.structs.asdict(metrics)
    for name, value in named.items():
        if value is not None:
            words += [name, str(value)]
    if "onlink" in route.flags:
        words.append("onlink")
    return words


def ask(argv: list[str], type: type[T], runner: Runner) -> T:
    """Runs a showing `ip` and decodes its answer. DecodeError when that is something else."""
    done = runner(argv, limits=LIMITS)
    if done.status != 0:
        raise failure(done)
    try:
        # With nothing to show, older versions print nothing at all.
        return msgspec.json.decode(done.stdout.strip() or b"[]", type=type)
    except msgspec.MsgspecError as error:
        raise DecodeError(f"{printable(' '.join(argv))} answers what imgtool cannot read: {error}") from None


def links(ip: str, runner: Runner) -> list[Link]:
    """All interfaces. The empty objects that some versions print for what they filtered out are left out."""
    raw = ask(links_argv(ip), list[dict[str, Any]], runner)
    return msgspec.convert([entry for entry in raw if "ifname" in entry], list[Link])


def find_link(ip: str, name: str, runner: Runner) -> Link | None:
    return next((link for link in links(ip, runner) if link.ifname == name), None)


def seen_addresses(ip: str, runner: Runner) -> list[tuple[str, SeenAddress]]:
    """(interface, address) of every address here."""
    found = ask(addresses_argv(ip), list[AddressedLink], runner)
    return [(link.ifname, msgspec.convert(entry, SeenAddress)) for link in found for entry in link.addr_info]
