"""Networks and their cards."""

from __future__ import annotations

import re
from itertools import pairwise

from imgtool.errors import ConfigError
from imgtool.image.names import printable
from imgtool.machine.checks.context import Context, Problems, attempt, check_socket
from imgtool.machine.compile.networks import NO_CARDS, network_id, network_type, networks, nic_driver, split_forward
from imgtool.machine.options.text import suggestion
from imgtool.machine.values.network import (
    Address,
    Bridge,
    Dgram,
    Nat,
    Network,
    Passt,
    Socket,
    Stream,
    Tap,
    User,
    VhostUser,
)

SMBD = "/usr/sbin/smbd"
"""Where QEMU looks for it, unless it was built otherwise."""

_LONGEST_INTERFACE = 15
_MOST_QUEUES = 256
_QUEUED = (Tap, Nat, Bridge, VhostUser)
_HAVE = {"inet": ("host", "port"), "unix": ("path",), "fd": ("fd",)}


def check_networks(context: Context) -> Problems:
    found = networks(context.machine)
    for place, network in enumerate(found):
        name = f"--network {network.__struct_config__.tag}" + (f" #{place + 1}" if len(found) > 1 else "")
        if network.id is not None and not re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]*", network.id):
            yield ConfigError(
                f"{name}: id={printable(network.id)} is not a name for a network",
                hint="a letter, then letters, digits, dots and dashes",
            )
        yield from _card(context, name, network)
        yield from _mac(name, network.mac)
        yield from _queues(context, name, network)
        yield from _backend(context, name, network)
    yield from _twice(context, found)


def _card(context: Context, name: str, network: Network) -> Problems:
    board, capabilities = context.board, context.host.capabilities
    driver = nic_driver(network, board)
    cards = [card for card in capabilities.devices_in("Network") if card.name not in NO_CARDS]
    if driver.startswith("virtio-net") and not board.virtio:
        yield ConfigError(f"{name}: machine {board.name} has no PCI bus, so no virtio card", hint="model=ne2k_isa")
        return
    known = capabilities.device(driver)
    if cards and known not in cards:
        names = ["virtio", *(card.name for card in cards)]
        yield ConfigError(
            f"{name}: this QEMU has no network card {printable(network.model or driver)!r}",
            hint=suggestion(network.model or driver, names, more="`--nic-model help` says what they are"),
        )
    elif known is not None and known.bus == "PCI" and not board.pci:
        other = "model=virtio" if board.virtio else "model=ne2k_isa"
        yield ConfigError(f"{name}: machine {board.name} has no PCI bus for a {driver}", hint=other)
    elif known is not None and known.bus == "ISA" and board.family not in ("pc", "q35", "isapc"):
        yield ConfigError(f"{name}: machine {board.name} has no ISA slot for a {driver}", hint="model=virtio")
    if network.addr is not None and (known is None or known.bus != "PCI"):
        yield ConfigError(f"{name}: addr= is a PCI slot, and a {driver} here sits in none", hint="leave addr out")


def _mac(name: str, mac: str | None) -> Problems:
    if mac is None:
        return
    if not re.fullmatch(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}", mac):
        yield ConfigError(f"{name}: mac={printable(mac)} is not a MAC address", hint="write 52:54:00:12:34:56")
    elif int(mac[:2], 16) & 1:
        good = f"{int(mac[:2], 16) & 0xFE:02x}{mac[2:]}"
        yield ConfigError(
            f"{name}: mac={mac} is a multicast address: the lowest bit of its first byte is set",
            hint=f"a card has its own, such as {good}; QEMU's begin with 52:54:00",
        )
    elif not mac.replace(":", "").strip("0"):
        yield ConfigError(
            f"{name}: mac={mac} is nobody's address", hint="leave mac out and one is made from the name"
        )


def _queues(context: Context, name: str, network: Network) -> Problems:
    queues = network.queues or 1
    virtio = nic_driver(network, context.board).startswith("virtio-net")
    if queues > 1 and not isinstance(network, _QUEUED):
        yield ConfigError(f"{name}: queues={queues} is for tap, nat, bridge and vhost-user", hint="leave queues out")
    elif queues > 1 and not virtio:
        yield ConfigError(f"{name}: a {network.model} has one queue", hint="model=virtio has as many as it is given")
    elif queues > _MOST_QUEUES:
        yield ConfigError(f"{name}: queues={queues} is more than {_MOST_QUEUES}", hint="one for each CPU is plenty")
    if isinstance(network, Tap | Nat) and network.vhost and not virtio:
        yield ConfigError(f"{name}: vhost moves virtio packets, not those of a {network.model}", hint="model=virtio")


