"""Taps: in the bridge while somebody has them, gone without a trace when nobody has."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from imgtool.machine.nets import names
from tests.machine.nets.lab import Lab

DRIVER = """
import json, os, sys, time
from imgtool.errors import ImgtoolError
from imgtool.machine.nets.tap import make_tap, take_tap
try:
    taps = [(take_tap if "name" in word else make_tap)(**word) for word in map(json.loads, sys.argv[1:])]
except ImgtoolError as error:
    print(json.dumps({"error": error.message, "hint": error.hint}), flush=True)
    sys.exit(1)
print(json.dumps([{
    "name": tap.name,
    "open": [os.path.exists(f"/proc/self/fd/{fd}") for fd in tap.fds],
    "inherited": [os.get_inheritable(fd) for fd in tap.fds],
} for tap in taps]), flush=True)
time.sleep(3600)
"""


@pytest.fixture
def bridged(lab: Lab) -> Lab:
    lab("ip", "link", "add", "br0", "mtu", "1400", "type", "bridge")
    lab("ip", "link", "set", "br0", "up")
    return lab


def taps(lab: Lab) -> dict[str, Any]:
    links = json.loads(lab("ip", "-json", "-details", "link", "show", "type", "tun"))
    return {link["ifname"]: link for link in links}


def words(*requests: dict[str, Any]) -> list[str]:
    return [sys.executable, "-c", DRIVER, *map(json.dumps, requests)]


def test_a_tap_is_in_its_bridge_until_its_holder_dies(bridged: Lab) -> None:
    holder = bridged.start(*words({"bridge": "br0", "machine": "vm"}, {"bridge": "br0", "machine": "vm", "index": 1}))
    made = json.loads(holder.line())
    assert [tap["name"] for tap in made] == [names.tap_name("vm", 0), names.tap_name("vm", 1)]
    assert [(tap["open"], tap["inherited"]) for tap in made] == [([True], [False])] * 2
    for link in taps(bridged).values():
        assert (link["master"], link["mtu"], link["address"][:2]) == ("br0", 1400, "fe")
        assert "UP" in link["flags"]
        details = link["linkinfo"]["info_data"]
        assert (details["type"], details["pi"], details["vnet_hdr"], details["persist"]) == (
            "tap",
            False,
            True,
            False,
        )
    holder.kill()
    assert taps(bridged) == {}


def test_a_tap_of_many_queues_has_a_descriptor_each(bridged: Lab) -> None:
    holder = bridged.start(*words({"bridge": "br0", "machine": "vm", "queues": 4, "owner_uid": 0}))
    (tap,) = json.loads(holder.line())
    assert tap["open"] == [True] * 4
    (link,) = taps(bridged).values()
    details = link["linkinfo"]["info_data"]
    assert (details["multi_queue"], details["numqueues"], details["user"]) == (True, 4, "root")


def test_two_machines_whose_taps_would_share_a_name_get_two(bridged: Lab) -> None:
    one = bridged.start(*words({"bridge": "br0", "machine": "vm"}))
    two = bridged.start(*words({"bridge": "br0", "machine": "vm"}))
    found = [json.loads(holder.line())[0]["name"] for holder in (one, two)]
    assert sorted(found) == sorted([names.tap_name("vm", 0), names.tap_name("vm", 0, 1)])


def test_a_tap_that_somebody_made_is_taken_and_stays(bridged: Lab) -> None:
    bridged("ip", "tuntap", "add", "dev", "mine0", "mode", "tap")
    bridged("ip", "link", "set", "mine0", "up")
    holder = bridged.start(*words({"name": "mine0", "bridge": "br0"}))
    assert json.loads(holder.line())[0]["name"] == "mine0"
    assert taps(bridged)["mine0"]["master"] == "br0"
    busy = bridged.run(*words({"name": "mine0"}))
    assert "the tap mine0 is in use" in busy.document["error"]
    holder.kill()
    assert list(taps(bridged)) == ["mine0"]
    wrong = bridged.run(*words({"name": "mine0", "queues": 2}))
    assert "mine0 is not a tap for several queues" in wrong.document["error"]
    assert "multi_queue" in wrong.document["hint"]


def test_a_tap_without_a_bridge_is_made_under_the_name_that_was_asked_for(lab: Lab) -> None:
    holder = lab.start(*words({"name": "mine0", "queues": 2}, {"bridge": None, "machine": "vm"}))
    assert [tap["name"] for tap in json.loads(holder.line())] == ["mine0", names.tap_name("vm", 0)]
    assert all("UP" in link["flags"] and "master" not in link for link in taps(lab).values())
    holder.kill()
    assert taps(lab) == {}


@pytest.mark.parametrize(
    ("request_", "reason", "hint"),
    [
        ({"bridge": "nope", "machine": "vm"}, "there is no bridge nope", "there are: br0"),
        ({"bridge": "lo", "machine": "vm"}, "lo is not a Linux bridge", "ip link show type bridge"),
        ({"bridge": "br0", "machine": "vm", "queues": 0}, "1 to 256 queues", None),
    ],
)
def test_what_cannot_have_a_tap_is_said(
    bridged: Lab, request_: dict[str, Any], reason: str, hint: str | None
) -> None:
    done = bridged.run(*words(request_))
    assert done.status == 1
    assert reason in done.document["error"]
    assert (hint or "") in (done.document["hint"] or "")
    assert taps(bridged) == {}


def test_without_the_right_or_the_device_the_fix_is_named(bridged: Lab) -> None:
    done = bridged.run("setpriv", "--bounding-set=-net_admin", *words({"bridge": "br0", "machine": "vm"}))
    assert "CAP_NET_ADMIN" in done.document["error"]
    bridged("mount", "-t", "tmpfs", "tmpfs", "/dev/net")
    done = bridged.run(*words({"bridge": "br0", "machine": "vm"}))
    assert done.document == {"error": "cannot make a tap: /dev/net/tun is not there", "hint": "modprobe tun"}
