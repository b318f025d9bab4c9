from __future__ import annotations

import pytest

from imgtool.machine.ssh import Endpoint, forward_of, parse_forwards, ssh_argv

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
        "UserKnownHostsFile=/run/vm/web/known_hosts",
        "-o",
        "StrictHostKeyChecking=accept-new",
        "-o",
        "LogLevel=ERROR",
        "-o",
        "ConnectTimeout=60",
        "127.0.0.1",
        "uname",
        "-a",
    ]