def _backend(context: Context, name: str, network: Network) -> Problems:
    kind, known = network_type(network), context.host.capabilities.netdevs
    if known and kind not in known:
        release = "; QEMU 7.2 brought it" if kind in ("stream", "dgram") else ""
        instead = "passt needs it" if isinstance(network, Passt) else f"it has {', '.join(known)}"
        yield ConfigError(f"{name}: this QEMU has no {kind} network{release}", hint=instead)
    if isinstance(network, User):
        yield from _user(name, network)
        if network.smb is not None and context.host.smbd is None:
            yield ConfigError(
                f"{name}: smb= is served by smbd, which was not found at {SMBD}",
                hint="apt-get install samba; --share PATH needs no program",
            )
    elif isinstance(network, Passt):
        yield from _passt(context, name, network)
    elif isinstance(network, Tap | Bridge | Nat):
        yield from _tap(context, name, network)
    elif isinstance(network, Socket):
        yield from _socket(name, network)
    elif isinstance(network, Stream):
        yield from _end(f"{name}: addr", network.address)
        keys = context.host.capabilities.netdev_keys.get("stream")
        if network.reconnect is not None and keys is not None and not {"reconnect", "reconnect-ms"} & set(keys):
            yield ConfigError(
                f"{name}: this QEMU ({context.host.capabilities.version.text}) cannot reconnect; QEMU 8.0 brought it",
                hint="leave reconnect out, and start the guest with server=on first",
            )
        if network.server and network.reconnect is not None:
            yield ConfigError(
                f"{name}: a server waits, it does not reconnect", hint="reconnect= is for the other guest"
            )
    elif isinstance(network, Dgram):
        yield from _dgram(name, network)
    else:
        yield from check_socket(name, network.path)


def _forwards(name: str, rules: tuple[str, ...]) -> Problems:
    for rule in rules:
        problems: list[ConfigError] = []
        found = attempt(lambda rule=rule: split_forward(rule), problems)  # type: ignore[misc]
        yield from problems
        if found is None:
            continue
        protocol, address, port, guest = found
        if protocol not in ("tcp", "udp"):
            yield ConfigError(f"{name}: hostfwd carries tcp or udp, not {printable(protocol)!r}")
        if not (0 < int(port) <= 65535 and 0 < int(guest.rpartition(":")[2]) <= 65535):
            yield ConfigError(f"{name}: hostfwd={printable(rule)}: a port is 1 to 65535")
        if address and not _is_address(address):
            yield ConfigError(
                f"{name}: hostfwd={printable(rule)}: {printable(address)!r} is not an address of this host"
            )


def _is_address(text: str) -> bool:
    from ipaddress import ip_address

    try:
        ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _is_multicast(text: str) -> bool:
    from ipaddress import ip_address

    return _is_address(text) and ip_address(text).is_multicast


def _user(name: str, network: User) -> Problems:
    yield from _forwards(name, network.hostfwd)
    if network.ipv4 is False and network.ipv6 is False:
        yield ConfigError(f"{name}: without IPv4 and IPv6 nothing is left", hint="--network none is no network")
    if network.ipv4 is False and network.hostfwd:
        yield ConfigError(f"{name}: hostfwd goes over IPv4, which is off", hint="leave ipv4=off out")
    if network.bootfile is not None and network.tftp is None:
        yield ConfigError(f"{name}: bootfile is fetched over TFTP", hint="tftp=FOLDER says where it lies")
    if network.smbserver is not None and network.smb is None:
        yield ConfigError(f"{name}: smbserver is the address of smb=", hint="smb=FOLDER says what it serves")
    asked = (network.net, network.host, network.dns, network.dhcpstart)
    if network.guestfwd or asked != (None, None, None, None):
        yield from _subnet(name, network)


def _subnet(name: str, network: User) -> Problems:
    """What lies in the guest's net: its own addresses, and those that guestfwd answers at."""
    from ipaddress import IPv4Network, ip_address, ip_network

    text = network.net or "10.0.2.0/24"
    try:
        found = ip_network(text if "/" in text else f"{text}/24", strict=False)
    except ValueError:
        yield ConfigError(f"{name}: net={printable(text)} is not a subnet", hint="write 10.0.2.0/24")
        return
    for key in ("host", "dns", "dhcpstart"):
        value = getattr(network, key)
        if value is None:
            continue
        if not _is_address(value):
            yield ConfigError(f"{name}: {key}={printable(value)} is not an address")
        elif isinstance(found, IPv4Network) and ip_address(value) not in found:
            yield ConfigError(f"{name}: {key}={value} is outside of the guest's net, {found}", hint="set net= too")
    if network.host is not None and network.host == network.dns:
        yield ConfigError(f"{name}: host and dns are two addresses of the net, not one")
    for rule in network.guestfwd:
        match = re.fullmatch(r"(?:tcp)?:([^:]*):([0-9]+)-(?:cmd:)?.+", rule)
        if match is None or not 0 < int(match[2]) <= 65535 or (match[1] and not _is_address(match[1])):
            yield ConfigError(
                f"{name}: guestfwd={printable(rule)} is not a forward",
                hint="write tcp:ADDRESS:PORT-cmd:COMMAND, or a device of the host behind the dash: tcp:127.0.0.1:80",
            )
        elif match[1] and isinstance(found, IPv4Network) and ip_address(match[1]) not in found:
            yield ConfigError(
                f"{name}: guestfwd={printable(rule)}: {match[1]} is outside of the guest's net, {found}",
                hint=f"take an address in it that nobody has, such as {found.broadcast_address - 1}",
            )


