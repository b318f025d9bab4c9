"""What only a guest can tell: its firmware keeps its variables, and its network reaches another guest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.guests import BOOT_SECONDS, PROMPT, Machines, Shell

VARIABLE = "/sys/firmware/efi/efivars/Imgtool-12345678-1234-1234-1234-123456789abc"


def boot(machines: Machines, name: str, *words: str, network: str = "none") -> Shell:
    """An Alpine in the background that forgets what it writes."""
    command: list[str | Path] = ["boot", "-d", machines.alpine.disk, "--name", name, "--ephemeral"]
    command += [*machines.shell_words(network=network), *words]
    machines(*command, "--wait", f"serial:{PROMPT}$", "--wait-timeout", str(BOOT_SECONDS))
    return Shell(os.path.join(machines.root, name, "serial0.sock"))


@pytest.mark.guest
def test_uefi_keeps_a_variable_over_a_restart(machines: Machines) -> None:
    efivars = "modprobe efivarfs; mount -t efivarfs efivarfs /sys/firmware/efi/efivars"
    shell = boot(machines, "uefi", "--uefi")
    shell(efivars)
    shell(f"printf '\\007\\000\\000\\000kept' > {VARIABLE}")
    shell.close()
    assert "powered off" not in machines("vm", "stop", "uefi", "--timeout", "0").stdout
    shell = boot(machines, "uefi", "--uefi")
    shell(efivars)
    said = shell(f"tail -c 4 {VARIABLE}")
    shell.close()
    machines("vm", "kill", "uefi")
    assert said == "kept"
    assert os.listdir(os.path.join(machines.folder, "data", "imgtool", "vm", "uefi")) == ["uefi-vars.qcow2"]


@pytest.mark.guest
def test_two_guests_reach_each_other_over_a_network_without_root(machines: Machines) -> None:
    place = os.path.join(machines.folder, "wire.sock")
    ends = {"left": f"stream,server=on,addr.type=unix,addr.path={place}"}
    ends["right"] = f"stream,server=off,addr.type=unix,addr.path={place}"
    shells = {name: boot(machines, name, network=network) for name, network in ends.items()}
    for number, shell in enumerate(shells.values(), 1):
        shell("modprobe virtio_net; modprobe af_packet")
        shell(f"ip link set eth0 up; ip address add 192.0.2.{number}/24 dev eth0")
    macs = {name: shell("cat /sys/class/net/eth0/address") for name, shell in shells.items()}
    said = shells["left"]("ping -c 3 -W 5 192.0.2.2")
    for shell in shells.values():
        shell.close()
    for name in shells:
        machines("vm", "kill", name)
    assert "3 packets received" in said
    assert macs["left"] != macs["right"]
