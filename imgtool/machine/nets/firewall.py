"""nftables: a table of its own for each network, which comes and goes as a whole.

Nothing in other tables is touched. An `accept` here does not overrule a `drop` of another table, so that chains which
drop what they do not know (Docker's, a firewall's) are looked for and named.
"""

from __future__ import annotations

import ipaddress
import shlex

import msgspec

from imgtool.errors import DecodeError
from imgtool.machine.nets.names import table_name
from imgtool.machine.nets.values import Config, Forward
from imgtool.qemu.process import Limits, Runner, failure

LIMITS = Limits(seconds=30)


class Table(msgspec.Struct, frozen=True):
    family: str
    name: str


class Chain(msgspec.Struct, frozen=True):
    family: str
    table: str
    name: str
    hook: str | None = None
    policy: str | None = None


class _Entry(msgspec.Struct, frozen=True):
    table: Table | None = None
    chain: Chain | None = None


class _Answer(msgspec.Struct, frozen=True):
    nftables: tuple[_Entry, ...]


def families(config: Config) -> list[str]:
    if config.kind != "nat":
        return []
    return ["ip", "ip6"] if config.ipv6_subnet else ["ip"]


def ruleset(config: Config, family: str) -> str:
    """The table of `config` in nft's language, one line, to be read and pasted. The first two commands
    make it replace what an older one left; nft does the three at once or not at all."""
    table = f"{family} {table_name(config.name)}"
    chains = _isolated(config) if config.isolated else _routed(config, family)
    body = " ".join(f"chain {name} {{ {'; '.join((kind, *rules))}; }};" for name, kind, rules in chains if rules)
    return f"add table {table}; delete table {table}; table {table} {{ {body} }}"


def add_table_argv(nft: str, config: Config, family: str) -> list[str]:
    return [nft, ruleset(config, family)]


def delete_table_argv(nft: str, family: str, name: str) -> list[str]:
    return [nft, "delete", "table", family, name]


_Chain = tuple[str, str, list[str]]


def _routed(config: Config, family: str) -> list[_Chain]:
    bridge = f'"{config.bridge}"'
    subnet = config.ipv6_subnet if family == "ip6" else config.subnet
    forwards = config.forwards if family == "ip" else ()
    forward = [f"iifname {bridge} accept", f"oifname {bridge} ct state established,related accept"]
    if forwards:
        forward.append(f"oifname {bridge} ct status dnat accept")
    forward.append(f"oifname {bridge} reject")
    postrouting = [f"{family} saddr {subnet} {family} daddr != {subnet} {_no_multicast(family)} masquerade"]
    prerouting, output, raw = [], [], []
    if forwards:
        # A guest that reaches a neighbour through the host's port must get its answers through the host, too; and
        # what the host sends from 127.0.0.1 must leave with an address that the guest can answer.
        postrouting.append(f"oifname {bridge} ip saddr {subnet} ct status dnat masquerade")
        postrouting.append(f"oifname {bridge} ip saddr 127.0.0.0/8 ct status dnat masquerade")
        prerouting = [_dnat(item) for item in forwards if not _loopback(item)]
        output = [_dnat(item) for item in forwards]
        # route_localnet is on for this bridge (the line above needs it): guests must not reach 127.0.0.1 by it.
        raw = [f"iifname {bridge} ip daddr 127.0.0.0/8 drop", f"iifname {bridge} ip saddr 127.0.0.0/8 drop"]
    return [
        ("raw", "type filter hook prerouting priority -300; policy accept", raw),
        ("prerouting", "type nat hook prerouting priority -100; policy accept", prerouting),
        ("output", "type nat hook output priority -100; policy accept", output),
        ("forward", "type filter hook forward priority 0; policy accept", forward),
        ("postrouting", "type nat hook postrouting priority 100; policy accept", postrouting),
    ]


def _isolated(config: Config) -> list[_Chain]:
    bridge = f'"{config.bridge}"'
    # Bridged packets come by here where br_netfilter is loaded: both ends are then the bridge.
    rules = [f"iifname {bridge} oifname {bridge} accept", f"iifname {bridge} drop", f"oifname {bridge} drop"]
    return [("forward", "type filter hook forward priority 0; policy accept", rules)]


def _no_multicast(family: str) -> str:
    return "ip6 daddr != ff00::/8" if family == "ip6" else "ip daddr != { 224.0.0.0/4, 255.255.255.255 }"


def _dnat(forward: Forward) -> str:
    where = f"ip daddr {forward.host}" if forward.host else "fib daddr type local"
    return f"{where} {forward.protocol} dport {forward.host_port} dnat to {forward.guest}:{forward.guest_port}"


def _loopback(forward: Forward) -> bool:
    return forward.host is not None and ipaddress.IPv4Address(forward.host).is_loopback


def tables_argv(nft: str) -> list[str]:
    return [nft, "-j", "list", "tables"]


def chains_argv(nft: str) -> list[str]:
    return [nft, "-j", "list", "chains"]


def tables(nft: str, runner: Runner) -> set[tuple[str, str]]:
    """(family, name) of every table here."""
    return {(entry.table.family, entry.table.name) for entry in _ask(tables_argv(nft), runner) if entry.table}


def dropping_chains(nft: str, runner: Runner) -> list[Chain]:
    """The chains of others that drop what no rule of theirs accepts, where guests' packets come by."""
    chains = [entry.chain for entry in _ask(chains_argv(nft), runner) if entry.chain]
    return [
        chain
        for chain in chains
        if chain.policy == "drop"
        and chain.hook in ("forward", "input")
        and chain.family in ("ip", "inet")
        and not chain.table.startswith(table_name(""))
    ]


def drop_warning(chain: Chain, config: Config) -> str:
    """What is in the way, with the commands that let the network's packets through."""
    where = f"{chain.family} {chain.table} {chain.name}"
    insert = f"nft insert rule {where}"
    if chain.hook == "input":
        return (
            f"the firewall's chain {where} drops what it does not know, so that guests may get neither address nor "
            f"name from here; `{insert} iifname {config.bridge} meta l4proto {{ tcp, udp }} th dport {{ 53, 67 }} "
            "accept` lets them ask"
        )
    back = "" if config.kind == "bridge" else " ct state established,related"
    return (
        f"the firewall's chain {where} drops what it does not know, so that guests may not get out; "
        f"`{insert} iifname {config.bridge} accept` and `{insert} oifname {config.bridge}{back} accept` let them"
    )


def _ask(argv: list[str], runner: Runner) -> tuple[_Entry, ...]:
    done = runner(argv, limits=LIMITS)
    if done.status != 0:
        raise failure(done)
    try:
        return msgspec.json.decode(done.stdout, type=_Answer).nftables
    except msgspec.MsgspecError as error:
        raise DecodeError(f"{shlex.join(argv)} answers what imgtool cannot read: {error}") from None