def _passt(context: Context, name: str, network: Passt) -> Problems:
    yield from _forwards(name, network.hostfwd)
    if context.host.passt is None:
        yield ConfigError(
            f"{name}: passt was not found on PATH", hint="apt-get install passt; --network user needs no program"
        )


def _tap(context: Context, name: str, network: Tap | Bridge | Nat) -> Problems:
    if isinstance(network, Nat):
        if network.net not in context.host.bridges:
            yield ConfigError(
                f"{name}: there is no network {printable(network.net)!r}",
                hint=f"make it: imgtool net create {printable(network.net)} --nat 192.168.100.0/24",
            )
        return
    for key, value in (("br", network.br), ("ifname", getattr(network, "ifname", None))):
        if value is not None and (len(value) > _LONGEST_INTERFACE or not value or "/" in value):
            yield ConfigError(
                f"{name}: {key}={printable(value)} cannot be an interface",
                hint=f"a name has {_LONGEST_INTERFACE} bytes at most",
            )
    if isinstance(network, Tap) and network.br is not None and network.script not in (None, "no"):
        yield ConfigError(f"{name}: br= and script= both connect the tap", hint="keep one")


def _socket(name: str, network: Socket) -> Problems:
    ways = [key for key in ("listen", "connect", "mcast", "udp") if getattr(network, key) is not None]
    if len(ways) != 1:
        yield ConfigError(
            f"{name}: {' and '.join(ways) or 'nothing'} says how to reach the other guest",
            hint="exactly one of listen=, connect=, mcast=, udp=",
        )
        return
    where = getattr(network, ways[0])
    host, colon, port = where.rpartition(":")
    lowest = 0 if ways[0] == "listen" else 1
    if not colon or not port.isdecimal() or not lowest <= int(port) <= 65535:
        yield ConfigError(f"{name}: {ways[0]}={printable(where)} has no port", hint=f"write {ways[0]}=127.0.0.1:4444")
    elif ways[0] == "mcast" and not _is_multicast(host):
        yield ConfigError(f"{name}: {printable(host)} is not a multicast address", hint="write mcast=230.0.0.1:4444")
    if ways[0] == "udp" and network.localaddr is None:
        yield ConfigError(
            f"{name}: udp= sends, localaddr= receives", hint="give both, each guest the other way round"
        )
    elif ways[0] in ("listen", "connect") and network.localaddr is not None:
        yield ConfigError(f"{name}: localaddr is for mcast and udp")


def _dgram(name: str, network: Dgram) -> Problems:
    if network.local is None and network.remote is None:
        yield ConfigError(f"{name} needs local.type= and remote.type=", hint="or a multicast remote alone")
    for key, end in (("local", network.local), ("remote", network.remote)):
        if end is not None:
            yield from _end(f"{name}: {key}", end)


def _end(name: str, end: Address) -> Problems:
    needed = _HAVE.get(end.type)
    if needed is None:
        yield ConfigError(f"{name}.type={printable(end.type)}", hint=suggestion(end.type, list(_HAVE)))
        return
    lacking = [key for key in needed if getattr(end, key) is None]
    if lacking:
        said = {"fd": "str"}
        yield ConfigError(
            f"{name}.type={end.type} needs {name.rpartition(' ')[2]}.{said.get(lacking[0], lacking[0])}="
        )
    if end.path is not None:
        yield from check_socket(name, end.path)
    if end.port is not None and not (end.port.isdecimal() and 0 < int(end.port) <= 65535):
        yield ConfigError(f"{name}.port={printable(end.port)} is no port", hint="a port is 1 to 65535")


def _twice(context: Context, found: tuple[Network, ...]) -> Problems:
    ids = sorted(network_id(network, place) for place, network in enumerate(found))
    macs = sorted(network.mac.lower() for network in found if network.mac)
    taps = sorted(network.ifname for network in found if isinstance(network, Tap) and network.ifname)
    for what, values in (("id", ids), ("mac", macs), ("ifname", taps)):
        for one, other in pairwise(values):
            if one == other:
                yield ConfigError(f"two networks have {what}={printable(one)}", hint="each needs its own")
    yield from _forwarded_twice(
        [rule for network in found if isinstance(network, User | Passt) for rule in network.hostfwd]
    )


def _forwarded_twice(rules: list[str]) -> Problems:
    taken: list[tuple[str, str, str]] = []
    for rule in rules:
        parts = attempt(lambda rule=rule: split_forward(rule), [])  # type: ignore[misc]
        if parts is None:
            continue
        protocol, address, port = parts[0], parts[1] or "127.0.0.1", parts[2]
        for other in taken:
            if other[::2] == (protocol, port) and (other[1] == address or "0.0.0.0" in (other[1], address)):
                yield ConfigError(
                    f"{protocol} port {port} of the host is forwarded twice", hint="give one of them another port"
                )
        taken.append((protocol, address, port))
