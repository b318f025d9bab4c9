"""The commands, word by word."""

from __future__ import annotations

import msgspec
import pytest

from imgtool.machine.nets import ask, dnsmasq, firewall, iproute, nic, prepare
from imgtool.machine.nets.iproute import Address, Link, Route
from imgtool.machine.nets.journal import DnsmasqStarted, ForwardingOn, LinkMade, NicMoved, TableMade
from imgtool.machine.nets.needs import Tools

TOOLS = Tools()


def test_the_steps_to_a_nat_network_and_what_is_written_down_before_each() -> None:
    config = ask.nat("lab", "10.77.0.0/24", forwards=["tcp:8080:10.77.0.5:80"], ipv6="fd42:1::/64")
    steps = prepare.nat_steps(config, "/run/imgtool/net/lab", TOOLS, stay_root=False)
    assert [list(step.argv) for step in steps] == [
        [
            "ip",
            "link",
            "add",
            "name",
            "br-lab",
            "address",
            "52:54:00:fc:02:97",
            "type",
            "bridge",
            "stp_state",
            "0",
            "forward_delay",
            "0",
        ],
        ["ip", "address", "add", "10.77.0.1/24", "broadcast", "+", "dev", "br-lab"],
        ["ip", "-6", "address", "add", "fd42:1::1/64", "dev", "br-lab", "nodad"],
        ["ip", "link", "set", "dev", "br-lab", "up"],
        ["nft", firewall.ruleset(config, "ip")],
        ["nft", firewall.ruleset(config, "ip6")],
        ["sysctl", "-q", "-w", "net/ipv4/conf/br-lab/route_localnet=1"],
        ["sysctl", "-q", "-w", "net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1"],
        dnsmasq.argv("dnsmasq", config, "/run/imgtool/net/lab"),
    ]
    assert [step.records for step in steps] == [
        (LinkMade(name="br-lab", mac="52:54:00:fc:02:97"),),
        (),
        (),
        (),
        (TableMade(family="ip", name="imgtool_lab"),),
        (TableMade(family="ip6", name="imgtool_lab"),),
        (),
        (ForwardingOn(),),
        (DnsmasqStarted(),),
    ]


def test_an_isolated_network_does_not_make_the_host_forward() -> None:
    steps = prepare.nat_steps(ask.nat("lab", "10.77.0.0/24", isolated=True), "/run/x", TOOLS, stay_root=False)
    assert [step.argv[0] for step in steps] == ["ip", "ip", "ip", "nft", "dnsmasq"]


def test_dnsmasq_serves_the_bridge_alone() -> None:
    config = ask.nat("lab", "10.77.0.0/24", dhcp_range="10.77.0.10-10.77.0.19", ipv6="fd42:1::/64")
    assert dnsmasq.argv("dnsmasq", config, "/run/n/lab") == [
        "dnsmasq",
        "--conf-file=/dev/null",
        "--pid-file=/run/n/lab/dnsmasq.pid",
        "--dhcp-leasefile=/run/n/lab/leases",
        "--log-facility=/run/n/lab/dnsmasq.log",
        "--interface=br-lab",
        "--except-interface=lo",
        "--bind-dynamic",
        "--no-hosts",
        "--domain-needed",
        "--quiet-dhcp",
        "--quiet-dhcp6",
        "--quiet-ra",
        "--dhcp-range=10.77.0.10,10.77.0.19,255.255.255.0,12h",
        "--dhcp-lease-max=10",
        "--dhcp-authoritative",
        "--enable-ra",
        "--dhcp-range=fd42:1::,ra-only,64,12h",
    ]


@pytest.mark.parametrize(
    ("options", "stay_root", "added"),
    [
        ({"dhcp": False}, False, []),
        ({"dhcp": False}, True, ["--user=root", "--group="]),
        ({"dhcp": False, "isolated": True}, False, ["--no-resolv", "--dhcp-option=option:router"]),
        (
            {"dhcp": False, "isolated": True, "ipv6": "fd42:1::/64"},
            False,
            [
                *("--no-resolv", "--dhcp-option=option:router"),
                *("--enable-ra", "--dhcp-range=fd42:1::,ra-only,64,12h", "--ra-param=br-lab,0,0"),
            ],
        ),
    ],
)
def test_dnsmasq_is_told_no_more_than_it_needs(options: dict[str, str], stay_root: bool, added: list[str]) -> None:
    config = ask.nat("lab", "10.77.0.0/24", **options)  # type: ignore[arg-type]
    assert dnsmasq.argv("dnsmasq", config, "/run/n/lab", stay_root=stay_root)[13:] == added


