"""Deleting a network: everything goes back to what it was, whatever is left of the network."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from imgtool.errors import MachineError, RefusedError
from imgtool.image.names import printable
from imgtool.machine.nets import forwarding, guard, journal, needs, store, undo
from imgtool.machine.nets.journal import DnsmasqStarted, ForwardingOn, LinkMade, TableMade, Undo
from imgtool.machine.nets.names import tap_name
from imgtool.machine.nets.needs import Tools
from imgtool.machine.nets.values import Plan
from imgtool.machine.runtime import vms
from imgtool.qemu.process import Runner, run


def holding(lock: int, runner: Runner) -> Runner:
    """`runner`, whose programs keep `lock` until they end: also past an imgtool that is killed."""
    return functools.partial(runner, pass_fds=(lock,))


def no_such(name: str) -> MachineError:
    names = ", ".join(entry.name for entry in store.entries())
    return MachineError(
        f"there is no network {printable(name)}",
        hint=f"there are: {names}" if names else "`imgtool net create --help` shows how one is made",
    )


def plan(name: str, *, force: bool = False, tools: Tools | None = None, runner: Runner = run) -> Plan:
    """What deleting the network `name` would run. Errors as `delete` raises them."""
    tools = tools or needs.find_tools()
    entry, records = _look(name, force=force)
    observed = undo.observe(records, name, entry.directory, tools, runner)
    if not force:
        _check_unused(name, entry, observed)
    actions = undo.plan(records, observed, entry.directory, tools)
    return Plan(network=name, commands=tuple(action.argv for action in actions))


def delete(name: str, *, force: bool = False, tools: Tools | None = None, runner: Runner = run) -> None:
    """Deletes the network `name`, finished, stale or half made. MachineError when there is none or something that is
    needed is missing, or where it was made in another network namespace; RefusedError while machines are on it. With
    `force`, such a namespace is taken to be gone, with everything that was made in it."""
    tools = tools or needs.find_tools()
    if store.entry(name) is None:
        raise no_such(name)
    with store.locked() as lock:
        entry, records = _look(name, force=force)
        needs.demand(_programs(records), tools, "delete a network")
        if not force:
            _check_unused(name, entry, undo.observe(records, name, entry.directory, tools, runner))
        _undo(records, name, entry.directory, tools, holding(lock, runner))


def undo_all(name: str, directory: str, tools: Tools, runner: Runner) -> None:
    """Undoes what the journal in `directory` says and forgets the network. May be cut short, and be done again."""
    _undo(journal.read(directory), name, directory, tools, runner)


def _undo(records: Sequence[Undo], name: str, directory: str, tools: Tools, runner: Runner) -> None:
    store.reopen(directory)
    if records:
        observed = undo.observe(records, name, directory, tools, runner)
        undo.carry_out(undo.plan(records, observed, directory, tools), runner)
        if any(isinstance(record, ForwardingOn) for record in records):
            forwarding.forget(observed.settings)
    store.remove(directory)


def _look(name: str, *, force: bool) -> tuple[store.Entry, list[Undo]]:
    """The network, and what of it is to be undone here."""
    entry = store.entry(name)
    if entry is None:
        raise no_such(name)
    records = journal.read(entry.directory)
    here = store.namespace()
    if entry.meta is None or entry.meta.namespace == here:
        return entry, records
    if not force:
        guard.check_made_here(name, entry.meta.namespace, here)
    return entry, [record for record in records if isinstance(record, DnsmasqStarted)]


def _check_unused(name: str, entry: store.Entry, observed: undo.Observed) -> None:
    if entry.meta is None:
        return
    config = entry.meta.config
    if not any(link.ifname == config.bridge and link.address == config.mac for link in observed.links):
        return
    users = [
        holder(link.ifname)
        for link in observed.links
        if link.master == config.bridge and link.ifname != config.nic and link.up
    ]
    if users:
        raise RefusedError(
            f"the network {name} is in use by {', '.join(users)}",
            hint="stop the machines that are on it (`imgtool vm list`), or take it from them with --force",
        )


def holder(ifname: str) -> str:
    """Who is on a network by this interface, for people: a VM of this user's by its name."""
    for vm, state in vms():
        if ifname in (tap_name(vm.name, index) for index in range(len(state.machine.networks or ()))):
            return f"the VM {vm.name}"
    return printable(ifname)


def _programs(records: Sequence[Undo]) -> tuple[str, ...]:
    """What undoing `records` may need: a network of which nothing was made needs nothing."""
    programs = []
    if any(isinstance(record, LinkMade) for record in records):
        programs.append("ip")
    if any(isinstance(record, TableMade) for record in records):
        programs.append("nft")
    if any(isinstance(record, ForwardingOn) for record in records):
        programs.append("sysctl")
    return tuple(programs)
