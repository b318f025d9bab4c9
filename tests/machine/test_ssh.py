from __future__ import annotations

import json

import pytest

from imgtool.machine.config import Machine
from imgtool.machine.process import ProcessId
from imgtool.machine.ssh import Endpoint, NoWay, endpoint, forward_of, parse_forwards, ssh_argv
from imgtool.machine.values.network import Bridge
from imgtool.machine.vm import State, Vm
from tests.machine.impostor import impostor

USERNET = """Hub -1 (net0):
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ
  TCP[HOST_FORWARD]  13       127.0.0.1  8080       10.0.2.15    80     0     0
  TCP[HOST_FORWARD]  14               *  2222       10.0.2.15    22     0     0
  UDP[236 sec]       15       10.0.2.15    68        10.0.2.2    67     0     0
"""


def test_the_forward_to_port_22_is_found_among_others() -> None:
    assert parse_forwards(USERNET) == Endpoint("127.0.0.1", 2222)
    assert parse_forwards(USERNET.replace(" 22 ", " 23 ")) is None
    assert parse_forwards("") is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("tcp::2222-:22", Endpoint("127.0.0.1", 2222)),
        ("tcp:192.0.2.1:2222-10.0.2.15:22", Endpoint("192.0.2.1", 2222)),
        ("tcp::2222-:2200", None),
        ("udp::2222-:22", None),
    ],
)
def test_a_hostfwd_that_leads_to_ssh_is_known(text: str, found: Endpoint | None) -> None:
    assert forward_of(text) == found


def test_the_command_line_keeps_the_host_key_for_this_vm_alone_and_lets_the_users_options_win() -> None:
    argv = ssh_argv(
        "/usr/bin/ssh",
        Endpoint("127.0.0.1", 2222),
        known_hosts="/run/vm/web/known_hosts",
        user="ann",
        identities=["/home/ann/.ssh/id"],
        options=["-o", "LogLevel=DEBUG"],
        command=["uname", "-a"],
    )
    assert argv == [
        "/usr/bin/ssh",
        "-p",
        "2222",
        "-l",
        "ann",
        "-i",
        "/home/ann/.ssh/id",
        "-o",
        "LogLevel=DEBUG",
        "-o",
        'UserKnownHostsFile="/run/vm/web/known_hosts"',
        "-o",
        "StrictHostKeyChecking=accept-new",
        "-o",
        "LogLevel=ERROR",
        "-o",
        "ConnectTimeout=60",
        "--",
        "127.0.0.1",
        "uname",
        "-a",
    ]


ON_A_BRIDGE = State(
    name="web",
    phase="running",
    launcher=ProcessId(1, 1),
    boot=None,
    created=0,
    detached=True,
    machine=Machine(networks=(Bridge(br="br0"),), agent=True),
)


def told(*addresses: object) -> Endpoint:
    """Where a guest is whose agent says that it has these addresses."""
    said = [{"name": "lo"}, {"name": "eth0", "ip-addresses": addresses}]
    answers = {"guest-network-get-interfaces": json.dumps({"return": said}).encode()}
    with impostor(answers, name="web/agent.sock") as folder:
        return endpoint(Vm(folder, "web"), ON_A_BRIDGE)


def ipv4(text: str) -> dict[str, str]:
    return {"ip-address-type": "ipv4", "ip-address": text}


def test_the_agent_tells_the_address_of_a_guest_on_a_bridge() -> None:
    six = {"ip-address-type": "ipv6", "ip-address": "fe80::1"}
    assert told(ipv4("127.0.0.1"), six, ipv4("192.0.2.7"), ipv4("192.0.2.8")) == Endpoint("192.0.2.7", 22)


@pytest.mark.parametrize("text", ["-oProxyCommand=touch /tmp/x", "example.org", "192.0.2.1\n", "127.1.2.3", "", "1"])
def test_what_is_no_address_of_a_guest_is_not_handed_to_ssh(text: str) -> None:
    with pytest.raises(NoWay, match="the guest of web has no address yet"):
        told(ipv4(text))


def test_an_answer_of_another_shape_is_no_address() -> None:
    with pytest.raises(NoWay, match="is not a guest agent"):
        told({"ip-address": ["192.0.2.7"]})