def test_the_firewall_table_is_one_line_that_replaces_an_older_one() -> None:
    config = ask.nat("lab", "10.77.0.0/24", forwards=["tcp:8080:10.77.0.5:80", "udp:127.0.0.1:53:10.77.0.5:53"])
    assert firewall.ruleset(config, "ip") == (
        "add table ip imgtool_lab; delete table ip imgtool_lab; table ip imgtool_lab { "
        "chain raw { type filter hook prerouting priority -300; policy accept; "
        'iifname "br-lab" ip daddr 127.0.0.0/8 drop; iifname "br-lab" ip saddr 127.0.0.0/8 drop; }; '
        "chain prerouting { type nat hook prerouting priority -100; policy accept; "
        "fib daddr type local tcp dport 8080 dnat to 10.77.0.5:80; }; "
        "chain output { type nat hook output priority -100; policy accept; "
        "fib daddr type local tcp dport 8080 dnat to 10.77.0.5:80; "
        "ip daddr 127.0.0.1 udp dport 53 dnat to 10.77.0.5:53; }; "
        "chain forward { type filter hook forward priority 0; policy accept; "
        'iifname "br-lab" accept; oifname "br-lab" ct state established,related accept; '
        'oifname "br-lab" ct status dnat accept; oifname "br-lab" reject; }; '
        "chain postrouting { type nat hook postrouting priority 100; policy accept; "
        "ip saddr 10.77.0.0/24 ip daddr != 10.77.0.0/24 ip daddr != { 224.0.0.0/4, 255.255.255.255 } masquerade; "
        'oifname "br-lab" ip saddr 10.77.0.0/24 ct status dnat masquerade; '
        'oifname "br-lab" ip saddr 127.0.0.0/8 ct status dnat masquerade; }; }'
    )


def test_the_table_of_an_isolated_network_lets_nothing_through() -> None:
    config = ask.nat("lab", "10.77.0.0/24", isolated=True)
    assert firewall.ruleset(config, "ip") == (
        "add table ip imgtool_lab; delete table ip imgtool_lab; table ip imgtool_lab { "
        "chain forward { type filter hook forward priority 0; policy accept; "
        'iifname "br-lab" oifname "br-lab" accept; iifname "br-lab" drop; oifname "br-lab" drop; }; }'
    )


def moved(*, addresses: tuple[Address, ...] = (), routes: tuple[Route, ...] = ()) -> NicMoved:
    return NicMoved(
        nic="eth1", bridge="br-lan", up=True, addresses=addresses, routes=routes, routes6=(), when=1_000_000
    )


FOUR = Address(family="inet", local="192.0.2.10", prefixlen=24, broadcast="192.0.2.255", label="eth1")
NAMED = Address(family="inet", local="192.0.2.11", prefixlen=24, label="eth1:a", secondary=True, valid_life_time=100)
OLD, NEW = (Address(family="inet6", local=f"2001:db8::{number}", prefixlen=64) for number in (1, 2))
DEFAULT = Route(dst="default", gateway="192.0.2.1", dev="eth1", protocol="static", metric=100)
STEP = Route(dst="198.18.0.0/15", dev="eth1", scope="link", flags=("onlink",))


def test_a_nic_hands_over_what_it_has_in_the_order_that_keeps_it() -> None:
    have = moved(addresses=(FOUR, NAMED, NEW, OLD), routes=(DEFAULT, STEP))
    assert nic.move_argvs("ip", have) == [
        ["ip", "link", "set", "dev", "eth1", "master", "br-lan", "up"],
        ["ip", "-4", "address", "flush", "dev", "eth1"],
        ["ip", "-6", "address", "flush", "dev", "eth1", "scope", "global"],
        ["ip", "-4", "address", "replace", "192.0.2.10/24", "broadcast", "192.0.2.255", "dev", "br-lan"],
        ["ip", "-4", "address", "replace", "192.0.2.11/24", "label", "br-lan:a", "dev", "br-lan", "valid_lft", "100"],
        ["ip", "-6", "address", "replace", "2001:db8::1/64", "dev", "br-lan"],
        ["ip", "-6", "address", "replace", "2001:db8::2/64", "dev", "br-lan"],
        [
            "ip",
            "-4",
            "route",
            "replace",
            "198.18.0.0/15",
            "dev",
            "br-lan",
            "table",
            "main",
            "protocol",
            "boot",
            "scope",
            "link",
            "onlink",
        ],
        [
            "ip",
            "-4",
            "route",
            "replace",
            "default",
            "via",
            "192.0.2.1",
            "dev",
            "br-lan",
            "table",
            "main",
            "protocol",
            "static",
            "scope",
            "global",
            "metric",
            "100",
        ],
    ]


