"""`imgtool net …`: networks for machines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import click

from imgtool.cli.context import Context, dry_run_option, output_option, pass_context, quiet_option
from imgtool.cli.lazy import Entry, LazyGroup
from imgtool.cli.options import Word, force_option
from imgtool.cli.output import emit, remark, warn
from imgtool.errors import UsageError
from imgtool.image.names import printable

if TYPE_CHECKING:
    from imgtool.machine.nets.prepare import Request
    from imgtool.machine.nets.values import Network, Plan

SECTIONS = {
    "Looking": {
        "list": Entry("imgtool.cli.net:list_", "List the networks."),
        "show": Entry("imgtool.cli.net:show", "Show a network: its state, leases and VMs."),
    },
    "Changing": {
        "create": Entry("imgtool.cli.net:create", "Create a network, with NAT or over a NIC."),
        "delete": Entry("imgtool.cli.net:delete", "Delete a network and restore the host."),
    },
}


ELSEWHERE = {
    "ls": "imgtool net list",
    "new": "imgtool net create",
    "add": "imgtool net create",
    "rm": "imgtool net delete",
    "destroy": "imgtool net delete",
    "inspect": "imgtool net show",
}
"""What other programs say."""


@click.group(cls=LazyGroup, sections=SECTIONS, elsewhere=ELSEWHERE)
def net() -> None:
    """Networks for VMs: bridges with NAT, DHCP and DNS, or over a NIC of this host. Needs Linux and root.

    A network lasts until it is deleted or the host reboots. `imgtool boot --network user` needs none of this.
    """


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool net create lab --nat 10.77.0.0/24\n"
    "  imgtool net create web --nat 10.78.0.0/24 --dhcp-range 10.78.0.10-10.78.0.99 --forward tcp:8080:10.78.0.2:80\n"
    "  imgtool net create quiet --nat 10.79.0.0/24 --isolated\n"
    "  imgtool net create lan --bridge eth1\n"
    "  imgtool boot disk.qcow2 --network nat,net=lab"
)
@click.argument("name")
@click.option("--nat", metavar="SUBNET", help="A private subnet behind this host, which has its first address.")
@click.option("--bridge", "nic", metavar="NIC", help="Bridge NIC, so that VMs are directly on the LAN.")
@click.option("--bridge-name", metavar="NAME", help="The bridge's name.  [default: br-NAME]")
@click.option("--dhcp-range", metavar="FIRST-LAST", help="Addresses for DHCP.  [default: all but the first]")
@click.option("--no-dhcp", is_flag=True, help="Give out no addresses by DHCP; DNS still works.")
@click.option(
    "--forward",
    "forwards",
    metavar="tcp:[ADDRESS:]HOSTPORT:GUEST:PORT",
    multiple=True,
    help="Forward a port of this host to the VM with the address GUEST; also udp. May be repeated.",
)
@click.option("--isolated", is_flag=True, help="VMs can reach this host and each other, and nothing else.")
@click.option("--ipv6", metavar="SUBNET", help="An IPv6 subnet (a /64) in addition.")
@force_option("Even if addresses or ports are taken, or your session may depend on NIC.")
@dry_run_option
@output_option()
@quiet_option
@pass_context
def create(
    context: Context,
    name: str,
    nat: str | None,
    nic: str | None,
    bridge_name: str | None,
    dhcp_range: str | None,
    no_dhcp: bool,
    forwards: tuple[str, ...],
    isolated: bool,
    ipv6: str | None,
    force: bool,
    dry_run: bool,
) -> None:
    """Create the network NAME: a bridge with an address of this host, DHCP and DNS by dnsmasq, and masquerading by
    nftables (--nat); or a bridge that takes the place of a NIC (--bridge).

    It is created completely or not at all.
    """
    from imgtool.machine.nets import ask, prepare, status
    from imgtool.machine.nets.create import create as make
    from imgtool.machine.nets.create import plan

    if (nat is None) == (nic is None):
        raise UsageError("a network takes either --nat SUBNET or --bridge NIC")
    request: Request
    if nat is not None:
        config = ask.nat(
            name,
            nat,
            bridge=bridge_name,
            dhcp_range=dhcp_range,
            dhcp=not no_dhcp,
            forwards=forwards,
            isolated=isolated,
            ipv6=ipv6,
        )
        request = prepare.nat(config, force=force)
    else:
        given = {"--dhcp-range": dhcp_range, "--no-dhcp": no_dhcp, "--forward": forwards, "--isolated": isolated}
        _refuse_for_bridge(given | {"--ipv6": ipv6})
        assert nic is not None
        request = prepare.over_nic(name, nic, bridge=bridge_name, force=force)
    if dry_run:
        _emit_plan(context, plan(request))
        return
    for warning in make(request):
        warn(context, warning)
    network = status.network(name)
    emit(context, network, _network_lines(network))


@click.command(name="list", epilog="\b\nExamples:\n  imgtool net list\n  imgtool net list --output json")
@output_option()
@quiet_option
@pass_context
def list_(context: Context) -> None:
    """List the networks, including any left behind by a killed imgtool or a reboot."""
    from imgtool.machine.nets import status

    networks = status.networks()
    if not networks and status.hidden_from_user():
        remark(context, "networks that root made are shown to root alone")
    emit(context, networks, _table(networks))


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool net show lab\n"
    "  imgtool net show lab --output json | jq -r '.leases[] | .hostname + \" \" + .address'"
)
@click.argument("name", type=Word("networks"))
@output_option()
@quiet_option
@pass_context
def show(context: Context, name: str) -> None:
    """Show the network NAME: whether it is complete, its addresses, its DHCP leases, and the VMs on it."""
    from imgtool.machine.nets import status

    network = status.network(name)
    emit(context, network, _network_lines(network))


@click.command(epilog="\b\nExamples:\n  imgtool net delete lab\n  imgtool net delete lab --dry-run")
@click.argument("name", type=Word("networks"))
@force_option("Even if machines are on it, or its network namespace is gone.")
@dry_run_option
@output_option()
@quiet_option
@pass_context
def delete(context: Context, name: str, force: bool, dry_run: bool) -> None:
    """Delete the network NAME, whatever is left of it, and restore what it changed: the NIC's addresses and routes,
    and the host's forwarding, unless another network needs that."""
    from imgtool.machine.nets.delete import delete as undo
    from imgtool.machine.nets.delete import plan

    if dry_run:
        _emit_plan(context, plan(name, force=force))
        return
    undo(name, force=force)
    emit(context, {"deleted": name}, [f"deleted {name}"])


