"""Debian, from an image that was never booted to a shell over SSH, in one command."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

import imgtool
from fixtures.debian import debian
from tests.guests import Machines

FIRST_BOOT_SECONDS = 500
"""A bound for what hangs: under TCG a first boot takes one to two minutes."""


@pytest.mark.slow
@pytest.mark.guest
def test_a_cloud_image_is_booted_and_reached_by_ssh_and_by_its_agent(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    started = machines.slowly(
        *("boot", "-d", debian().disk, "--new-overlay", tmp_path / "cloud.qcow2", "--name", "cloud"),
        *("--accel", "tcg", "--memory", "768M", "--smp", "2,maxcpus=3", "--network", "user", "--agent"),
        *("--ssh-key", f"{key}.pub", "--user", "ann", "--hostname", "web1"),
        *("--wait", "cloud-init", "--wait-timeout", str(FIRST_BOOT_SECONDS), "--timeline"),
        seconds=FIRST_BOOT_SECONDS + 60,
    )
    assert started.stdout == "cloud\n"
    stages = [line.split(maxsplit=2)[2] for line in started.stderr.splitlines() if " s  " in line]
    assert stages[-1] == "ready"
    assert {"boot loader", "init", "ssh"} <= set(stages)

    machines("vm", "wait", "cloud", "--for", "ssh")
    assert machines("vm", "ssh", "cloud", "--", "id -un; hostname").stdout == "ann\nweb1\n"
    assert machines("vm", "ssh", "cloud", "--", "sudo id -u").stdout == "0\n"
    assert machines("vm", "ssh", "cloud", "--", "exit 7", check=False).returncode == 7

    done = machines("vm", "exec", "cloud", "--", "sh", "-c", "echo out; echo err >&2; exit 3", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    document = json.loads(machines("vm", "exec", "cloud", "--output", "json", "--", "uname", "-s").stdout)
    assert document == {"exit-status": 0, "stdout": "Linux\n", "stderr": "", "truncated": False}
    assert machines("vm", "wait", "cloud", "--for", "agent").returncode == 0

    monkeypatch.setenv("XDG_RUNTIME_DIR", machines.folder)
    vm = imgtool.running_vm("cloud")
    assert vm.execute(["sh", "-c", "cat; exit 3"], stdin=b"in") == (3, b"in", b"", False)
    vm.wait("ssh")
    assert subprocess.run(vm.ssh_argv("hostname"), check=True, capture_output=True).stdout == b"web1\n"

    stopped = machines("vm", "stop", "cloud", "--timeout", "120")
    assert stopped.stdout == "cloud: powered off\n"
    assert machines("check", tmp_path / "cloud.qcow2").returncode == 0
