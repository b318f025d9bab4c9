"""What the host has already is not taken, and what is missing is said at once."""

from __future__ import annotations

import sys

import pytest

from tests.machine.nets.lab import Done, Lab


def create(lab: Lab, subnet: str = "10.77.0.0/24", *words: str, name: str = "lab") -> Done:
    return lab.imgtool("net", "create", name, "--nat", subnet, *words, "--output", "json")


@pytest.mark.parametrize(
    ("setup", "subnet", "words", "reasons"),
    [
        ("address add 10.77.0.99/25 dev nic0", "10.77.0.0/24", (), ("10.77.0.0/25", "nic0 (10.77.0.99)")),
        ("route add 10.64.0.0/10 via 192.0.2.1", "10.77.0.0/24", (), ("10.64.0.0/10", "via 192.0.2.1 through nic0")),
        ("route add 10.77.0.0/16 dev nic0 table 9", "10.77.0.0/24", (), ("10.77.0.0/16", "through nic0")),
        ("route add blackhole 10.77.0.128/25", "10.77.0.0/24", (), ("10.77.0.128/25", "routed away")),
        ("-6 address add fd42::1/48 dev nic0", "10.1.0.0/24", ("--ipv6", "fd42:0:0:1::/64"), ("fd42::/48", "nic0")),
    ],
)
def test_a_subnet_that_somebody_has_is_refused_with_who_has_it(
    lan: Lab, setup: str, subnet: str, words: tuple[str, ...], reasons: tuple[str, ...]
) -> None:
    lan("ip", *setup.split())
    before = lan.state()
    refused = create(lan, subnet, *words)
    assert (refused.status, refused.error["code"]) == (1, "refused")
    assert all(reason in refused.error["message"] for reason in reasons)
    assert "--force" in refused.error["hint"]
    assert lan.changes(before) == []
    assert create(lan, subnet, *words, "--force").status == 0


def test_a_vpn_that_routes_everything_is_in_nobodys_way(lan: Lab) -> None:
    for half in ("0.0.0.0/1", "128.0.0.0/1"):
        lan("ip", "route", "add", half, "via", "192.0.2.1")
    assert create(lan).status == 0


def test_a_public_subnet_is_made_with_a_warning(lab: Lab) -> None:
    done = create(lab, "198.51.100.0/24")
    assert done.status == 0
    assert "198.51.100.0/24 is not private" in done.stderr


def test_a_port_that_something_listens_to_is_refused(lab: Lab) -> None:
    lab.serve("127.0.0.1", 2222, "sshd")
    refused = create(lab, "10.77.0.0/24", "--forward", "tcp:2222:10.77.0.5:22")
    assert (refused.status, refused.error["code"]) == (1, "refused")
    assert "listens to tcp port 2222" in refused.error["message"]
    assert create(lab, "10.77.0.0/24", "--forward", "udp:2222:10.77.0.5:22").status == 0
    assert create(lab, "10.78.0.0/24", "--forward", "tcp:2222:10.78.0.5:22", "--force", name="two").status == 0
    other = create(lab, "10.79.0.0/24", "--forward", "tcp:192.0.2.1:2222:10.79.0.5:22", "--force", name="three")
    assert other.status == 1
    assert "the network two forwards already" in other.error["message"]


def test_a_bridge_name_that_is_taken_is_refused(lab: Lab) -> None:
    lab("ip", "link", "add", "br-lab", "type", "bridge")
    refused = create(lab)
    assert (refused.status, refused.error["code"]) == (1, "refused")
    assert "--bridge-name" in refused.error["hint"]
    assert create(lab, "10.77.0.0/24", "--bridge-name", "mine0").document["bridge"] == "mine0"


def test_a_server_that_listens_everywhere_is_named_when_dnsmasq_cannot_start(lab: Lab) -> None:
    started = lab.start("dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--no-resolv")
    lab("sh", "-c", "while ! ss -Hlnu | grep -q :53; do sleep 0.05; done")
    before = lab.state()
    failed = create(lab)
    assert failed.status == 1
    assert "Address already in use" in failed.error["message"]
    assert "ss -lnup" in failed.error["hint"]
    assert lab.changes(before) == []
    started.kill()
    assert create(lab).status == 0


