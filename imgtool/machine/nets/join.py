"""A machine joins its networks: what the launcher asks for before it starts QEMU."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence

from imgtool.errors import MachineError
from imgtool.image.names import printable
from imgtool.machine.host import TapNeed
from imgtool.machine.nets import helper, needs, status, store, tap
from imgtool.machine.nets.names import is_network_name
from imgtool.machine.nets.needs import Tools
from imgtool.machine.values.network import Nat, Network
from imgtool.qemu.process import Runner, run

_VHOST = "/dev/vhost-net"


def bridges(networks: Iterable[Network], *, tools: Tools | None = None, runner: Runner = run) -> dict[str, str]:
    """The bridge of each `nat` network by the network's name (`Host.bridges`); what there is none of is left out, for
    validation to say. MachineError for a network that is there and cannot be used."""
    wanted = {network.net for network in networks if isinstance(network, Nat)}
    if wanted and status.hidden_from_user():
        raise MachineError(
            "networks that root made are open to root's machines alone",
            hint="run it with sudo, or use `--network bridge,br=…` or `--network user`",
        )
    known = [name for name in sorted(wanted) if is_network_name(name) and store.entry(name) is not None]
    return {name: status.usable(name, tools=tools, runner=runner).bridge for name in known}


@contextlib.contextmanager
def opened(
    wanted: Sequence[TapNeed], machine: str, *, tools: Tools | None = None, runner: Runner = run
) -> Iterator[dict[str, tuple[int, ...]]]:
    """Opens the taps that `machine` needs: their descriptors by network id, as `Host.descriptors` has them, to be
    passed to QEMU within. They are closed at the end; QEMU's own copies keep the taps until it ends.

    A tap in a bridge that this user may not make is left to qemu-bridge-helper, and so is missing here; MachineError
    with the reasons where that would refuse, or where a tap cannot be had otherwise.
    """
    with contextlib.ExitStack() as held:
        found: dict[str, tuple[int, ...]] = {}
        for place, need in enumerate(wanted):
            made = _open(need, machine, place, tools, runner)
            if made is None:
                continue
            held.callback(tap.drop_tap, made)
            found[need.id] = made.fds
            if need.vhost:
                found[f"{need.id}-vhost"] = _open_vhost(held, need)
        yield found


def foreseen(wanted: Sequence[TapNeed]) -> dict[str, tuple[int, ...]]:
    """What `opened` would yield, for a command line that is only shown: the numbers of descriptors begin after the
    standard ones."""
    found: dict[str, tuple[int, ...]] = {}
    numbers = itertools.count(3)
    for need in wanted:
        if need.ifname is not None or need.bridge is None or needs.may_administer():
            found[need.id] = tuple(itertools.islice(numbers, need.queues))
            if need.vhost:
                found[f"{need.id}-vhost"] = tuple(itertools.islice(numbers, need.queues))
    return found


def _open(need: TapNeed, machine: str, place: int, tools: Tools | None, runner: Runner) -> tap.Tap | None:
    if need.ifname is not None:
        return tap.take_tap(need.ifname, bridge=need.bridge, queues=need.queues, tools=tools, runner=runner)
    if need.bridge is not None and not needs.may_administer():
        reasons = helper.findings(need.bridge, helper=need.helper)
        if reasons:
            message, hint = helper.explain(need.bridge, reasons)
            raise MachineError(message, hint=f"{hint}; or run imgtool as root")
        return None
    return tap.make_tap(need.bridge, machine=machine, index=place, queues=need.queues, tools=tools, runner=runner)


def _open_vhost(held: contextlib.ExitStack, need: TapNeed) -> tuple[int, ...]:
    lack = needs.vhost()
    if lack is not None:
        raise MachineError(f"{printable(need.id)}: vhost=on, but {lack.what}", hint=lack.fix)
    fds = []
    for _ in range(need.queues):
        descriptor = os.open(_VHOST, os.O_RDWR | os.O_CLOEXEC)
        held.callback(os.close, descriptor)
        fds.append(descriptor)
    return tuple(fds)
