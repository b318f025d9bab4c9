"""A NAT network: what its machines get and reach, and that it goes without a trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.machine.nets.lab import Lab


def create(lab: Lab, name: str = "lab", subnet: str = "10.77.0.0/24", *words: str) -> Any:
    done = lab.imgtool("net", "create", name, "--nat", subnet, *words, "--output", "json")
    assert done.status == 0, done.stderr
    return done.document


def show(lab: Lab, name: str = "lab") -> Any:
    return lab.imgtool("net", "show", name, "--output", "json").document


def test_a_guest_gets_a_lease_and_reaches_what_is_behind_the_gateway(lan: Lab, tmp_path: Path) -> None:
    lan.serve("192.0.2.1", 80, "gateway", where="lan")
    lan.serve("198.51.100.7", 80, "far host", where="lan")
    network = create(lan)
    assert (network["state"], network["bridge"], network["addresses"]) == ("active", "br-lab", ["10.77.0.1/24"])
    lan.add_guest("guest", "br-lab")

    offer = lan.dhcp("guest", tmp_path)
    assert (offer["router"], offer["dns"]) == ("10.77.0.1", "10.77.0.1")
    network = show(lan)
    (lease,) = network["leases"]
    assert (lease["address"], lease["hostname"]) == (offer["ip"], "guest")
    assert [(member["name"], member["kind"]) for member in network["members"]] == [("v-guest", "veth")]
    assert f"{offer['ip']}" in lan.imgtool("net", "show", "lab").stdout

    # The LAN sees the host's address: it could not answer the guest's.
    assert lan.connect("192.0.2.1", 80, where="guest") == "gateway sees 192.0.2.10"
    assert lan.connect("198.51.100.7", 80, where="guest") == "far host sees 192.0.2.10"
    answer = lan("busybox", "nslookup", "guest", "10.77.0.1", where="guest", check=False)
    assert offer["ip"] in answer.partition("guest")[2]


def test_a_forwarded_port_reaches_the_guest_from_everywhere_and_nothing_else_does(lan: Lab) -> None:
    create(lan, "lab", "10.77.0.0/24", "--forward", "tcp:8080:10.77.0.5:80")
    for guest, address in (("guest", "10.77.0.5"), ("neighbour", "10.77.0.6")):
        lan.add_guest(guest, "br-lab")
        lan("ip", "address", "add", f"{address}/24", "dev", "eth0", where=guest)
        lan("ip", "route", "add", "default", "via", "10.77.0.1", where=guest)
    lan.serve("10.77.0.5", 80, "guest", where="guest")
    lan.serve("10.77.0.5", 81, "guest", where="guest")
    lan.serve("127.0.0.1", 90, "host")

    assert lan.connect("192.0.2.10", 8080, where="lan") == "guest sees 192.0.2.1"
    assert lan.connect("192.0.2.10", 8080) == "guest sees 192.0.2.10"
    assert lan.connect("127.0.0.1", 8080) == "guest sees 10.77.0.1"
    assert lan.connect("192.0.2.10", 8080, where="neighbour") == "guest sees 10.77.0.1"
    assert lan.connect("10.77.0.5", 81, where="neighbour") == "guest sees 10.77.0.6"
    # A host of the LAN that sends its packets here for the guest's own address is turned away.
    lan("ip", "route", "add", "10.77.0.0/24", "via", "192.0.2.10", where="lan")
    assert lan.connect("10.77.0.5", 81, where="lan") == ""
    # Nor do guests reach what listens on the host's loopback address, which the forward made routable.
    lan("ip", "route", "add", "127.0.0.1/32", "via", "10.77.0.1", "table", "100", where="guest")
    lan("ip", "rule", "add", "to", "127.0.0.1", "table", "100", "priority", "0", where="guest")
    lan("ip", "rule", "del", "table", "local", where="guest")
    lan("ip", "rule", "add", "table", "local", "priority", "10", where="guest")
    lan("sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1", where="guest")
    assert lan.connect("127.0.0.1", 90, where="guest") == ""


def test_a_forward_of_one_address_leaves_the_others_alone(lan: Lab) -> None:
    create(lan, "lab", "10.77.0.0/24", "--forward", "tcp:127.0.0.1:8080:10.77.0.5:80")
    lan.add_guest("guest", "br-lab")
    lan("ip", "address", "add", "10.77.0.5/24", "dev", "eth0", where="guest")
    lan.serve("10.77.0.5", 80, "guest", where="guest")
    assert lan.connect("127.0.0.1", 8080) == "guest sees 10.77.0.1"
    assert lan.connect("192.0.2.10", 8080, where="lan") == ""


def test_an_isolated_guest_reaches_the_host_and_its_neighbours_alone(lan: Lab, tmp_path: Path) -> None:
    lan("sysctl", "-qw", "net.ipv4.ip_forward=1")  # isolation must not hang on the switch being off
    lan("ip", "route", "add", "10.77.0.0/24", "via", "192.0.2.10", where="lan")  # nor on missing ways back
    create(lan, "lab", "10.77.0.0/24", "--isolated", "--dhcp-range", "10.77.0.50-10.77.0.60")
    lan.serve("192.0.2.1", 80, "gateway", where="lan")
    lan.serve("10.77.0.1", 90, "host")
    for guest in ("guest", "neighbour"):
        lan.add_guest(guest, "br-lab")
    offer = lan.dhcp("guest", tmp_path)
    assert offer["router"] == ""
    assert int(offer["ip"].rpartition(".")[2]) in range(50, 61)
    lan("ip", "route", "add", "default", "via", "10.77.0.1", where="guest")
    neighbour = lan.dhcp("neighbour", tmp_path)["ip"]
    lan.serve(neighbour, 80, "neighbour", where="neighbour")

    assert lan.connect("10.77.0.1", 90, where="guest") == f"host sees {offer['ip']}"
    assert lan.connect(neighbour, 80, where="guest") == f"neighbour sees {offer['ip']}"
    assert lan.connect("192.0.2.1", 80, where="guest") == ""


def test_without_dhcp_names_are_answered_and_no_address_is_given(lab: Lab) -> None:
    network = create(lab, "lab", "10.77.0.0/24", "--no-dhcp")
    assert network["dhcp-range"] is None
    sockets = lab("ss", "-Hlnu")
    assert "10.77.0.1:53" in sockets
    assert ":67" not in sockets


def test_ipv6_guests_choose_an_address_and_get_out(lan: Lab) -> None:
    for address, where in (("2001:db8::1/64", "lan"), ("2001:db8::10/64", None)):
        device = "lan0" if where else "nic0"
        lan("ip", "-6", "address", "add", address, "dev", device, "nodad", where=where)
    lan.serve("2001:db8::1", 80, "gateway", where="lan")
    before = lan.state()
    create(lan, "lab", "10.77.0.0/24", "--ipv6", "fd42:1::/64")
    lan.add_guest("guest", "br-lab")
    for _ in range(100):
        seen = json.loads(lan("ip", "-6", "-json", "address", "show", "dev", "eth0", where="guest"))[0]["addr_info"]
        if any(entry["local"].startswith("fd42:1::") and not entry.get("tentative") for entry in seen):
            break
        lan("sleep", "0.2")
    assert lan.connect("2001:db8::1", 80, where="guest") == "gateway sees 2001:db8::10"
    lan("ip", "link", "delete", "v-guest")
    assert lan.imgtool("net", "delete", "lab").status == 0
    assert lan.changes(before) == []


def test_deleting_puts_everything_back(lan: Lab) -> None:
    lan("nft", "add table inet mine; add chain inet mine c { type filter hook input priority 0; }")
    # A host that was tuned by hand: turning ip_forward on and off resets both of these.
    lan("sysctl", "-qw", "net.ipv4.conf.all.accept_redirects=0", "net.ipv4.conf.spare0.forwarding=1")
    before = lan.state()
    create(lan, "lab", "10.77.0.0/24", "--forward", "udp:5353:10.77.0.5:53")
    assert lan("sysctl", "-n", "net.ipv4.ip_forward").strip() == "1"
    assert "imgtool_lab" in lan("nft", "list", "ruleset")
    assert len(lan.processes("dnsmasq")) == 1

    done = lan.imgtool("net", "delete", "lab")
    assert (done.status, done.stdout) == (0, "deleted lab\n"), done.stderr
    assert lan.processes("dnsmasq") == []
    assert lan.changes(before) == []


def test_forwarding_stays_while_another_network_needs_it(lan: Lab) -> None:
    before = lan.state()
    create(lan, "one", "10.77.1.0/24")
    create(lan, "two", "10.77.2.0/24")
    create(lan, "alone", "10.77.3.0/24", "--isolated")
    assert lan.imgtool("net", "delete", "one").status == 0
    assert lan("sysctl", "-n", "net.ipv4.ip_forward").strip() == "1"
    assert lan.imgtool("net", "delete", "two").status == 0
    assert lan("sysctl", "-n", "net.ipv4.ip_forward").strip() == "0"
    assert show(lan, "alone")["state"] == "active"
    assert lan.imgtool("net", "delete", "alone").status == 0
    assert lan.changes(before) == []


def test_forwarding_that_was_on_before_stays_on(lan: Lab) -> None:
    lan("sysctl", "-qw", "net.ipv4.ip_forward=1")
    before = lan.state()
    create(lan)
    assert lan.imgtool("net", "delete", "lab").status == 0
    assert lan.changes(before) == []


def test_guests_of_two_networks_do_not_reach_each_other(lab: Lab) -> None:
    for number in (1, 2):
        create(lab, f"net{number}", f"10.77.{number}.0/24")
        lab.add_guest(f"guest{number}", f"br-net{number}")
        lab("ip", "address", "add", f"10.77.{number}.5/24", "dev", "eth0", where=f"guest{number}")
        lab("ip", "route", "add", "default", "via", f"10.77.{number}.1", where=f"guest{number}")
    lab.serve("10.77.2.5", 80, "guest2", where="guest2")
    assert lab.connect("10.77.2.5", 80, where="guest1") == ""
    assert lab.connect("10.77.2.5", 80) == "guest2 sees 10.77.2.1"
