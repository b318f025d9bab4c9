"""What only a booted guest can show: reboots, frozen file systems, which way is chosen, an end."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from imgtool.build.executor import Executor, ExecutorError, GuestLost, Kind
from imgtool.build.executors.choose import connect_any
from imgtool.machine.process import ProcessId
from imgtool.qemu.qemu_img import QemuImg
from tests.build.executors.conftest import GUEST_WAYS, READY_SECONDS, Guests

pytestmark = pytest.mark.guest


def said_by(way: Executor, script: bytes) -> bytes:
    said = bytearray()
    assert way.run(script, interpreter=["/bin/sh"], on_output=said.extend) == 0, bytes(said)
    return bytes(said)


@pytest.mark.parametrize(("name", "kind"), [way for way in GUEST_WAYS if way != ("debian", "agent")], ids=str)
def test_a_guest_comes_back_from_a_reboot_with_its_disk(guests: Guests, name: str, kind: Kind) -> None:
    way = guests.way(name, kind)
    said_by(way, b"echo kept >/root/mark; mkdir -p /dev/shm; echo gone >/dev/mark; sync")
    way.reboot(seconds=READY_SECONDS)
    assert said_by(way, b"cat /root/mark; rm /root/mark; [ -e /dev/mark ] || echo anew") == b"kept\nanew\n"


def test_the_agent_holds_file_systems_still_and_lets_them_go(guests: Guests) -> None:
    agent, ssh = guests.way("debian", "agent"), guests.way("debian", "ssh")
    assert agent.freeze() is True
    agent.thaw()
    agent.thaw()
    said_by(agent, b"echo x >/root/thawed; rm /root/thawed")
    assert ssh.freeze() is False
    said_by(ssh, b"echo x >/root/never; rm /root/never")


def test_the_first_way_that_leads_in_is_taken(guests: Guests) -> None:
    expected: list[tuple[str, Kind]] = [("debian", "agent"), ("alpine", "serial")]
    for name, kind in expected:
        way = guests.way(name, kind)
        way.close()
        guests.forget(name, kind)
        vm, _, folder = guests(name)
        state = vm.state()
        assert state is not None
        with connect_any(vm, state, folder, seconds=READY_SECONDS) as found:
            assert found.kind == kind
            assert said_by(found, b"echo here") == b"here\n"


def test_where_no_way_leads_in_it_is_said_how_far_each_came(guests: Guests) -> None:
    vm, _, folder = guests("alpine")
    state = vm.state()
    assert state is not None
    with pytest.raises(ExecutorError) as caught:
        connect_any(vm, state, folder, seconds=1, kinds=("agent", "ssh"))
    first, agent, ssh = caught.value.message.splitlines()
    assert first == "no way leads into the guest of alpine:"
    assert "agent: alpine cannot be reached within" in agent
    assert "ssh: alpine cannot be reached by SSH within" in ssh


def test_the_hosts_key_is_pinned_and_nothing_of_the_users_is_touched(guests: Guests) -> None:
    way = guests.way("debian", "ssh")
    vm, _, folder = guests("debian")
    assert said_by(way, b"true") == b""
    assert "ssh-ed25519" in Path(vm.file("build-known_hosts")).read_text()
    assert os.stat(folder).st_mode & 0o777 == 0o700


def test_a_secret_is_in_no_log_of_the_vm(guests: Guests) -> None:
    for name, kind in GUEST_WAYS:
        secret = f"s3cret-{os.urandom(8).hex()}"
        way = guests.way(name, kind)
        assert way.run(b'echo "$TOKEN"; [ -n "$TOKEN" ]', secrets={"TOKEN": secret}) == 0
        for path in Path(guests(name).vm.path).iterdir():
            if path.is_file():
                assert secret.encode() not in path.read_bytes(), path


def test_a_guest_that_is_switched_off_during_a_step_is_lost(guests: Guests) -> None:
    way = guests.way("alpine", "serial")
    process = guests("alpine").process

    with pytest.raises(GuestLost):
        way.run(b"echo begun; sleep 3600", on_output=lambda _: process.kill())
    guests.end("alpine")


def test_power_off_leaves_no_key_of_the_build_in_the_image(guests: Guests, tmp_path: Path) -> None:
    guests.end("debian")
    disk = tmp_path / "debian.qcow2"
    guests.overlay(disk)
    way = guests.way("debian", "ssh")
    assert b"imgtool-build" in said_by(way, b"cat /root/.ssh/authorized_keys")
    qemu = ProcessId.of(guests("debian").process.pid)
    assert qemu is not None
    way.power_off()
    assert guests("debian").process.wait(READY_SECONDS) == 0
    guests.end("debian")
    raw = tmp_path / "debian.raw"
    QemuImg().convert(str(disk), str(raw), format="qcow2", output_format="raw")
    assert "imgtool-build" not in _listing(raw, "cat /root/.ssh/authorized_keys")
    assert "mark" not in _listing(raw, "ls -p /run")


def _listing(raw: Path, request: str) -> str:
    """What debugfs says of the file system in the first partition."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    argv = ["debugfs", "-R", request, f"{raw}?offset={1 << 20}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env={**os.environ, "PATH": path})
    return done.stdout
