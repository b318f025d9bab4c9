"""From words to a network: what is filled in, and what makes no sense."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgtool.errors import UsageError
from imgtool.machine.nets import ask, names
from imgtool.machine.nets.values import Config, Forward


def test_what_is_left_open_is_filled_in() -> None:
    assert ask.nat("lab", "10.77.0.0/24") == Config(
        name="lab",
        kind="nat",
        bridge="br-lab",
        mac=names.bridge_mac("lab"),
        subnet="10.77.0.0/24",
        address="10.77.0.1/24",
        dhcp_range=("10.77.0.2", "10.77.0.254"),
    )


def test_everything_can_be_said() -> None:
    config = ask.nat(
        "web",
        "192.168.4.0/22",
        bridge="webbr",
        dhcp_range="192.168.5.0-192.168.5.255",
        forwards=["tcp:8080:192.168.4.9:80", "udp:192.0.2.1:53:192.168.4.10:5353"],
        ipv6="fd42:1::/64",
    )
    assert (config.bridge, config.address, config.ipv6_address) == ("webbr", "192.168.4.1/22", "fd42:1::1/64")
    assert config.dhcp_range == ("192.168.5.0", "192.168.5.255")
    assert config.forwards == (
        Forward(protocol="tcp", host_port=8080, guest="192.168.4.9", guest_port=80),
        Forward(protocol="udp", host="192.0.2.1", host_port=53, guest="192.168.4.10", guest_port=5353),
    )
    assert [str(forward) for forward in config.forwards] == [
        "tcp:8080:192.168.4.9:80",
        "udp:192.0.2.1:53:192.168.4.10:5353",
    ]


def test_the_smallest_subnet_has_one_guest() -> None:
    assert ask.nat("lab", "10.77.0.4/30").dhcp_range == ("10.77.0.6", "10.77.0.6")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"subnet": "nonsense"}, "'nonsense' is not a subnet"),
        ({"subnet": "10.0.0.0/33"}, "is not a subnet"),
        ({"subnet": "10.77.0.0\x1b[2J/24"}, "\\x1b"),
        ({"subnet": "10.77.0.0"}, "no prefix length"),
        ({"subnet": "10.77.0.1/24"}, "an address inside a subnet"),
        ({"subnet": "10.77.0.0/31"}, "no room for a gateway and a guest"),
        ({"subnet": "10.77.0.1/32"}, "no room"),
        ({"subnet": "0.0.0.0/0"}, "not for hosts"),
        ({"subnet": "127.0.0.0/24"}, "not for hosts"),
        ({"subnet": "169.254.0.0/16"}, "not for hosts"),
        ({"subnet": "224.0.0.0/24"}, "not for hosts"),
        ({"subnet": "0.1.0.0/24"}, "not for hosts"),
        ({"subnet": "fd42::/64"}, "is IPv6"),
        ({"ipv6": "fd42::/48"}, "is not a /64"),
        ({"ipv6": "10.1.0.0/24"}, "is not an IPv6 subnet"),
        ({"ipv6": "fd42::1/64"}, "is not an IPv6 subnet"),
        ({"ipv6": "fe80::/64"}, "not for hosts"),
        ({"dhcp_range": "10.77.0.9"}, "is not a range"),
        ({"dhcp_range": "10.77.0.9-10.77.0.2"}, "ends before it begins"),
        ({"dhcp_range": "10.77.0.1-10.77.0.9"}, "is the gateway's address"),
        ({"dhcp_range": "10.77.0.9-10.77.1.9"}, "is not a guest's address"),
        ({"dhcp_range": "10.77.0.9-10.77.0.255"}, "is not a guest's address"),
        ({"dhcp_range": "10.77.0.2-10.77.0.9", "dhcp": False}, "contradict"),
        ({"forwards": ["tcp:80:10.77.0.2"]}, "forwards no port"),
        ({"forwards": ["sctp:80:10.77.0.2:80"]}, "forwards no port"),
        ({"forwards": ["tcp:0:10.77.0.2:80"]}, "is no port"),
        ({"forwards": ["tcp:80:10.77.0.2:65536"]}, "is no port"),
        ({"forwards": ["tcp:80:10.77.1.2:80"]}, "is not a guest's address"),
        ({"forwards": ["tcp:80:10.77.0.1:80"]}, "is not a guest's address"),
        ({"forwards": ["tcp:80:guest:80"]}, "is not an IPv4 address"),
        ({"forwards": ["tcp:host:80:10.77.0.2:80"]}, "is not an IPv4 address"),
        ({"forwards": ["tcp:80:10.77.0.2:80", "tcp:80:10.77.0.3:80"]}, "forward the same port"),
        ({"forwards": ["tcp:80:10.77.0.2:80", "tcp:192.0.2.1:80:10.77.0.3:80"]}, "forward the same port"),
        ({"forwards": ["tcp:80:10.77.0.2:80"], "isolated": True}, "--isolated keeps everything"),
        ({"name": "../etc"}, "is not a name for a network"),
        ({"name": "-x"}, "is not a name for a network"),
        ({"name": "x" * 33}, "is not a name for a network"),
        ({"bridge": "sixteen-letters-"}, "is not a name for a bridge"),
        ({"bridge": "br.0"}, "is not a name for a bridge"),
        ({"bridge": "all"}, "is not a name for a bridge"),
    ],
)
def test_nonsense_is_refused_in_words(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        ask.nat(**{"name": "lab", "subnet": "10.77.0.0/24"} | options)
    assert reason in caught.value.message
    assert "\x1b" not in caught.value.message


def test_one_port_may_be_forwarded_for_two_addresses_and_protocols() -> None:
    forwards = ["tcp:192.0.2.1:80:10.77.0.2:80", "tcp:192.0.2.2:80:10.77.0.3:80", "udp:80:10.77.0.3:80"]
    assert len(ask.nat("lab", "10.77.0.0/24", forwards=forwards).forwards) == 3


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ({}, []),
        ({"subnet": "172.31.0.0/16"}, []),
        ({"subnet": "172.32.0.0/16"}, ["172.32.0.0/16 is not private"]),
        ({"subnet": "100.64.0.0/24"}, ["100.64.0.0/24 is not private"]),
        ({"ipv6": "2001:db8:1::/64"}, ["2001:db8:1::/64 is not unique local"]),
    ],
)
def test_what_is_probably_not_meant_is_warned_of(options: dict[str, Any], warned: list[str]) -> None:
    config = ask.nat(**{"name": "lab", "subnet": "10.77.0.0/24"} | options)
    found = ask.warnings(config)
    assert len(found) == len(warned)
    assert all(text.startswith(begin) for text, begin in zip(found, warned, strict=True))


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", fullmatch=True))
def test_names_of_interfaces_fit_and_stay(name: str) -> None:
    assert names.network_name(name) == name
    made = [names.bridge_name(name), names.tap_name(name, 0), names.tap_name(name, 1), names.tap_name(name, 0, 1)]
    assert all(names.interface_name(text) for text in made)
    assert len(set(made)) == 4
    assert made[0] == names.bridge_name(name)
    first, *_ = names.bridge_mac(name).split(":")
    assert int(first, 16) & 3 == 2  # locally administered, not multicast


def test_long_names_that_begin_alike_have_bridges_of_their_own() -> None:
    assert names.bridge_name("a-long-name-for-one") != names.bridge_name("a-long-name-for-two")
