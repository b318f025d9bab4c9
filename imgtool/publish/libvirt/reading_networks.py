"""Networks of a domain."""

from __future__ import annotations

from typing import Any
from xml.etree.ElementTree import Element

from imgtool.errors import ConfigError
from imgtool.machine.values.network import Bridge, Nat, Network, Passt, Socket, Tap, User, VhostUser
from imgtool.publish.libvirt.reading_words import Found, attribute, identity, number, number_at, pci_address

_SOCKETS = {"server": "listen", "client": "connect", "mcast": "mcast"}


def read_networks(found: Found) -> tuple[Network, ...]:
    networks: list[Network] = []
    for place, card in enumerate(found.root.findall("devices/interface")):
        network = _network(card, _card(card, found))
        if network is None:
            found.notes.add(f"interface[{place}]", f"an interface of type {card.get('type')}")
        else:
            networks.append(network)
    return tuple(networks)


def _card(card: Element, found: Found) -> dict[str, Any]:
    driver, order = card.find("driver"), card.find("boot")
    return {
        "model": attribute(card, "model", "type"),
        "mac": attribute(card, "mac", "address"),
        "queues": None if driver is None else number(driver, "queues"),
        "id": identity(card),
        "addr": pci_address(card, found),
        "bootindex": None if order is None else number(order, "order"),
    }


def _network(card: Element, common: dict[str, Any]) -> Network | None:
    kind = card.get("type", "")
    vhost = {"vhost": True, "qemu": False}.get(attribute(card, "driver", "name") or "")
    if kind == "user":
        if attribute(card, "backend", "type") == "passt":
            return Passt(**common, hostfwd=tuple(_forwards(card)))
        return User(**common, net=_net(card))
    if kind == "network":
        return Nat(**common, net=attribute(card, "source", "network") or "default", vhost=vhost)
    if kind == "bridge":
        bridge = attribute(card, "source", "bridge") or "br0"
        ifname = attribute(card, "target", "dev")
        if ifname is None and vhost is None:
            return Bridge(**common, br=bridge)
        return Tap(**common, br=bridge, ifname=ifname, vhost=vhost, sndbuf=_sndbuf(card))
    if kind == "ethernet":
        return Tap(
            **common,
            ifname=attribute(card, "target", "dev"),
            script=attribute(card, "script", "path"),
            downscript=attribute(card, "downscript", "path"),
            vhost=vhost,
            sndbuf=_sndbuf(card),
        )
    return _socket(card, kind, common)


def _socket(card: Element, kind: str, common: dict[str, Any]) -> Network | None:
    source = card.find("source")
    if source is None:
        return None
    if kind == "vhostuser" and source.get("type") == "unix":
        server = True if source.get("mode") == "server" else None
        return VhostUser(**common, path=source.get("path", ""), server=server)
    if kind in _SOCKETS:
        end: dict[str, Any] = {_SOCKETS[kind]: f"{source.get('address', '')}:{source.get('port', '')}"}
        return Socket(**common, **end)
    local = source.find("local")
    if kind == "udp" and local is not None:
        return Socket(
            **common,
            udp=f"{source.get('address', '')}:{source.get('port', '')}",
            localaddr=f"{local.get('address', '')}:{local.get('port', '')}",
        )
    return None


def _sndbuf(card: Element) -> int | None:
    return number_at(card, "tune/sndbuf")


def _net(card: Element) -> str | None:
    """The network in which the guest has the address that the domain gives it."""
    found = card.find("ip[@family='ipv4']")
    if found is None:
        return None
    import ipaddress

    try:
        return str(ipaddress.ip_interface(f"{found.get('address')}/{found.get('prefix', '24')}").network)
    except ValueError:
        return None


def _forwards(card: Element) -> list[str]:
    rules = []
    for forward in card.findall("portForward"):
        for ports in forward.findall("range"):
            start, end = number(ports, "start") or 0, number(ports, "end")
            to = number(ports, "to")
            first = start if to is None else to
            last = start if end is None else end
            if not 0 <= start <= last < 1 << 16:
                raise ConfigError(f"the forwarded ports {start} to {last} are none")
            for offset in range(last - start + 1):
                host = f"{forward.get('proto', 'tcp')}:{forward.get('address', '')}:{start + offset}"
                rules.append(f"{host}-:{first + offset}")
    return rules