def test_what_has_ended_since_does_not_come_back() -> None:
    have = moved(addresses=(FOUR, NAMED))
    link = Link(ifname="eth1", flags=("UP",), master="br-lan")
    assert nic.back_argvs("ip", have, link, [], now=1_000_050) == [
        ["ip", "link", "set", "dev", "eth1", "nomaster"],
        ["ip", "-4", "address", "replace", "192.0.2.10/24", "broadcast", "192.0.2.255", "dev", "eth1"],
        ["ip", "-4", "address", "replace", "192.0.2.11/24", "label", "eth1:a", "dev", "eth1", "valid_lft", "50"],
    ]
    assert "192.0.2.11/24" not in str(nic.back_argvs("ip", have, link, [], now=1_000_150))


def test_a_nic_that_is_gone_gets_nothing_back() -> None:
    assert nic.back_argvs("ip", moved(addresses=(FOUR,)), None, [], now=0) == []


def test_a_nic_of_which_nothing_was_taken_is_left_alone() -> None:
    have = moved(addresses=(FOUR,))
    assert nic.back_argvs("ip", have, Link(ifname="eth1", flags=("UP",)), [FOUR], now=1_000_000) == []


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (
            b'{"type":"unreachable","dst":"10.9.0.0/16","dev":"lo","table":"main","protocol":"boot","scope":"global"}',
            "unreachable 10.9.0.0/16 dev x table main protocol boot scope global",
        ),
        (
            b'{"type":"unicast","dst":"10.5.0.0/24","via":{"family":"inet6","host":"fe80::1"},"dev":"a","table":"9",'
            b'"protocol":"boot","scope":"global","tos":"0x10","prefsrc":"10.2.0.1","metrics":[{"mtu":1300,"advmss":9}]}',
            "10.5.0.0/24 via inet6 fe80::1 tos 0x10 dev x table 9 protocol boot scope global src 10.2.0.1 "
            "mtu 1300 advmss 9",
        ),
        (
            b'{"type":"unicast","dst":"default","from":"2001:db8:7::/64","gateway":"fe80::1","dev":"a","table":"main",'
            b'"protocol":"ra","scope":"global","metric":1024,"flags":[],"expires":99,"pref":"high"}',
            "default from 2001:db8:7::/64 via fe80::1 dev x table main protocol ra metric 1024 pref high expires 89",
        ),
    ],
)
def test_a_route_comes_back_in_the_words_it_was_shown_in(entry: bytes, words: str) -> None:
    route = msgspec.json.decode(entry, type=Route)
    assert " ".join(iproute.route_words(route, "x", passed=10)) == words


def test_leases_are_read_as_dnsmasq_writes_them() -> None:
    text = (
        "1700000000 52:54:00:00:00:01 10.77.0.10 web 01:52:54:00:00:00:01\n"
        "0 52:54:00:00:00:02 10.77.0.9 * *\n"
        "half a line\n"
        "duid 00:01:00:01:aa\n"
        "1700000000 12345 fd42:1::5 web 00:01\n"
    )
    leases = [(lease.address, lease.mac, lease.hostname, lease.expires) for lease in dnsmasq.parse_leases(text)]
    assert leases == [
        ("10.77.0.9", "52:54:00:00:00:02", None, None),
        ("10.77.0.10", "52:54:00:00:00:01", "web", 1700000000),
    ]


@pytest.mark.parametrize(
    ("uid_map", "answer"),
    [("         0          0 4294967295\n", False), ("0 1000 1\n", True), ("0 1000 1\n1 100000 65536\n", False)],
)
def test_dnsmasq_stays_root_where_there_is_no_other_user(uid_map: str, answer: bool) -> None:
    assert dnsmasq.must_stay_root(uid_map) is answer
