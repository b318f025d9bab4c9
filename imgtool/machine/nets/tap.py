"""Taps: a machine's end of the cable, opened here and handed to QEMU as descriptors.

QEMU's own way, qemu-bridge-helper, is a process that `-sandbox spawn=deny` kills. A tap made here is bound to its
descriptors: it goes away by itself when the last process that has them ends, however that dies.
linux/if_tun.h, Documentation/networking/tuntap.rst.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import struct
from typing import NamedTuple

from imgtool.errors import MachineError
from imgtool.image.names import printable
from imgtool.machine.nets import iproute, names, needs
from imgtool.machine.nets.iproute import Link
from imgtool.machine.nets.needs import Tools
from imgtool.qemu.process import Limits, Runner, failure, run

_DEVICE = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_TUNSETOWNER = 0x400454CC
_IFF_TAP = 0x0002
_IFF_MULTI_QUEUE = 0x0100
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFF_TUN_EXCL = 0x8000
_LIMITS = Limits(seconds=30)
_ATTEMPTS = 16
MOST_QUEUES = 256
"""MAX_TAP_QUEUES in drivers/net/tun.c."""


class Tap(NamedTuple):
    """A tap in a bridge, up. `fds` has one descriptor a queue, not inheritable: for `pass_fds`, then QEMU's
    `-netdev tap,fd=N` or `fds=N:M`. To be closed (`drop_tap`) once QEMU has them."""

    name: str
    bridge: str
    fds: tuple[int, ...]


def make_tap(
    bridge: str,
    *,
    machine: str,
    index: int = 0,
    queues: int = 1,
    owner_uid: int | None = None,
    tools: Tools | None = None,
    runner: Runner = run,
) -> Tap:
    """A tap for network number `index` of `machine` in `bridge`, of the bridge's MTU, its frames with virtio headers.
    `owner_uid` may open further queues of it. MachineError when that takes root, or there is no such bridge."""
    tools = tools or needs.find_tools()
    if not 1 <= queues <= MOST_QUEUES:
        raise MachineError(f"a tap has 1 to {MOST_QUEUES} queues, not {queues}")
    needs.demand(("ip",), tools, "make a tap")
    _check_device()
    link = _find_bridge(bridge, tools, runner)
    name, fds = _open_queues(machine, index, queues)
    tap = Tap(name, bridge, tuple(fds))
    try:
        if owner_uid is not None:
            fcntl.ioctl(fds[0], _TUNSETOWNER, owner_uid)
        done = runner(iproute.plug_tap_argv(tools.ip, name, bridge, tap_mac(name), link.mtu), limits=_LIMITS)
        if done.status != 0:
            raise failure(done)
    except BaseException:
        drop_tap(tap)
        raise
    return tap


def drop_tap(tap: Tap) -> None:
    """Closes this process's ends of `tap`. It is gone when no other process has any."""
    for descriptor in tap.fds:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def tap_mac(name: str) -> str:
    """The host's end gets an address above all others, for a bridge takes the lowest of its members."""
    digest = hashlib.sha256(name.encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0xFE, *digest[:5]))


def _check_device() -> None:
    lack = needs.tun()
    if lack is not None:
        raise MachineError(f"cannot make a tap: {lack.what}", hint=lack.fix)


def _find_bridge(bridge: str, tools: Tools, runner: Runner) -> Link:
    links = iproute.links(tools.ip, runner)
    link = next((link for link in links if link.ifname == bridge), None)
    if link is None:
        bridges = ", ".join(printable(link.ifname) for link in links if link.kind == "bridge")
        raise MachineError(
            f"there is no bridge {printable(bridge)}",
            hint=f"there are: {bridges}" if bridges else "`imgtool net create` makes one",
        )
    if link.kind != "bridge":
        raise MachineError(
            f"{printable(bridge)} is no Linux bridge" + (f" but {link.kind}" if link.kind else ""),
            hint="`ip link show type bridge` lists them",
        )
    return link


def _open_queues(machine: str, index: int, queues: int) -> tuple[str, list[int]]:
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | (_IFF_MULTI_QUEUE if queues > 1 else 0)
    for attempt in range(_ATTEMPTS):
        name = names.tap_name(machine, index, attempt)
        fds: list[int] = []
        try:
            # Without EXCL the first would silently join a tap that another machine has.
            fds.append(_open(name, flags | _IFF_TUN_EXCL))
            while len(fds) < queues:
                fds.append(_open(name, flags))
        except OSError as error:
            for descriptor in fds:
                os.close(descriptor)
            if error.errno == errno.EBUSY and not fds:
                continue
            raise MachineError(f"cannot make the tap {name}: {error.strerror}") from None
        return name, fds
    raise MachineError(
        f"the machine {printable(machine)} has its tap already", hint="`ip link show type tun` lists them"
    )


def _open(name: str, flags: int) -> int:
    descriptor = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