def _refuse_for_bridge(given: Mapping[str, object]) -> None:
    wrong = [option for option, value in given.items() if value]
    if wrong:
        raise UsageError(
            f"{', '.join(wrong)} and --bridge do not go together: addresses come from the LAN there",
            hint="--nat SUBNET makes a network that this host serves",
        )


def _emit_plan(context: Context, plan: Plan) -> None:
    from imgtool.cli.render import shell

    for warning in plan.warnings:
        warn(context, warning)
    emit(context, plan, [shell(command) for command in plan.commands] or ["nothing to do but to forget it"])


def _table(networks: list[Network]) -> Iterator[str]:
    from imgtool.cli.render import table

    if not networks:
        yield "no networks"
        return
    rows = [
        (net.name, net.kind, net.state, net.bridge, net.subnet or printable(net.nic or ""), str(len(net.leases)))
        for net in networks
    ]
    yield from table(("NAME", "KIND", "STATE", "BRIDGE", "SUBNET/NIC", "LEASES"), rows, right=(5,))


def _network_lines(network: Network) -> Iterator[str]:
    from imgtool.cli.render import fields, table

    yield from fields(_fields(network))
    if network.leases:
        from imgtool.cli.render import date

        yield "leases:"
        rows = [
            (
                printable(lease.address),
                printable(lease.mac),
                printable(lease.hostname or "-"),
                "never" if lease.expires is None else date(lease.expires),
            )
            for lease in network.leases
        ]
        yield from table(("ADDRESS", "MAC", "NAME", "UNTIL"), rows, indent="  ")


def _fields(network: Network) -> Iterator[tuple[str, str]]:
    yield "network", network.name
    yield "state", network.state
    for problem in network.problems:
        yield "problem", problem
    yield "kind", network.kind + (", isolated" if network.isolated else "")
    yield "bridge", network.bridge
    if network.nic:
        yield "NIC", printable(network.nic)
    for subnet in (network.subnet, network.ipv6_subnet):
        if subnet:
            yield "subnet", subnet
    for address in network.addresses:
        yield "address", address
    if network.dhcp_range:
        yield "DHCP", " to ".join(network.dhcp_range)
    if network.dnsmasq:
        yield "dnsmasq", f"process {network.dnsmasq}"
    for forward in network.forwards:
        yield "forward", str(forward)
    for member in network.members:
        kind = {"tun": "tap"}.get(member.kind or "", member.kind) or "NIC"
        yield "member", f"{printable(member.name)} ({kind}{'' if member.up else ', down'})"
