"""Networks: -netdev and the NIC on top. QAPI: Netdev."""

from __future__ import annotations

from typing import Any

from imgtool.errors import ConfigError
from imgtool.machine.board import Board
from imgtool.machine.compile.encode import compact
from imgtool.machine.compile.parts import Parts
from imgtool.machine.config import Machine
from imgtool.machine.host import Helper, Host, TapNeed
from imgtool.machine.values.network import (
    Address,
    Bridge,
    Dgram,
    Nat,
    Network,
    Nic,
    Passt,
    Socket,
    Stream,
    Tap,
    User,
    VhostUser,
)

NIC_MODELS = {
    "virtio": "virtio-net",
    "ne2k": "ne2k_pci",
}
"""Short names beside those of `-device help`."""

NO_CARDS = ("igbvf", "pvrdma", "rocker")
"""Devices under the heading Network that take no -netdev."""

_DEFAULT_HELPER = "/usr/lib/qemu/qemu-bridge-helper"


def networks(machine: Machine) -> tuple[Network, ...]:
    """The networks asked for; one user network where nothing was said, as in QEMU."""
    return (User(),) if machine.networks is None else machine.networks


def network_id(network: Nic, place: int) -> str:
    return network.id or f"net{place}"


def stable_mac(name: str, place: int) -> str:
    """The MAC of a machine's NIC, the same at every start: QEMU's prefix and a checksum of the machine's name."""
    import zlib  # hashlib would load OpenSSL for it, into every boot

    checksum = zlib.crc32(f"{name}\n{place}".encode(errors="surrogateescape"))
    return "52:54:00:" + (checksum & 0xFFFFFF).to_bytes(3).hex(":")


def nic_driver(network: Nic, kind: Board) -> str:
    """The -device driver of the guest's card."""
    model = network.model
    if model is None:
        model = "virtio" if kind.virtio else "ne2k_isa"
    model = NIC_MODELS.get(model, model)
    if model in ("virtio-net", "virtio-net-pci", "virtio-net-device"):
        return f"virtio-net{kind.virtio}"
    return model


def add_networks(parts: Parts, machine: Machine, kind: Board, host: Host) -> None:
    for place, network in enumerate(networks(machine)):
        name = network_id(network, place)
        parts.netdev(compact({"type": network_type(network), "id": name, **_backend(parts, network, name, host)}))
        driver = nic_driver(network, kind)
        if driver == "usb-net":
            parts.usb()
        value: dict[str, Any] = {
            "driver": driver,
            "id": f"nic{place}",
            "netdev": name,
            "mac": network.mac or stable_mac(machine.name or "", place),
            "addr": network.addr,
            "bootindex": network.bootindex,
        }
        if network.queues is not None and network.queues > 1:
            # qemu(1): a vector for each direction of each queue, one for configuration and one for control.
            value |= {"mq": True, "vectors": 2 * network.queues + 2}
        parts.device(compact(value))


def network_type(network: Network) -> str:
    """The -netdev type that stands behind it."""
    if isinstance(network, Passt):
        return "stream"
    if isinstance(network, Nat):
        return "tap"
    tag = network.__struct_config__.tag
    assert isinstance(tag, str)
    return tag


def _backend(parts: Parts, network: Network, name: str, host: Host) -> dict[str, Any]:
    if isinstance(network, User):
        return _user(parts, network)
    if isinstance(network, Bridge | Tap | Nat):
        return _tap(parts, network, name, host)
    if isinstance(network, Passt):
        return _passt(parts, network, name, host)
    if isinstance(network, Socket):
        return {key: getattr(network, key) for key in ("listen", "connect", "mcast", "udp", "localaddr")}
    if isinstance(network, Stream):
        value: dict[str, Any] = {"server": network.server, "addr": address(network.address)}
        if network.reconnect is not None:
            # QEMU 9.2 counts milliseconds under another name, and later ones know no seconds.
            milli = "reconnect-ms" in host.capabilities.netdev_keys.get("stream", ())
            value |= {"reconnect-ms": network.reconnect * 1000} if milli else {"reconnect": network.reconnect}
        return value
    if isinstance(network, Dgram):
        ends = {"local": network.local, "remote": network.remote}
        return {key: address(end) for key, end in ends.items() if end is not None}
    assert isinstance(network, VhostUser)
    value = {"id": f"{name}-switch", "path": network.path}
    if network.server:
        value |= {"server": "on", "wait": "off"}
    parts.chardev("socket", value)
    return {"chardev": f"{name}-switch", "vhostforce": network.vhostforce, "queues": _many(network)}


def _user(parts: Parts, network: User) -> dict[str, Any]:
    if network.smb is not None or any("-cmd:" in rule for rule in network.guestfwd):
        parts.spawns = True
    value: dict[str, Any] = {}
    for key in ("hostname", "restrict", "ipv4", "ipv6", "net", "host", "ipv6_net", "ipv6_host", "dhcpstart", "dns"):
        value[key.replace("_", "-")] = getattr(network, key)
    value["ipv6-dns"] = network.ipv6_dns
    if network.ipv6_net is not None:
        # QAPI has the prefix and its length apart; the option string takes them as one, and so do we.
        prefix, _, length = network.ipv6_net.partition("/")
        value |= {"ipv6-net": None, "ipv6-prefix": prefix, "ipv6-prefixlen": int(length) if length else None}
    for key in ("domainname", "tftp", "tftp_server_name", "bootfile", "smb", "smbserver"):
        value[key.replace("_", "-")] = getattr(network, key)
    for key, items in (
        ("dnssearch", network.dnssearch),
        ("hostfwd", [loopback(rule) for rule in network.hostfwd]),
        ("guestfwd", network.guestfwd),
    ):
        value[key] = [{"str": item} for item in items] or None
    return value


