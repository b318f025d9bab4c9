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
from collections.abc import Sequence
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
    """A tap, up, in a bridge unless that is None. `fds` has one descriptor a queue, not inheritable: for `pass_fds`,
    then QEMU's `-netdev tap,fd=N` or `fds=N:M`. To be closed (`drop_tap`) once QEMU has them."""

    name: str
    bridge: str | None
    fds: tuple[int, ...]


def make_tap(
    bridge: str | None,
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
    link = None if bridge is None else _find_bridge(bridge, iproute.links(tools.ip, runner))
    name, fds = _open_queues(machine, index, queues)
    tap = Tap(name, bridge, tuple(fds))
    try:
        if owner_uid is not None:
            fcntl.ioctl(fds[0], _TUNSETOWNER, owner_uid)
        _connect(name, link, tools, runner)
    except BaseException:
        drop_tap(tap)
        raise
    return tap


def take_tap(
    name: str,
    *,
    bridge: str | None = None,
    queues: int = 1,
    tools: Tools | None = None,
    runner: Runner = run,
) -> Tap:
    """The tap `name`, as somebody made it for this user (`ip tuntap add … user …`), or made now where there is none.
    It joins `bridge` unless it is there already. MachineError when it is busy, another's, or of another kind."""
    tools = tools or needs.find_tools()
    _check_device()
    links = iproute.links(tools.ip, runner)
    link = next((link for link in links if link.ifname == name), None)
    switch = None if bridge is None else _find_bridge(bridge, links)
    if link is None or (bridge is not None and link.master != bridge):
        needs.demand(("ip",), tools, "make a tap" if link is None else f"put {printable(name)} into a bridge")
    try:
        fds = _open_all(name, _flags(queues), 0, queues)
    except OSError as error:
        raise _not_taken(name, queues, error) from None
    tap = Tap(name, bridge, tuple(fds))
    try:
        if link is None or (bridge is not None and link.master != bridge):
            _connect(name, switch, tools, runner)
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


def _connect(name: str, bridge: Link | None, tools: Tools, runner: Runner) -> None:
    if bridge is None:
        argv = iproute.up_argv(tools.ip, name)
    else:
        argv = iproute.plug_tap_argv(tools.ip, name, bridge.ifname, tap_mac(name), bridge.mtu)
    done = runner(argv, limits=_LIMITS)
    if done.status != 0:
        raise failure(done)


def _find_bridge(bridge: str, links: Sequence[Link]) -> Link:
    link = next((link for link in links if link.ifname == bridge), None)
    if link is None:
        bridges = ", ".join(printable(link.ifname) for link in links if link.kind == "bridge")
        raise MachineError(
            f"there is no bridge {printable(bridge)}",
            hint=f"there are: {bridges}" if bridges else "`imgtool net create` makes one",
        )
    if link.kind != "bridge":
        raise MachineError(
            f"{printable(bridge)} is not a Linux bridge" + (f" but {link.kind}" if link.kind else ""),
            hint="`ip link show type bridge` lists them",
        )
    return link


def _open_queues(machine: str, index: int, queues: int) -> tuple[str, list[int]]:
    for attempt in range(_ATTEMPTS):
        name = names.tap_name(machine, index, attempt)
        try:
            # Without EXCL this would silently join a tap that another machine has.
            return name, _open_all(name, _flags(queues), _IFF_TUN_EXCL, queues)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise MachineError(f"cannot make the tap {name}: {error.strerror}") from None
    raise MachineError(
        f"the machine {printable(machine)} has its tap already", hint="`ip link show type tun` lists them"
    )


def _flags(queues: int) -> int:
    return _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | (_IFF_MULTI_QUEUE if queues > 1 else 0)


def _open_all(name: str, flags: int, first: int, queues: int) -> list[int]:
    """A descriptor a queue; the first with the flags `first` besides."""
    fds: list[int] = []
    try:
        fds.append(_open(name, flags | first))
        while len(fds) < queues:
            fds.append(_open(name, flags))
    except BaseException:
        for descriptor in fds:
            os.close(descriptor)
        raise
    return fds


def _not_taken(name: str, queues: int, error: OSError) -> MachineError:
    shown = printable(name)
    make = f"ip tuntap add dev {shown} mode tap user {os.getuid()}" + (" multi_queue" if queues > 1 else "")
    if error.errno == errno.EBUSY:
        return MachineError(f"the tap {shown} is in use", hint="give each machine a tap of its own")
    if error.errno == errno.EPERM:
        return MachineError(f"the tap {shown} is not this user's", hint=f"as root: {make}")
    if error.errno == errno.EINVAL:
        kind = "several queues" if queues > 1 else "one queue"
        return MachineError(f"{shown} is not a tap for {kind}", hint=f"make it anew, as root: {make}")
    return MachineError(f"cannot take the tap {shown}: {error.strerror}")


def _open(name: str, flags: int) -> int:
    descriptor = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
