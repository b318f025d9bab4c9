"""Networks: one struct per back end, each with the NIC the guest sees."""

import msgspec

from imgtool.machine.values.base import Config, Count, Index, Path


class Nic(Config, frozen=True, kw_only=True):
    """What every network has: the guest's network card."""

    model: str | None = None
    """None is virtio where the machine has it."""
    mac: str | None = None
    """None is made from the machine's name and the network's place, and so stays."""
    queues: Count | None = None
    """Pairs of queues of the card (multiqueue); None is one."""
    addr: str | None = None
    """PCI slot, or slot.function, in hexadecimal as in QEMU."""
    bootindex: Index | None = None
    """Its place in the firmware's order: the lowest is tried first."""
    id: str | None = None
    """What QEMU and its monitor call it; None is made up."""


class User(Nic, frozen=True, kw_only=True, tag="user", tag_field="type"):
    """QEMU's own NAT, without root. QAPI: NetdevUserOptions."""

    hostfwd: tuple[str, ...] = ()
    """`tcp:[hostaddr]:hostport-[guestaddr]:guestport`. No hostaddr is 127.0.0.1 here, all addresses in QEMU."""
    guestfwd: tuple[str, ...] = ()
    """`tcp:server:port-chardev`: what the guest sends to that address goes to a device or command of the host."""
    hostname: str | None = None
    """What DHCP tells the guest it is called."""
    restrict: bool | None = None
    """Whether the guest reaches nothing outside, but for `guestfwd` and `hostfwd`."""
    ipv4: bool | None = None
    """Whether there is IPv4; None is yes."""
    ipv6: bool | None = None
    """Whether there is IPv6; None is yes."""
    net: str | None = None
    """The guest's subnet: ADDRESS[/MASK]; None is 10.0.2.0/24."""
    host: str | None = None
    """The host's address, as the guest sees it; None is the subnet's second."""
    ipv6_net: str | None = None
    """The guest's IPv6 prefix: ADDRESS[/LENGTH]; None is fec0::/64."""
    ipv6_host: str | None = None
    """The host's IPv6 address, as the guest sees it."""
    dhcpstart: str | None = None
    """The first of the 16 addresses that DHCP gives out; None is the subnet's 15th."""
    dns: str | None = None
    """The address of the name server, as the guest sees it; None is the subnet's third."""
    ipv6_dns: str | None = None
    """The IPv6 address of the name server, as the guest sees it."""
    dnssearch: tuple[str, ...] = ()
    """Domains that DHCP tells the guest to search for names."""
    domainname: str | None = None
    """The domain that DHCP tells the guest."""
    tftp: Path | None = None
    """A folder of the host that the guest can read by TFTP."""
    tftp_server_name: str | None = None
    """The TFTP server's name that DHCP tells the guest (RFC 2132)."""
    bootfile: str | None = None
    """The file to boot from `tftp` that DHCP tells the guest."""
    smb: Path | None = None
    """A folder of the host that the guest can use by SMB."""
    smbserver: str | None = None
    """The SMB server's address, as the guest sees it; None is the subnet's fourth."""


class Bridge(Nic, frozen=True, kw_only=True, tag="bridge", tag_field="type"):
    """A tap on the bridge `br`, made by qemu-bridge-helper. QAPI: NetdevBridgeOptions."""

    br: str = "br0"
    """The bridge's name on the host."""
    helper: Path | None = None
    """The setuid program that makes the tap where imgtool is not root; None is QEMU's own."""


class Tap(Nic, frozen=True, kw_only=True, tag="tap", tag_field="type"):
    """A tap interface, existing (`ifname`) or made. QAPI: NetdevTapOptions. Scripts are run only when named."""

    ifname: str | None = None
    """The tap's name on the host; None makes one."""
    br: str | None = None
    """The bridge a made tap joins."""
    script: Path | None = None
    """A program that is run with the tap's name once it is there; None is none."""
    downscript: Path | None = None
    """A program that is run with the tap's name at the end; None is none."""
    vhost: bool | None = None
    """Whether the kernel moves its packets (/dev/vhost-net)."""
    sndbuf: int | None = None
    """Bytes that may wait to be sent; None is no limit."""


class Nat(Nic, frozen=True, kw_only=True, tag="nat", tag_field="type"):
    """A tap on the bridge of a network that `imgtool net create` made."""

    net: str = "default"
    """The network's name."""
    vhost: bool | None = None
    """Whether the kernel moves its packets (/dev/vhost-net)."""


class Passt(Nic, frozen=True, kw_only=True, tag="passt", tag_field="type"):
    """passt beside QEMU: user networking with the host's addresses, faster than `user`."""

    hostfwd: tuple[str, ...] = ()
    """`tcp:[hostaddr]:hostport-[guestaddr]:guestport`, as for `user`."""
    ipv4: bool | None = None
    """Whether there is IPv4; None is yes."""
    ipv6: bool | None = None
    """Whether there is IPv6; None is yes."""


class Socket(Nic, frozen=True, kw_only=True, tag="socket", tag_field="type"):
    """Guests joined over TCP, UDP or multicast. QAPI: NetdevSocketOptions."""

    listen: str | None = None
    """TCP: [host]:port to wait at."""
    connect: str | None = None
    """TCP: host:port of the QEMU that listens."""
    mcast: str | None = None
    """UDP multicast: group:port, the same for all guests."""
    udp: str | None = None
    """UDP: host:port of the other guest; needs `localaddr`."""
    localaddr: str | None = None
    """UDP: [host]:port to send from."""


class Address(Config, frozen=True, kw_only=True):
    """Where a stream or dgram network listens or connects. QAPI: SocketAddress without vsock."""

    type: str
    """inet, unix or fd."""
    host: str | None = None
    """inet: a name or address."""
    port: str | None = None
    """inet: a number or a service's name."""
    path: Path | None = None
    """unix: the socket's file."""
    fd: str | None = msgspec.field(name="str", default=None)
    """fd: the number or name of a descriptor that QEMU has."""
    ipv4: bool | None = None
    """inet: whether IPv4 is used; None is yes."""
    ipv6: bool | None = None
    """inet: whether IPv6 is used; None is yes."""
    abstract: bool | None = None
    """unix: a name outside of the file system (Linux)."""


class Stream(Nic, frozen=True, kw_only=True, tag="stream", tag_field="type"):
    """Two guests joined by a stream. QAPI: NetdevStreamOptions (QEMU 7.2)."""

    address: Address
    """Where it listens or connects."""
    server: bool | None = None
    """Whether it listens; None is no."""
    reconnect: Count | None = None
    """Seconds until it is tried again when the other is gone; None is never."""


class Dgram(Nic, frozen=True, kw_only=True, tag="dgram", tag_field="type"):
    """Guests joined by datagrams. QAPI: NetdevDgramOptions (QEMU 7.2)."""

    local: Address | None = None
    """Where it receives; None is where it sends."""
    remote: Address | None = None
    """Where it sends; a multicast group, too."""


class VhostUser(Nic, frozen=True, kw_only=True, tag="vhost-user", tag_field="type"):
    """A switch in another process (DPDK, OVS). Needs shared guest memory, which imgtool sees to."""

    path: Path
    """The unix socket of the switch."""
    server: bool | None = None
    """Whether QEMU makes the socket and waits for the switch; None is no."""
    vhostforce: bool | None = None
    """Whether guests without MSI-X use it, too."""


Network = User | Bridge | Tap | Nat | Passt | Socket | Stream | Dgram | VhostUser
