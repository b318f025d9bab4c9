"""A bridge over a NIC: it takes everything over, and gives everything back."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from tests.machine.nets.lab import Done, Lab


@pytest.fixture
def site(lan: Lab) -> Lab:
    """The host has another NIC: `nic1`, on 203.0.113.0/24, with about everything a NIC can have."""
    lan.add_network("site")
    lan.add_nic("nic1", "site", "site0")
    lan("ip", "link", "set", "nic1", "mtu", "1400")
    for address in ("203.0.113.1/24", "2001:db8:5::1/64"):
        lan("ip", "address", "add", address, "dev", "site0", where="site")
    for words in (
        "address add 203.0.113.10/24 broadcast + dev nic1",
        "address add 203.0.113.11/24 dev nic1 label nic1:two",
        "address add 203.0.113.129/25 metric 7 dev nic1",
        "address add 10.50.0.1 peer 10.50.0.2 dev nic1",
        "address add 169.254.7.7/16 scope link dev nic1",
        "address add 10.60.0.1/24 noprefixroute dev nic1",
        "route add 10.60.0.0/24 dev nic1 protocol kernel scope link src 10.60.0.1 metric 100",
        "-6 address add 2001:db8:5::10/64 dev nic1 nodad",
        "-6 address add 2001:db8:5::11/64 dev nic1 nodad",
        "route add 198.18.0.0/15 via 203.0.113.1 metric 20 mtu 1300",
        "route add 198.51.100.128/25 via 198.18.0.1 dev nic1 onlink",
        "route add default via 203.0.113.1 table 77",
        "-6 route add 2001:db8:6::/48 via 2001:db8:5::1",
    ):
        lan("ip", *words.split())
    return lan


def bridge(lab: Lab, nic: str, *words: str, **env: str) -> Done:
    return lab.imgtool("net", "create", "lan", "--bridge", nic, *words, "--output", "json", **env)


def addresses(lab: Lab, device: str) -> list[str]:
    (link,) = json.loads(lab("ip", "-json", "address", "show", "dev", device))
    return [f"{entry['local']}/{entry['prefixlen']}" for entry in link["addr_info"] if entry["scope"] != "link"]


def routes(lab: Lab, device: str) -> list[tuple[Any, ...]]:
    found = json.loads(lab("ip", "-json", "-details", "route", "show", "table", "all"))
    return [
        (route["dst"], route.get("gateway"), route["table"], route.get("metric"))
        for route in found
        if route.get("dev") == device and route["table"] != "local" and route["dst"] != "fe80::/64"
    ]


def test_the_bridge_takes_over_what_the_nic_had_and_gives_it_back(site: Lab) -> None:
    before = site.state()
    had, led = addresses(site, "nic1"), routes(site, "nic1")
    site.serve("203.0.113.1", 80, "site", where="site")

    done = bridge(site, "nic1")
    assert done.status == 0, done.stderr
    assert "NetworkManager" in done.stderr  # the warning
    network = done.document
    assert (network["state"], network["kind"], network["nic"]) == ("active", "bridge", "nic1")
    assert [member["name"] for member in network["members"]] == ["nic1"]
    assert (addresses(site, "nic1"), routes(site, "nic1")) == ([], [])
    assert (addresses(site, "br-lan"), routes(site, "br-lan")) == (had, led)
    links = {link["ifname"]: link for link in json.loads(site("ip", "-json", "link", "show"))}
    assert [links["br-lan"][key] for key in ("address", "mtu")] == [links["nic1"][key] for key in ("address", "mtu")]

    assert site.connect("203.0.113.1", 80) == "site sees 203.0.113.10"
    site.add_guest("guest", "br-lan")
    site("ip", "address", "add", "203.0.113.77/24", "dev", "eth0", where="guest")
    assert site.connect("203.0.113.1", 80, where="guest") == "site sees 203.0.113.77"

    refused = site.imgtool("net", "delete", "lan")
    assert refused.status == 1
    assert "in use by v-guest" in refused.stderr
    site("ip", "link", "delete", "v-guest")
    assert site.imgtool("net", "delete", "lan").status == 0
    assert site.changes(before) == []
    assert site.connect("203.0.113.1", 80) == "site sees 203.0.113.10"


def test_the_dry_run_prints_the_commands_that_would_do_it(site: Lab) -> None:
    before = site.state()
    planned = bridge(site, "nic1", "--dry-run").document
    assert site.changes(before) == []
    for command in planned["commands"]:
        site(*command)
    assert addresses(site, "nic1") == []
    assert "203.0.113.10/24" in addresses(site, "br-lan")
    assert ("default", "203.0.113.1", "77", None) in routes(site, "br-lan")


def test_the_nic_that_carries_the_session_is_refused_without_force(lan: Lab) -> None:
    before = lan.state()
    refused = bridge(lan, "nic0")
    assert refused.status == 1
    assert refused.error["code"] == "refused"
    assert "the default route goes through it" in refused.error["message"]
    assert "--force" in refused.error["hint"]
    assert lan.changes(before) == []

    lan.serve("198.51.100.7", 80, "far host", where="lan")
    forced = bridge(lan, "nic0", "--force")
    assert forced.status == 0, forced.stderr
    assert routes(lan, "br-lan")[0] == ("default", "192.0.2.1", "main", None)
    assert lan.connect("198.51.100.7", 80) == "far host sees 192.0.2.10"
    assert lan.imgtool("net", "delete", "lan").status == 0
    assert lan.changes(before) == []


def test_an_ssh_session_is_noticed_even_behind_sudo(lan: Lab) -> None:
    lan("ip", "address", "add", "10.9.0.1/24", "dev", "spare0")
    session = "10.9.0.77 50000 10.9.0.1 22"
    refused = bridge(lan, "spare0", SSH_CONNECTION=session)
    assert (refused.status, refused.error["code"]) == (1, "refused")
    assert "the SSH session from 10.9.0.77" in refused.error["message"]
    # sudo takes the variable out of the environment of what it starts, not out of its own.
    inner = f"env -u SSH_CONNECTION {sys.executable} -m imgtool net create lan --bridge spare0; exit $?"
    refused = lan.run("sh", "-c", inner, SSH_CONNECTION=session)
    assert refused.status == 1
    assert "the SSH session from 10.9.0.77" in refused.stderr
    other = bridge(lan, "spare0", SSH_CONNECTION="192.0.2.1 50000 192.0.2.10 22")
    assert other.status == 0, other.stderr


def test_the_only_nic_that_is_up_is_refused(lab: Lab) -> None:
    lab.add_network("lan")
    lab.add_nic("nic0", "lan", "lan0")
    refused = bridge(lab, "nic0")
    assert refused.status == 1
    assert "the only NIC that is up" in refused.error["message"]


@pytest.mark.parametrize(
    ("nic", "reason"),
    [
        ("nope0", "there is no interface nope0"),
        ("lo", "is not an Ethernet interface"),
        ("member0", "is in br0 already"),
        ("br0", "is a bridge itself"),
        ("multi0", "multipath route"),
        ("tuned0", "properties that imgtool could not put back"),
    ],
)
def test_what_cannot_be_in_a_bridge_is_refused_with_the_reason(lan: Lab, nic: str, reason: str) -> None:
    lan("ip", "link", "add", "br0", "type", "bridge")
    for name, network in (("member0", "a"), ("multi0", "b"), ("tuned0", "c")):
        lan.add_network(network)
        lan.add_nic(name, network, "eth0")
    lan("ip", "link", "set", "member0", "master", "br0")
    lan("ip", "address", "add", "10.4.0.1/24", "dev", "multi0")
    lan("ip", "route", "add", "10.5.0.0/24", "nexthop", "via", "10.4.0.2", "nexthop", "via", "10.4.0.3")
    lan("ip", "route", "add", "10.6.0.0/24", "dev", "tuned0", "congctl", "reno")
    before = lan.state()
    refused = bridge(lan, nic)
    assert refused.status == 1
    assert reason in refused.error["message"]
    assert refused.error["hint"]
    assert lan.changes(before) == []


def test_a_nic_that_was_down_is_down_again(lan: Lab) -> None:
    lan("ip", "link", "set", "spare0", "down")
    before = lan.state()
    assert bridge(lan, "spare0").status == 0
    assert lan.imgtool("net", "delete", "lan").status == 0
    assert lan.changes(before) == []


def test_an_address_for_a_time_keeps_its_end(lan: Lab) -> None:
    lan("ip", "address", "add", "10.9.0.1/24", "dev", "spare0", "valid_lft", "4000", "preferred_lft", "3000")

    def left(device: str) -> tuple[int, int]:
        (link,) = json.loads(lan("ip", "-json", "-4", "address", "show", "dev", device))
        (entry,) = link["addr_info"]
        return entry["valid_life_time"], entry["preferred_life_time"]

    done = bridge(lan, "spare0")
    assert "for a time only" in done.stderr
    assert 3900 < left("br-lan")[0] <= 4000
    assert 2900 < left("br-lan")[1] <= 3000
    assert lan.imgtool("net", "delete", "lan").status == 0
    assert 3900 < left("spare0")[0] <= 4000


def test_options_of_a_nat_network_are_refused_beside_bridge(lan: Lab) -> None:
    refused = bridge(lan, "spare0", "--isolated", "--forward", "tcp:1:10.0.0.2:1")
    assert refused.status == 2
    assert "--forward, --isolated and --bridge do not go together" in refused.error["message"]
