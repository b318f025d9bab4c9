from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from msgspec.structs import replace

from imgtool.build.executor import equip
from imgtool.build.executors.choose import equip_for_any
from imgtool.errors import ConfigError
from imgtool.machine.config import Machine
from imgtool.machine.seed import seed
from imgtool.machine.values.devices import CharDevice, CloudInit
from imgtool.machine.values.network import User


@pytest.fixture
def access(tmp_path: Path) -> str:
    folder = tmp_path / "access"
    folder.mkdir(mode=0o700)
    return str(folder)


def test_the_agent_needs_its_channel(access: str) -> None:
    assert equip(Machine(name="a"), "agent", access) == Machine(name="a", agent=True)


def test_the_serial_way_needs_the_first_port_as_a_socket(access: str) -> None:
    wanted = Machine(serial=(CharDevice(type="unix"),))
    assert equip(Machine(), "serial", access) == wanted
    assert equip(wanted, "serial", access) == wanted
    for port in (CharDevice(type="pty"), CharDevice(type="unix", path="/tmp/port")):
        with pytest.raises(ConfigError, match="first serial port"):
            equip(Machine(serial=(port,)), "serial", access)
    with pytest.raises(ConfigError, match="first serial port"):
        equip(Machine(serial=()), "serial", access)


def test_ssh_needs_a_key_that_stays_the_same(access: str) -> None:
    public = os.path.join(access, "id_ed25519.pub")
    machine = equip(Machine(), "ssh", access)
    assert machine == Machine(cloud_init=CloudInit(user="root", ssh_keys=(public,)))
    assert os.stat(os.path.join(access, "id_ed25519")).st_mode & 0o777 == 0o600
    before = Path(public).read_bytes()
    assert equip(machine, "ssh", access) == machine
    assert Path(public).read_bytes() == before
    fingerprint = subprocess.run(["ssh-keygen", "-l", "-f", public], capture_output=True, text=True, check=True)
    assert "ED25519" in fingerprint.stdout


def test_what_the_machine_says_of_its_users_stays(access: str, tmp_path: Path) -> None:
    own = tmp_path / "own.pub"
    own.write_text("ssh-ed25519 AAAA me\n")
    wanted = CloudInit(user="web", hostname="www", ssh_keys=(str(own),))
    machine = equip(Machine(cloud_init=wanted, networks=(User(),)), "ssh", access)
    public = os.path.join(access, "id_ed25519.pub")
    assert machine.cloud_init == replace(wanted, ssh_keys=(str(own), public))


def test_a_guest_without_a_network_is_not_reached_by_ssh(access: str) -> None:
    with pytest.raises(ConfigError, match="without a network"):
        equip(Machine(networks=()), "ssh", access)
    machine = equip_for_any(Machine(networks=()), access)
    assert machine == Machine(networks=(), agent=True, serial=(CharDevice(type="unix"),))


def test_the_seed_lets_root_in_and_changes_nothing_else_of_it(access: str) -> None:
    machine = equip(Machine(), "ssh", access)
    assert machine.cloud_init is not None
    document = json.loads(seed(machine.cloud_init, "web").user_data.removeprefix(b"#cloud-config\n"))
    key = Path(access, "id_ed25519.pub").read_text().strip()
    assert document == {
        "disable_root": False,
        "users": ["default", {"name": "root", "lock_passwd": False, "ssh_authorized_keys": [key]}],
    }
