"""What `net list` and `net show` say of networks that something happened to, and that `net delete` clears them."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from tests.machine.nets.lab import Lab


def create(lab: Lab) -> None:
    done = lab.imgtool("net", "create", "lab", "--nat", "10.77.0.0/24")
    assert done.status == 0, done.stderr


def show(lab: Lab) -> Any:
    (network,) = lab.imgtool("net", "list", "--output", "json").document
    assert lab.imgtool("net", "show", "lab", "--output", "json").document == network
    return network


@pytest.mark.parametrize(
    ("accident", "state", "problem"),
    [
        ("ip link delete br-lab", "stale", "its bridge br-lab is gone"),
        ("pkill -9 -x dnsmasq", "broken", "its dnsmasq has ended"),
        ("nft flush ruleset", "broken", "its firewall table ip imgtool_lab is gone"),
        ("sysctl -qw net.ipv4.ip_forward=0", "broken", "net.ipv4.ip_forward has been turned off"),
        ("ip address flush dev br-lab", "broken", "br-lab has lost its address 10.77.0.1/24"),
        ("ip link set br-lab down", "broken", "its bridge br-lab is down"),
    ],
)
def test_an_accident_is_named_and_delete_clears_what_is_left(
    lab: Lab, accident: str, state: str, problem: str
) -> None:
    before = lab.state()
    create(lab)
    lab(*accident.split())
    network = show(lab)
    assert network["state"] == state
    assert any(problem in text for text in network["problems"])
    assert problem in lab.imgtool("net", "show", "lab").stdout
    refused = lab.imgtool("net", "create", "lab", "--nat", "10.77.0.0/24", "--output", "json")
    assert (refused.status, refused.error["code"]) == (1, "refused")
    assert "`imgtool net delete lab`" in refused.error["hint"]

    assert lab.imgtool("net", "delete", "lab").status == 0
    assert lab.processes("dnsmasq") == []
    assert lab.changes(before) == []


def test_after_a_restart_of_the_host_the_network_is_stale(lab: Lab) -> None:
    before = lab.state()
    create(lab)
    for command in ("pkill -x dnsmasq", "ip link delete br-lab", "nft flush ruleset"):
        lab(*command.split())
    # Forwarding was turned on by the new boot's own configuration: that is not imgtool's to turn off.
    lab("sed", "-i", r's/"boot":"[^"]*"/"boot":"another"/', "/run/imgtool/net/.forwarding")
    assert show(lab)["state"] == "stale"
    assert lab.imgtool("net", "delete", "lab").status == 0
    assert lab("sysctl", "-n", "net.ipv4.ip_forward").strip() == "1"
    lab("sysctl", "-qw", "net.ipv4.ip_forward=0")
    assert lab.changes(before) == []


def test_a_foreign_bridge_of_the_same_name_is_left_alone(lab: Lab) -> None:
    create(lab)
    lab("ip", "link", "delete", "br-lab")
    lab("ip", "link", "add", "br-lab", "type", "bridge")
    assert show(lab)["state"] == "stale"
    assert lab.imgtool("net", "delete", "lab").status == 0
    assert "br-lab" in lab("ip", "link", "show", "type", "bridge")


def test_a_network_of_another_namespace_is_not_touched(lab: Lab) -> None:
    create(lab)
    lab.add_network("other")
    words = ("-m", "imgtool", "net")
    done = lab.run(sys.executable, *words, "list", "--output", "json", where="other")
    assert done.document[0]["state"] == "elsewhere"
    for verb in (("delete", "lab"), ("create", "lab", "--nat", "10.77.0.0/24")):
        refused = lab.run(sys.executable, *words, *verb, where="other")
        assert refused.status == 1
        assert "another network namespace" in refused.stderr
    assert show(lab)["state"] == "active"


def test_a_network_whose_namespace_is_gone_can_be_forgotten(lab: Lab) -> None:
    create(lab)
    lab.add_network("other")
    lab("ip", "link", "add", "br-lab", "type", "bridge", where="other")
    words = (sys.executable, "-m", "imgtool", "net", "delete", "lab")
    assert "net delete --force lab` forgets the network" in lab.run(*words, where="other").stderr
    planned = lab.run(*words, "--force", "--dry-run", where="other")
    assert planned.stdout == f"kill {show(lab)['dnsmasq']}\n"
    assert lab.run(*words, "--force", where="other").status == 0
    assert lab.imgtool("net", "list").stdout == "no networks\n"
    assert lab("sh", "-c", "pgrep -x dnsmasq || true") == ""
    assert "br-lab" in lab("ip", "link", "show", "type", "bridge", where="other")


def test_a_network_that_is_being_made_is_shown_so(lab: Lab) -> None:
    lab("sh", "-c", "printf '#!/bin/sh\\ntouch /run/reached; exec sleep 60\\n' > /run/slow; chmod +x /run/slow")
    lab("mount", "--bind", "/run/slow", lab("readlink", "-f", lab("which", "dnsmasq").strip()).strip())
    started = lab.start(sys.executable, "-m", "imgtool", "net", "create", "lab", "--nat", "10.77.0.0/24")
    lab("sh", "-c", "while ! [ -e /run/reached ]; do sleep 0.05; done")
    assert show(lab)["state"] == "changing"
    started.kill()
    assert show(lab)["state"] == "unfinished"


def test_no_networks_are_an_empty_answer(lab: Lab) -> None:
    assert lab.imgtool("net", "list", "--output", "json").document == []
    assert lab.imgtool("net", "list").stdout == "no networks\n"
    for verb in ("show", "delete"):
        missing = lab.imgtool("net", verb, "lab", "--output", "json")
        assert missing.status == 1
        assert missing.error["message"] == "there is no network lab"


def test_the_table_has_a_line_a_network(lab: Lab) -> None:
    create(lab)
    head, line = lab.imgtool("net", "list").stdout.splitlines()
    assert head.split() == ["NAME", "KIND", "STATE", "BRIDGE", "SUBNET/NIC", "LEASES"]
    assert line.split() == ["lab", "nat", "active", "br-lab", "10.77.0.0/24", "0"]
