"""What it takes to make a network: every look at the host, and the steps. Nothing is changed here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from imgtool.errors import RefusedError
from imgtool.image.names import printable
from imgtool.machine.nets import ask, dnsmasq, firewall, forwarding, guard, iproute, names, needs, nic, store
from imgtool.machine.nets.journal import DnsmasqStarted, ForwardingOn, LinkMade, NicMoved, TableMade, Undo
from imgtool.machine.nets.needs import Tools
from imgtool.machine.nets.values import Config
from imgtool.qemu.process import Runner


class Step(NamedTuple):
    """A command, and what is written into the journal before it is run."""

    argv: tuple[str, ...]
    records: tuple[Undo, ...] = ()


class Prepared(NamedTuple):
    """A network that nothing speaks against, not made yet."""

    config: Config
    steps: tuple[Step, ...]
    warnings: tuple[str, ...]


class Request(NamedTuple):
    """A network that is asked for. `prepare` looks at the host; it is called when nobody changes networks any more.
    It raises RefusedError where something speaks against it and was not overruled."""

    name: str
    programs: tuple[str, ...]
    prepare: Callable[[Tools, Runner], Prepared]


def nat(config: Config, *, force: bool = False) -> Request:
    """A request for `config` (from `ask.nat`). `force` takes addresses and ports that others have."""

    def prepare(tools: Tools, runner: Runner) -> Prepared:
        guard.check_forwards(config, _others(config.name))
        if not force:
            guard.check_subnets(config, tools.ip, runner)
            guard.check_ports(config)
        guard.check_router_advertisements(config, tools.ip, runner)
        guard.check_bridge_is_free(config, iproute.links(tools.ip, runner))
        warnings = (*ask.warnings(config), *_firewall_warnings(config, tools, runner))
        return Prepared(config, nat_steps(config, store.directory(config.name), tools, _must_stay_root()), warnings)

    return Request(config.name, needs.NAT, prepare)


def over_nic(name: str, device: str, *, bridge: str | None = None, force: bool = False) -> Request:
    """A request for a bridge over the NIC `device`. `force` makes it though the session may depend on that NIC."""
    named = ask.over_nic(name, device, mac="", mtu=None, bridge=bridge)

    def prepare(tools: Tools, runner: Runner) -> Prepared:
        link, moved = nic.look(tools.ip, device, named.bridge, runner)
        config = ask.over_nic(name, device, mac=link.address or "", mtu=link.mtu, bridge=bridge)
        guard.check_bridge_is_free(config, iproute.links(tools.ip, runner))
        reasons = nic.session_reasons(tools.ip, device, runner, client=nic.ssh_client())
        if reasons and not force:
            raise RefusedError(
                f"{printable(device)} may carry this session: {'; '.join(reasons)}",
                hint="--force makes the bridge nevertheless, best from a console; --nat SUBNET leaves NICs alone",
            )
        warnings = (*_nic_warnings(config, moved, reasons), *_firewall_warnings(config, tools, runner))
        return Prepared(config, bridge_steps(config, moved, tools), warnings)

    return Request(name, needs.BRIDGE, prepare)


def nat_steps(config: Config, directory: str, tools: Tools, stay_root: bool) -> tuple[Step, ...]:
    """The way to a NAT network. The firewall's rules stand before the host begins to forward. Pure."""
    ip, bridge = tools.ip, config.bridge
    assert config.address is not None
    steps = [
        _step(iproute.add_bridge_argv(ip, bridge, config.mac, None), LinkMade(name=bridge, mac=config.mac)),
        _step(iproute.add_address_argv(ip, config.address, bridge)),
    ]
    if config.ipv6_address:
        steps.append(_step(iproute.add_address_argv(ip, config.ipv6_address, bridge)))
    steps.append(_step(iproute.up_argv(ip, bridge)))
    for family in firewall.families(config):
        record = TableMade(family=family, name=names.table_name(config.name))
        steps.append(_step(firewall.add_table_argv(tools.nft, config, family), record))
    if config.forwards:
        # Lets the host reach a forwarded port by 127.0.0.1; gone with the bridge.
        settings = {f"net/ipv4/conf/{bridge}/route_localnet": "1"}
        steps.append(_step(forwarding.set_argv(tools.sysctl, settings)))
    switches = forwarding.wanted(config)
    if switches:
        steps.append(_step(forwarding.set_argv(tools.sysctl, switches), ForwardingOn()))
    steps.append(_step(dnsmasq.argv(tools.dnsmasq, config, directory, stay_root=stay_root), DnsmasqStarted()))
    return tuple(steps)


def bridge_steps(config: Config, moved: NicMoved, tools: Tools) -> tuple[Step, ...]:
    """The way to a bridge over a NIC. Pure."""
    ip, bridge = tools.ip, config.bridge
    made = LinkMade(name=bridge, mac=config.mac)
    # Undone from the end: first the bridge goes, then the NIC gets back what the bridge had of it.
    return (
        _step(iproute.add_bridge_argv(ip, bridge, config.mac, config.mtu), moved, made),
        _step(iproute.up_argv(ip, bridge)),
        *(_step(argv) for argv in nic.move_argvs(ip, moved)),
    )


def _step(argv: Sequence[str], *records: Undo) -> Step:
    return Step(tuple(argv), records)


def _others(name: str) -> list[Config]:
    return [entry.meta.config for entry in store.entries() if entry.meta is not None and entry.name != name]


def _nic_warnings(config: Config, moved: NicMoved, reasons: Sequence[str]) -> list[str]:
    shown = printable(moved.nic)
    found = [
        f"{shown} goes into the bridge {config.bridge}, which takes over its addresses and routes; what manages "
        f"{shown} (NetworkManager, networkd, a DHCP client) is not told"
    ]
    if any(address.dynamic for address in moved.addresses):
        found.append(f"{shown} has addresses for a time only; whoever renews them has to do so on {config.bridge}")
    return found + [f"forced, although {reason}" for reason in reasons]


def _firewall_warnings(config: Config, tools: Tools, runner: Runner) -> list[str]:
    """Chains of others that may drop the guests' packets, where nft can tell."""
    if config.isolated or not needs.may_administer() or needs.lacking(("nft",), tools):
        return []
    if config.kind == "bridge" and forwarding.read("net/bridge/bridge-nf-call-iptables") != "1":
        return []  # bridged packets do not come by there
    chains = firewall.dropping_chains(tools.nft, runner)
    if config.kind == "bridge":
        chains = [chain for chain in chains if chain.hook == "forward"]
    return [firewall.drop_warning(chain, config) for chain in chains]


def _must_stay_root() -> bool:
    try:
        with open("/proc/self/uid_map") as file:
            return dnsmasq.must_stay_root(file.read())
    except OSError:
        return False
