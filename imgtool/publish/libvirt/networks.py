"""Networks: libvirt's interfaces."""

from __future__ import annotations

from xml.etree.ElementTree import Element

from imgtool.machine.compile.networks import split_forward
from imgtool.machine.config import Machine
from imgtool.machine.values.network import (
    Bridge,
    Nat,
    Network,
    Passt,
    Socket,
    Tap,
    User,
    VhostUser,
)
from imgtool.publish.libvirt.words import Notes, put, put_alias, put_pci

_CARD = ["model", "mac", "id", "bootindex"]
_SOCKETS = {"listen": "server", "connect": "client", "mcast": "mcast"}


def add_networks(devices: Element, machine: Machine, notes: Notes) -> None:
    for place, network in enumerate(machine.networks or ()):
        setting = f"network[{place}]"
        card = _interface(devices, network, setting, notes)
        if card is None:
            notes.add(setting, f"libvirt has no {type(network).__struct_config__.tag} network of this kind")
            continue
        put(card, "mac", address=network.mac)
        put(card, "model", type=network.model)
        _add_driver(card, network, setting, notes)
        if network.bootindex is not None:
            put(card, "boot", order=network.bootindex)
        put_alias(card, network.id, setting, notes)
        if network.addr is not None and not put_pci(card, network.addr):
            notes.add(f"{setting}.addr", "it is not a PCI slot")


def _add_driver(card: Element, network: Network, setting: str, notes: Notes) -> None:
    vhost = network.vhost if isinstance(network, Tap | Nat) else None
    if vhost is not None or network.queues is not None:
        name = None if vhost is None else "vhost" if vhost else "qemu"
        put(card, "driver", name=name, queues=network.queues)
    if isinstance(network, Tap) and network.sndbuf is not None:
        put(put(card, "tune"), "sndbuf", network.sndbuf)


def _interface(devices: Element, network: Network, setting: str, notes: Notes) -> Element | None:
    known = [*_CARD, "queues", "addr"]
    if isinstance(network, User):
        card = put(devices, "interface", type="user")
        known += _addresses(card, network)
        notes.rest(network, setting, known, "libvirt says it of passt only, or not at all: type = passt")
    elif isinstance(network, Passt):
        card = put(devices, "interface", type="user")
        put(card, "backend", type="passt")
        for place, rule in enumerate(network.hostfwd):
            _forward(card, rule, f"{setting}.hostfwd[{place}]", notes)
        notes.rest(network, setting, [*known, "hostfwd"])
    elif isinstance(network, Nat):
        card = put(devices, "interface", type="network")
        put(card, "source", network=network.net)
        notes.rest(network, setting, [*known, "net", "vhost"])
    elif isinstance(network, Bridge):
        card = put(devices, "interface", type="bridge")
        put(card, "source", bridge=network.br)
        notes.rest(network, setting, [*known, "br"], "the helper is in libvirt's qemu.conf")
    elif isinstance(network, Tap):
        card = _tap(devices, network)
        notes.rest(network, setting, [*known, "ifname", "br", "script", "downscript", "vhost", "sndbuf"])
    elif isinstance(network, VhostUser):
        card = put(devices, "interface", type="vhostuser")
        put(card, "source", type="unix", path=network.path, mode="server" if network.server else "client")
        notes.rest(network, setting, [*known, "path", "server"])
    elif isinstance(network, Socket):
        return _socket(devices, network, setting, notes)
    else:
        return None
    return card


def _addresses(card: Element, network: User) -> list[str]:
    """The guest's own address is all that libvirt says of a user network: the fifteenth of it."""
    if network.net is None or network.host is not None or network.dhcpstart is not None:
        return []
    import ipaddress

    try:
        net = ipaddress.ip_network(network.net)
    except ValueError:
        return []
    if net.num_addresses <= 15 or net.version != 4:
        return []
    put(card, "ip", family="ipv4", address=str(net[15]), prefix=net.prefixlen)
    return ["net"]


def _forward(card: Element, rule: str, setting: str, notes: Notes) -> None:
    protocol, address, port, guest = split_forward(rule)
    to_address, _, to = guest.rpartition(":")
    if to_address:
        notes.add(setting, "passt has one guest, whose address is not named")
    forward = put(card, "portForward", proto=protocol, address=address or "127.0.0.1")
    put(forward, "range", start=port, to=to if to != port else None)


def _tap(devices: Element, network: Tap) -> Element:
    if network.br is not None and network.script is None and network.downscript is None:
        card = put(devices, "interface", type="bridge")
        put(card, "source", bridge=network.br)
        if network.ifname is not None:
            put(card, "target", dev=network.ifname)
        return card
    card = put(devices, "interface", type="ethernet" if network.br is None else "bridge")
    if network.br is not None:
        put(card, "source", bridge=network.br)
    for tag, path in (("script", network.script), ("downscript", network.downscript)):
        if path not in (None, "no"):
            put(card, tag, path=path)
    if network.ifname is not None:
        put(card, "target", dev=network.ifname, managed=False)
    return card


def _socket(devices: Element, network: Socket, setting: str, notes: Notes) -> Element | None:
    known = [*_CARD, "addr", "queues"]
    for name, kind in _SOCKETS.items():
        where = getattr(network, name)
        if where is None:
            continue
        address, _, port = where.rpartition(":")
        card = put(devices, "interface", type=kind)
        put(card, "source", address=address or "127.0.0.1", port=port)
        notes.rest(network, setting, [*known, name])
        return card
    if network.udp is None or network.localaddr is None:
        return None
    card = put(devices, "interface", type="udp")
    address, _, port = network.udp.rpartition(":")
    source = put(card, "source", address=address or "127.0.0.1", port=port)
    address, _, port = network.localaddr.rpartition(":")
    put(source, "local", address=address or "127.0.0.1", port=port)
    notes.rest(network, setting, [*known, "udp", "localaddr"])
    return card
