"""What it takes to make a network here, and what of it is missing."""

from __future__ import annotations

import os
import stat

from msgspec import Struct

from imgtool.errors import MachineError
from imgtool.qemu.search import which

PACKAGES = {"ip": "iproute2", "nft": "nftables", "dnsmasq": "dnsmasq-base", "sysctl": "procps"}
"""The Debian package of each program."""

CAP_NET_ADMIN = 12
"""linux/capability.h"""


class Tools(Struct, frozen=True):
    """The programs by their absolute paths; by their bare names where they are missing."""

    ip: str = "ip"
    nft: str = "nft"
    dnsmasq: str = "dnsmasq"
    sysctl: str = "sysctl"


class Lack(Struct, frozen=True):
    """Something that is missing, and what to do about it."""

    what: str
    fix: str


NAT = ("ip", "nft", "dnsmasq", "sysctl")
BRIDGE = ("ip",)


def find_tools() -> Tools:
    """Looks on PATH and, because a user's PATH often leaves them out, in the sbin folders."""
    sbin = ("/usr/local/sbin", "/usr/sbin", "/sbin")
    return Tools(**{name: which(name, besides=sbin) or name for name in Tools.__struct_fields__})


def lacking(programs: tuple[str, ...], tools: Tools) -> list[Lack]:
    """What of the right to change the network and of `programs` is not there."""
    found = []
    if not may_administer():
        found.append(_no_right())
    missing = [name for name in programs if not os.path.isabs(getattr(tools, name))]
    if missing:
        packages = " ".join(PACKAGES[name] for name in missing)
        verb = "is" if len(missing) == 1 else "are"
        found.append(Lack(f"{', '.join(missing)} {verb} not installed", f"on Debian: apt-get install {packages}"))
    return found


def demand(programs: tuple[str, ...], tools: Tools, purpose: str) -> None:
    """MachineError that names all that is missing at once. `purpose`: "make a network"."""
    found = lacking(programs, tools)
    if found:
        raise MachineError(
            f"cannot {purpose} here: {'; '.join(lack.what for lack in found)}",
            hint="; ".join(lack.fix for lack in found),
        )


def may_administer() -> bool:
    """Whether this process, and the programs it starts, may change the network: CAP_NET_ADMIN, as root or ambient."""
    kept = _capabilities("CapEff") if os.geteuid() == 0 else _capabilities("CapAmb")
    return bool(kept >> CAP_NET_ADMIN & 1)


def _capabilities(field: str) -> int:
    """A set of capabilities out of /proc/self/status (proc(5)); none where there is no such file."""
    try:
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith(f"{field}:"):
                    return int(line.split()[1], 16)
    except OSError:
        pass
    return 0


def _no_right() -> Lack:
    if os.geteuid() == 0:
        return Lack(
            "this root has no CAP_NET_ADMIN", "in a container: start it with --cap-add NET_ADMIN (and /dev/net/tun)"
        )
    return Lack("changing the network takes root", "run it with sudo; `--network user` needs no root")


def tun() -> Lack | None:
    """What keeps taps from being made: None when /dev/net/tun opens."""
    return _device("/dev/net/tun", "modprobe tun")


def vhost() -> Lack | None:
    """What keeps packets from going past QEMU, in the kernel: None when /dev/vhost-net opens."""
    return _device("/dev/vhost-net", "modprobe vhost_net; without it `vhost=off` is right, only slower")


def _device(path: str, load: str) -> Lack | None:
    try:
        if not stat.S_ISCHR(os.stat(path).st_mode):
            return Lack(f"{path} is not a device", f"rm {path}; {load}")
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return Lack(f"{path} is not there", load)
    except PermissionError:
        return Lack(
            f"{path} may not be opened by this user", "run it with sudo, or give the user access to the device"
        )
    except OSError as error:
        return Lack(f"{path}: {error.strerror}", load)
    return None
