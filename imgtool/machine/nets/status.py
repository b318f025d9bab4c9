"""How networks are: what was asked for, held against what is there."""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

from imgtool.errors import ImgtoolError, MachineError
from imgtool.machine.nets import delete, dnsmasq, firewall, forwarding, iproute, names, needs, store
from imgtool.machine.nets.iproute import Link, SeenAddress
from imgtool.machine.nets.needs import Tools
from imgtool.machine.nets.values import Config, Member, Network, State
from imgtool.machine.process import ProcessId
from imgtool.qemu.process import Runner, run


class _Host(NamedTuple):
    """What is there now, asked for once for all networks."""

    links: tuple[Link, ...]
    addresses: tuple[tuple[str, SeenAddress], ...]
    tables: frozenset[tuple[str, str]] | None
    """None where this user may not ask nft."""
    namespace: int
    changing: bool


def networks(*, tools: Tools | None = None, runner: Runner = run) -> list[Network]:
    """All networks of this user, whatever became of them. A directory in which nothing was begun is none."""
    entries = store.entries()
    if not entries:
        return []
    host = _look(tools or needs.find_tools(), runner)
    return [_network(entry, host) for entry in entries if entry.meta is not None]


def network(name: str, *, tools: Tools | None = None, runner: Runner = run) -> Network:
    """The network `name`. MachineError when there is none."""
    entry = store.entry(name)
    if entry is None or entry.meta is None:
        raise delete.no_such(name)
    return _network(entry, _look(tools or needs.find_tools(), runner))


def usable(name: str, *, tools: Tools | None = None, runner: Runner = run) -> Network:
    """The network `name` for a machine to join. MachineError, with what to do, unless it is as it should be."""
    found = network(name, tools=tools, runner=runner)
    if found.state != "active":
        problems = "; ".join(found.problems) or found.state
        raise MachineError(
            f"the network {name} cannot be used: {problems}",
            hint=f"`imgtool net delete {name}`, then create it again",
        )
    return found


def hidden_from_user() -> bool:
    """Whether root has networks here that this user does not see."""
    return os.geteuid() != 0 and os.path.isdir("/run/imgtool") and not os.access("/run/imgtool/net", os.R_OK)


def _look(tools: Tools, runner: Runner) -> _Host:
    tables: frozenset[tuple[str, str]] | None = None
    if needs.may_administer():
        with contextlib.suppress(ImgtoolError):  # without nft nobody can say
            tables = frozenset(firewall.tables(tools.nft, runner))
    return _Host(
        links=tuple(iproute.links(tools.ip, runner)),
        addresses=tuple(iproute.seen_addresses(tools.ip, runner)),
        tables=tables,
        namespace=store.namespace(),
        changing=store.being_changed(),
    )


def _network(entry: store.Entry, host: _Host) -> Network:
    assert entry.meta is not None
    config = entry.meta.config
    elsewhere = entry.meta.namespace != host.namespace
    server = _server(entry)
    bridge = None if elsewhere else _bridge(config, host)
    state: State
    if elsewhere:
        state, problems = "elsewhere", ["it was made in another network namespace"]
    elif entry.complete is None:
        state, problems = _half_made(host)
    elif bridge is None:
        state, problems = "stale", [f"its bridge {config.bridge} is gone"]
    else:
        problems = _problems(config, host, bridge, server)
        state = "broken" if problems else "active"
    return Network(
        name=config.name,
        kind=config.kind,
        state=state,
        bridge=config.bridge,
        mac=config.mac,
        subnet=config.subnet,
        addresses=_addresses(config, host) if bridge else (),
        dhcp_range=config.dhcp_range,
        ipv6_subnet=config.ipv6_subnet,
        isolated=config.isolated,
        forwards=config.forwards,
        nic=config.nic,
        dnsmasq=server.pid if server else None,
        leases=dnsmasq.read_leases(entry.directory),
        members=_members(config, host) if bridge else (),
        problems=tuple(problems),
        directory=entry.directory,
    )


def _half_made(host: _Host) -> tuple[State, list[str]]:
    if host.changing:
        return "changing", []
    return "unfinished", [
        "imgtool ended while making or deleting it; the next `net create` or `net delete` clears it"
    ]


def _bridge(config: Config, host: _Host) -> Link | None:
    for link in host.links:
        if (link.ifname, link.address) == (config.bridge, config.mac):
            return link
    return None


def _server(entry: store.Entry) -> ProcessId | None:
    """The network's dnsmasq, if it lives."""
    process = entry.complete.dnsmasq if entry.complete else None
    return process if process is not None and process.alive else None


def _problems(config: Config, host: _Host, bridge: Link, server: ProcessId | None) -> list[str]:
    found = []
    if not bridge.up:
        found.append(f"its bridge {config.bridge} is down")
    wanted = {text for text in (config.address, config.ipv6_address) if text}
    lost = sorted(wanted - set(_addresses(config, host)))
    found += [f"{config.bridge} has lost its address {address}" for address in lost]
    if config.kind == "nat" and server is None:
        found.append("its dnsmasq has ended")
    if host.tables is not None:
        name = names.table_name(config.name)
        found += [
            f"its firewall table {family} {name} is gone (was the firewall restarted?)"
            for family in firewall.families(config)
            if (family, name) not in host.tables
        ]
    for switch in forwarding.wanted(config):
        if forwarding.read(switch) == "0":
            found.append(f"{switch.replace('/', '.')} has been turned off")
    if config.nic is not None:
        link = next((link for link in host.links if link.ifname == config.nic), None)
        if link is None:
            found.append(f"its NIC {config.nic} is gone")
        elif link.master != config.bridge:
            found.append(f"its NIC {config.nic} has left the bridge")
    return found


def _addresses(config: Config, host: _Host) -> tuple[str, ...]:
    return tuple(
        f"{address.local}/{address.prefixlen}"
        for device, address in host.addresses
        if device == config.bridge and address.local and address.scope == "global"
    )


def _members(config: Config, host: _Host) -> tuple[Member, ...]:
    return tuple(
        Member(name=link.ifname, kind=link.kind, up=link.up) for link in host.links if link.master == config.bridge
    )
