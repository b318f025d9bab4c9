"""Undoing what a journal says, in reverse, as far as it was done: from what is seen on the host to commands."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from imgtool.errors import DecodeError
from imgtool.image.names import printable
from imgtool.machine.nets import dnsmasq, firewall, forwarding, iproute, nic
from imgtool.machine.nets.iproute import Address, Link
from imgtool.machine.nets.journal import DnsmasqStarted, ForwardingOn, LinkMade, NicMoved, TableMade, Undo
from imgtool.machine.nets.needs import Tools
from imgtool.machine.process import ProcessId
from imgtool.qemu.process import Limits, Runner, failure

_LIMITS = Limits(seconds=30)


class Observed(NamedTuple):
    """What there is on the host of what the records speak of."""

    links: tuple[Link, ...]
    tables: frozenset[tuple[str, str]]
    dnsmasq: tuple[ProcessId, ...]
    settings: dict[str, str]
    """The sysctls that go back, empty while another network needs forwarding."""
    nic_addresses: tuple[Address, ...]
    now: int


class Action(NamedTuple):
    """One step back: `argv` as a person would type it, and what is done instead where no program is needed."""

    argv: tuple[str, ...]
    instead: Callable[[], None] | None = None


def observe(records: Sequence[Undo], name: str, directory: str, tools: Tools, runner: Runner) -> Observed:
    """Looks only for what the records mention: a network without a table needs no nft to go."""
    tables: set[tuple[str, str]] = set()
    if any(isinstance(record, TableMade) for record in records):
        tables = firewall.tables(tools.nft, runner)
    nics = [record.nic for record in records if isinstance(record, NicMoved)]
    addresses: list[Address] = []
    if nics:
        try:
            addresses = nic.present_addresses(tools.ip, nics[0], runner)
        except msgspec.ValidationError as error:
            raise DecodeError(f"{printable(nics[0])} has an address that imgtool cannot read: {error}") from None
    forwards = any(isinstance(record, ForwardingOn) for record in records)
    return Observed(
        links=tuple(iproute.links(tools.ip, runner)),
        tables=frozenset(tables),
        dnsmasq=tuple(dnsmasq.find(directory)),
        settings=forwarding.restoration(name) if forwards else {},
        nic_addresses=tuple(addresses),
        now=int(time.time()),
    )


def plan(records: Sequence[Undo], observed: Observed, directory: str, tools: Tools) -> list[Action]:
    """The way back, last step first. A record written twice, or of what was never done, costs nothing."""
    actions: list[Action] = []
    for record in reversed(list(dict.fromkeys(records))):
        actions += _back(record, observed, directory, tools)
    return actions


def carry_out(actions: Sequence[Action], runner: Runner) -> None:
    """Takes every step, and goes on past one that fails: what can be put back is. Then raises the first failure."""
    failed = None
    for action in actions:
        if action.instead is not None:
            action.instead()
            continue
        done = runner(action.argv, limits=_LIMITS)
        if done.status != 0 and failed is None:
            failed = failure(done)
    if failed is not None:
        raise failed


def _back(record: Undo, observed: Observed, directory: str, tools: Tools) -> list[Action]:
    if isinstance(record, LinkMade):
        made = any(link.ifname == record.name and link.address == record.mac for link in observed.links)
        return [_command(iproute.delete_link_argv(tools.ip, record.name))] if made else []
    if isinstance(record, TableMade):
        if (record.family, record.name) not in observed.tables:
            return []
        return [_command(firewall.delete_table_argv(tools.nft, record.family, record.name))]
    if isinstance(record, ForwardingOn):
        settings = observed.settings
        return [_command(forwarding.set_argv(tools.sysctl, settings))] if settings else []
    if isinstance(record, DnsmasqStarted):
        return [
            Action(("kill", str(process.pid)), functools.partial(dnsmasq.end, directory))
            for process in observed.dnsmasq
        ]
    link = next((link for link in observed.links if link.ifname == record.nic), None)
    addresses = list(observed.nic_addresses)
    return [_command(argv) for argv in nic.back_argvs(tools.ip, record, link, addresses, now=observed.now)]


def _command(argv: list[str]) -> Action:
    return Action(tuple(argv))