def test_a_firewall_that_drops_what_it_does_not_know_is_warned_of_with_the_way_through(lan: Lab) -> None:
    lan(
        "nft",
        "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }",
    )
    lan("nft", "add table inet fw; add chain inet fw in { type filter hook input priority 0; policy drop; }")
    done = create(lan)
    assert done.status == 0
    assert "ip filter FORWARD drops" in done.stderr
    assert "inet fw in drops" in done.stderr
    lan.add_guest("guest", "br-lab")
    lan("ip", "address", "add", "10.77.0.5/24", "dev", "eth0", where="guest")
    lan("ip", "route", "add", "default", "via", "10.77.0.1", where="guest")
    lan.serve("192.0.2.1", 80, "gateway", where="lan")
    assert lan.connect("192.0.2.1", 80, where="guest") == ""
    commands = [text for text in done.stderr.split("`") if text.startswith("nft insert rule")]
    assert len(commands) == 3
    for command in commands:
        lan(*command.split())
    assert lan.connect("192.0.2.1", 80, where="guest") == "gateway sees 192.0.2.10"
    answer = lan("busybox", "nslookup", "-type=a", "nowhere", "10.77.0.1", where="guest", check=False)
    assert "timed out" not in answer


def test_ipv6_is_refused_where_it_would_cost_the_host_its_default_route(lan: Lab) -> None:
    lan("ip", "-6", "address", "add", "2001:db8::10/64", "dev", "nic0")
    lan("ip", "-6", "route", "add", "default", "via", "2001:db8::1", "proto", "ra")
    refused = create(lan, "10.77.0.0/24", "--ipv6", "fd42:1::/64")
    assert (refused.status, refused.error["code"]) == (1, "refused")
    advice = refused.error["hint"].split("`")[1]
    lan(*advice.split())
    assert create(lan, "10.77.0.0/24", "--ipv6", "fd42:1::/64").status == 0


def test_all_that_is_missing_is_said_in_one_error(lab: Lab) -> None:
    for program in ("nft", "dnsmasq"):
        place = lab("readlink", "-f", lab("which", program).strip()).strip()
        lab("mount", "--bind", "/dev/null", place)
    before = lab_state_without_nft(lab)
    words = (sys.executable, "-m", "imgtool", "net", "create", "lab", "--nat", "10.77.0.0/24", "--output", "json")
    failed = lab.run("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", *words)
    assert (failed.status, failed.error["code"]) == (1, "machine")
    for missing in ("CAP_NET_ADMIN", "nft, dnsmasq are not installed"):
        assert missing in failed.error["message"]
    for fix in ("--cap-add NET_ADMIN", "apt-get install nftables dnsmasq-base"):
        assert fix in failed.error["hint"]
    assert lab_state_without_nft(lab) == before

    planned = lab.run("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", *words, "--dry-run")
    assert planned.status == 0
    assert [command[0] for command in planned.document["commands"]][-1] == "dnsmasq"
    assert "apt-get install" in planned.stderr


def lab_state_without_nft(lab: Lab) -> dict[str, str]:
    return {"links": lab("ip", "-json", "link"), "files": lab("find", "/run", "-mindepth", "1")}


def test_the_dry_run_prints_the_commands_that_would_do_it(lan: Lab) -> None:
    before = lan.state()
    planned = create(lan, "10.77.0.0/24", "--forward", "tcp:8080:10.77.0.5:80", "--dry-run")
    assert planned.status == 0
    assert lan.changes(before) == []
    lines = lan.imgtool(
        "net", "create", "lab", "--nat", "10.77.0.0/24", "--forward", "tcp:8080:10.77.0.5:80", "--dry-run"
    )
    script = "set -e; mkdir -p /run/imgtool/net/lab\n" + lines.stdout
    lan("sh", "-c", script)
    by_hand = lan.state()
    for command in ("pkill -x dnsmasq", "ip link delete br-lab", "nft delete table ip imgtool_lab"):
        lan(*command.split())
    lan("rm", "-r", "/run/imgtool/net/lab")
    lan("sysctl", "-qw", "net.ipv4.ip_forward=0")
    assert lan.changes(before) == []

    assert create(lan, "10.77.0.0/24", "--forward", "tcp:8080:10.77.0.5:80").status == 0
    assert [line for line in lan.changes(by_hand) if line.startswith(("ruleset", "sysctls"))] == []
    removal = lan.imgtool("net", "delete", "lab", "--dry-run").stdout
    assert lan.imgtool("net", "show", "lab", "--output", "json").document["state"] == "active"
    lan("sh", "-ec", removal)
    assert lan.imgtool("net", "show", "lab", "--output", "json").document["state"] == "stale"
    assert lan.imgtool("net", "delete", "lab").status == 0
    assert lan.changes(before) == []
