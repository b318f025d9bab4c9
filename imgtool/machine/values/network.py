"""Networks: one struct a back end, each with the NIC the guest sees."""

import msgspec

from imgtool.machine.values.base import Config, Count, Index, Path


class Nic(Config, frozen=True, kw_only=True):
    """What every network has: the guest's network card."""

    model: str | None = None
    """None is virtio where the machine has it."""
    mac: str | None = None
    """None is made from the machine's name and the network's place, and so stays."""
    queues: Count | None = None
    addr: str | None = None
    bootindex: Index | None = None
    id: str | None = None


class User(Nic, frozen=True, kw_only=True, tag="user", tag_field="type"):
    """QEMU's own NAT, without root. QAPI: NetdevUserOptions."""

    hostfwd: tuple[str, ...] = ()
    """`tcp:[hostaddr]:hostport-[guestaddr]:guestport`. No hostaddr is 127.0.0.1 here, all addresses in QEMU."""
    guestfwd: tuple[str, ...] = ()
    hostname: str | None = None
    restrict: bool | None = None
    ipv4: bool | None = None
    ipv6: bool | None = None
    net: str | None = None
    host: str | None = None
    ipv6_net: str | None = None
    ipv6_host: str | None = None
    dhcpstart: str | None = None
    dns: str | None = None
    ipv6_dns: str | None = None
    dnssearch: tuple[str, ...] = ()
    domainname: str | None = None
    tftp: Path | None = None
    tftp_server_name: str | None = None
    bootfile: str | None = None
    smb: Path | None = None
    smbserver: str | None = None


class Bridge(Nic, frozen=True, kw_only=True, tag="bridge", tag_field="type"):
    """A tap on the bridge `br`, made by qemu-bridge-helper. QAPI: NetdevBridgeOptions."""

    br: str = "br0"
    helper: Path | None = None


class Tap(Nic, frozen=True, kw_only=True, tag="tap", tag_field="type"):
    """A tap interface, existing (`ifname`) or made. QAPI: NetdevTapOptions. Scripts are run only when named."""

    ifname: str | None = None
    br: str | None = None
    """The bridge a made tap joins."""
    script: Path | None = None
    downscript: Path | None = None
    vhost: bool | None = None
    sndbuf: int | None = None


class Nat(Nic, frozen=True, kw_only=True, tag="nat", tag_field="type"):
    """A tap on the bridge of a network that `imgtool net create` made."""

    net: str = "default"
    vhost: bool | None = None


class Passt(Nic, frozen=True, kw_only=True, tag="passt", tag_field="type"):
    """passt beside QEMU: user networking with the host's addresses, faster than `user`."""

    hostfwd: tuple[str, ...] = ()
    ipv4: bool | None = None
    ipv6: bool | None = None


class Socket(Nic, frozen=True, kw_only=True, tag="socket", tag_field="type"):
    """Guests joined over TCP, UDP or multicast. QAPI: NetdevSocketOptions."""

    listen: str | None = None
    connect: str | None = None
    mcast: str | None = None
    udp: str | None = None
    localaddr: str | None = None


class Address(Config, frozen=True, kw_only=True):
    """Where a stream or dgram network listens or connects. QAPI: SocketAddress without vsock."""

    type: str
    """inet, unix or fd."""
    host: str | None = None
    port: str | None = None
    path: Path | None = None
    fd: str | None = msgspec.field(name="str", default=None)
    ipv4: bool | None = None
    ipv6: bool | None = None
    abstract: bool | None = None


class Stream(Nic, frozen=True, kw_only=True, tag="stream", tag_field="type"):
    """Two guests joined by a stream. QAPI: NetdevStreamOptions (QEMU 7.2)."""

    address: Address
    server: bool | None = None
    reconnect: Count | None = None


class Dgram(Nic, frozen=True, kw_only=True, tag="dgram", tag_field="type"):
    """Guests joined by datagrams. QAPI: NetdevDgramOptions (QEMU 7.2)."""

    local: Address | None = None
    remote: Address | None = None


class VhostUser(Nic, frozen=True, kw_only=True, tag="vhost-user", tag_field="type"):
    """A switch in another process (DPDK, OVS). Needs shared guest memory, which imgtool sees to."""

    path: Path
    server: bool | None = None
    vhostforce: bool | None = None


Network = User | Bridge | Tap | Nat | Passt | Socket | Stream | Dgram | VhostUser
