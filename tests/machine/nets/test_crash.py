"""Whatever happens to imgtool while it makes or deletes a network, all of it can be undone."""

from __future__ import annotations

import random
import sys

import pytest

from tests.machine.nets.lab import Lab

CREATE_NAT = "prepare.nat(ask.nat('lab', '10.77.0.0/24', forwards=['tcp:80:10.77.0.9:80'], ipv6='fd42:1::/64'))"
CREATE_BRIDGE = "prepare.over_nic('lab', 'nic0', force=True)"

DRIVER = """
import os, signal, sys
from imgtool.machine.nets import ask, create, delete, prepare, undo
from imgtool.qemu.process import Completed, run

left = int(sys.argv[1])

def count(how):
    global left
    left -= 1
    if left == 0:
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return True
    return False

def runner(argv, **options):
    if "show" in argv or "list" in argv:
        return run(argv, **options)
    if count(sys.argv[2]):
        return Completed(tuple(argv), 1, b"", b"made to fail")
    done = run(argv, **options)
    count("kill") if sys.argv[2] == "kill" else None
    return done

ACTION
print("finished")
"""


def drive(lab: Lab, action: str, moment: int, how: str = "kill") -> tuple[bool, str]:
    """Runs `action` (create or delete) and, at the `moment`th command, kills it or makes the command fail. Whether it
    got to its end, and its last words."""
    code = DRIVER.replace("ACTION", action)
    done = lab.run(sys.executable, "-c", code, str(moment), how)
    return done.stdout == "finished\n", done.stderr


@pytest.mark.parametrize("request_", [CREATE_NAT, CREATE_BRIDGE], ids=["nat", "bridge"])
def test_a_create_killed_at_any_command_is_undone_by_delete_or_by_the_next_create(lan: Lab, request_: str) -> None:
    before = lan.state()
    action = f"create.create({request_}, runner=runner)"
    moment, finished = 0, False
    while not finished:
        moment += 1
        finished, _ = drive(lan, action, moment)
        if not finished and moment < 4:
            (network,) = lan.imgtool("net", "list", "--output", "json").document
            assert network["state"] == "unfinished", moment
        if moment % 4 == 1:
            again = lan.imgtool("net", "create", "other", "--nat", "10.88.0.0/24")
            assert again.status == 0, again.stderr
            assert lan.imgtool("net", "delete", "other").status == 0
            assert finished or lan.imgtool("net", "show", "lab").status == 1
        else:
            assert lan.imgtool("net", "delete", "lab").status == 0
        if not finished:
            assert lan.processes("dnsmasq") == []
            assert lan.changes(before) == [], moment
    assert moment > 10  # before and after each command
    lan.imgtool("net", "delete", "lab")
    assert lan.changes(before) == []


@pytest.mark.parametrize("request_", [CREATE_NAT, CREATE_BRIDGE], ids=["nat", "bridge"])
def test_a_create_of_which_a_command_fails_leaves_nothing(lan: Lab, request_: str) -> None:
    before = lan.state()
    action = f"create.create({request_}, runner=runner)"
    moment, finished = 0, False
    while not finished:
        moment += 1
        finished, words = drive(lan, action, moment, "fail")
        if not finished:
            assert "made to fail" in words
            assert lan.processes("dnsmasq") == []
            assert lan.changes(before) == [], moment
    assert moment > 5


@pytest.mark.parametrize("request_", [CREATE_NAT, CREATE_BRIDGE], ids=["nat", "bridge"])
def test_a_delete_killed_at_any_command_is_finished_by_the_next(lan: Lab, request_: str) -> None:
    before = lan.state()
    moment, finished = 0, False
    while not finished:
        moment += 1
        assert drive(lan, f"create.create({request_})", 0)[0]
        finished, _ = drive(lan, "delete.delete('lab', runner=runner)", moment)
        if not finished:
            assert lan.imgtool("net", "delete", "lab").status == 0
        assert lan.processes("dnsmasq") == []
        assert lan.changes(before) == [], moment
    assert moment > 2


def test_a_create_killed_at_a_random_moment_leaves_nothing_the_next_commands_mind(lan: Lab) -> None:
    before = lan.state()
    chance = random.Random(20)
    for turn in range(12):
        started = lan.start(sys.executable, "-m", "imgtool", "net", "create", "lab", "--nat", "10.77.0.0/24")
        lan("sleep", f"{chance.uniform(0.08, 0.3):.3f}")
        started.kill()
        if turn % 2:
            done = lan.imgtool("net", "create", "lab", "--nat", "10.77.0.0/24", "--output", "json")
            # Either the killed one had finished, or this one did after clearing up.
            assert done.status == 0 or "there is a network lab already" in done.error["message"]
            (network,) = lan.imgtool("net", "list", "--output", "json").document
            assert (network["state"], len(lan.processes("dnsmasq"))) == ("active", 1)
        lan.imgtool("net", "delete", "lab")
        assert lan.imgtool("net", "list", "--output", "json").document == []
        assert lan.processes("dnsmasq") == []
        assert lan.changes(before) == [], turn


def test_an_interrupted_create_undoes_itself(lan: Lab) -> None:
    before = lan.state()
    # dnsmasq that takes its time: Ctrl-C comes while it runs.
    lan("sh", "-c", "printf '#!/bin/sh\\ntouch /run/reached; exec sleep 60\\n' > /run/slow; chmod +x /run/slow")
    lan("mount", "--bind", "/run/slow", lan("readlink", "-f", lan("which", "dnsmasq").strip()).strip())
    words = f"{sys.executable} -m imgtool net create lab --nat 10.77.0.0/24"
    script = f"{words} & while ! [ -e /run/reached ]; do sleep 0.05; done; kill -TERM $!; wait $!"
    done = lan.run("sh", "-c", script)
    assert done.status == 128 + 15
    assert lan.changes(before) == []
    assert lan.processes("sleep") == []