def loopback(rule: str) -> str:
    """A hostfwd rule that listens on the loopback address when it names none; QEMU would listen on all of them."""
    protocol, address_, port, guest = split_forward(rule)
    return f"{protocol}:{address_ or '127.0.0.1'}:{port}-{guest}"


def split_forward(rule: str) -> tuple[str, str, str, str]:
    """`tcp:[hostaddr]:hostport-[guestaddr]:guestport` as protocol, host address, host port and the guest's part.
    ConfigError when it is none."""
    host, dash, guest = rule.partition("-")
    protocol, _, rest = host.partition(":")
    address_, colon, port = rest.rpartition(":")
    guest_port = guest.rpartition(":")[2]
    if not (dash and colon and ":" in guest and port.isdecimal() and guest_port.isdecimal()):
        raise ConfigError(
            f"hostfwd {rule!r} is not a forward",
            hint="write tcp:[address]:port-[guest address]:port, such as tcp::2222-:22",
        )
    return protocol or "tcp", address_, port, guest


def _many(network: Nic) -> int | None:
    return network.queues if network.queues is not None and network.queues > 1 else None


def _tap(parts: Parts, network: Bridge | Tap | Nat, name: str, host: Host) -> dict[str, Any]:
    """A tap: its descriptors where the host has opened it, else QEMU's own ways of opening one."""
    vhost = None if isinstance(network, Bridge) else network.vhost
    ifname = network.ifname if isinstance(network, Tap) else None
    bridge = _bridge_of(network, host)
    helper = network.helper if isinstance(network, Bridge) and network.helper else host.bridge_helper
    sndbuf = network.sndbuf if isinstance(network, Tap) else None
    need = TapNeed(
        id=name, ifname=ifname, bridge=bridge, queues=network.queues or 1, vhost=bool(vhost), helper=helper
    )
    scripted = isinstance(network, Tap) and (
        network.script not in (None, "no") or network.downscript not in (None, "no")
    )
    opened = host.descriptors.get(name)
    if opened and not scripted:
        parts.taps.append(need)
        value: dict[str, Any] = {"type": "tap", **_descriptors("fd", opened), "vhost": vhost, "sndbuf": sndbuf}
        vhosts = host.descriptors.get(f"{name}-vhost")
        return value | (_descriptors("vhostfd", vhosts) if vhosts else {})
    if scripted:
        assert isinstance(network, Tap)
        parts.spawns = True
        script, downscript = network.script or "no", network.downscript or "no"
    else:
        parts.taps.append(need)
        script = downscript = "no"
    value = {"vhost": vhost, "queues": _many(network), "sndbuf": sndbuf}
    if isinstance(network, Tap) and (ifname is not None or scripted):
        return value | {"ifname": ifname, "script": script, "downscript": downscript}
    parts.spawns = True
    if isinstance(network, Bridge):
        return {"br": bridge, "helper": helper}
    return {"br": bridge, "helper": helper or _DEFAULT_HELPER, "vhost": vhost, "sndbuf": sndbuf}


def _bridge_of(network: Bridge | Tap | Nat, host: Host) -> str | None:
    if isinstance(network, Nat):
        found = host.bridges.get(network.net)
        if found is None:
            raise ConfigError(
                f"there is no network {network.net!r}", hint=f"make it: imgtool net create {network.net} --nat SUBNET"
            )
        return found
    return network.br


def _descriptors(key: str, numbers: tuple[int, ...]) -> dict[str, str]:
    if len(numbers) == 1:
        return {key: str(numbers[0])}
    return {f"{key}s": ":".join(str(number) for number in numbers)}


def _passt(parts: Parts, network: Passt, name: str, host: Host) -> dict[str, Any]:
    socket = parts.runtime(f"{name}.sock")
    argv = [host.passt or "passt", "--foreground", "--quiet", "--one-off", "--socket", socket]
    for only, wanted in (("--ipv6-only", network.ipv4), ("--ipv4-only", network.ipv6)):
        if wanted is False:
            argv.append(only)
    for rule in network.hostfwd:
        protocol, address_, port, guest = split_forward(rule)
        ports = f"{address_ or '127.0.0.1'}/{port}:{guest.rpartition(':')[2]}"
        argv += ["--udp-ports" if protocol == "udp" else "--tcp-ports", ports]
    # Started by root, passt becomes nobody. Those of 2023 and before do so first, and then cannot make a socket in
    # root's runtime directory; those of 2026 cannot stay root.
    otherwise = (*argv, "--runas", "0") if host.root else ()
    parts.helpers.append(Helper(name=f"passt-{name}", argv=tuple(argv), otherwise=otherwise, socket=socket))
    return {"server": False, "addr": {"type": "unix", "path": socket}}


def address(end: Address) -> dict[str, Any]:
    """QAPI: SocketAddress."""
    return compact(
        {
            "type": end.type,
            "host": end.host,
            "port": end.port,
            "path": end.path,
            "str": end.fd,
            "ipv4": end.ipv4,
            "ipv6": end.ipv6,
            "abstract": end.abstract,
        }
    )
