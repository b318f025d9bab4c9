"""What only a guest can tell: what it sees of its machine, that its firmware keeps its variables, and that its
network reaches another guest."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from fixtures.alpine import SHELL
from imgtool.machine.compile.networks import stable_mac
from tests.guests import BOOT_SECONDS, PROMPT, Machines, Shell

VARIABLE = "/sys/firmware/efi/efivars/Imgtool-12345678-1234-1234-1234-123456789abc"


def boot(machines: Machines, name: str, *words: str, network: str = "none") -> Shell:
    """An Alpine in the background that forgets what it writes."""
    command: list[str | Path] = ["boot", "-d", machines.alpine.disk, "--name", name, "--ephemeral"]
    command += [*machines.shell_words(network=network), *words]
    machines(*command, "--wait", f"serial:{PROMPT}$", "--wait-timeout", str(BOOT_SECONDS))
    return Shell(os.path.join(machines.root, name, "serial0.sock"))


@pytest.mark.guest
def test_alpine_sees_what_was_asked_for(machines: Machines, tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    (share / "note").write_text("from the host")
    disks = {name: tmp_path / f"{name}.qcow2" for name in ("scsi", "nvme", "virtio")}
    for size, path in zip(("24M", "40M", "56M"), disks.values(), strict=True):
        machines("create", "-q", path, size)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shell = boot(
        machines,
        "seen",
        *("--machine", "q35", "--smp", "cpus=8,sockets=2,cores=2,threads=2", "--memory", "448M"),
        *("--numa", "node,cpus=0-3,mem=256M", "--numa", "node,cpus=4-7,mem=192M"),
        *("--numa", "dist,src=0,dst=1,val=25", "--uuid", "550e8400-e29b-41d4-a716-446655440000"),
        *("--drive", f"{disks['scsi']},if=scsi,serial=SCSI-A", "--drive", f"{disks['nvme']},if=nvme,serial=NVME-B"),
        *("--drive", f"{disks['virtio']},if=virtio,serial=VIRTIO-C,readonly=on"),
        *("--network", "user,model=e1000,mac=52:54:00:00:00:0e", "--share", f"{share},tag=data,readonly=on"),
        *("--append", SHELL.replace("modules=", "modules=virtio_net,")),
        network="user,net=10.9.0.0/24,dns=10.9.0.8,host=10.9.0.9,dhcpstart=10.9.0.30,hostname=web,dnssearch=a.example,"
        f"tftp={share},bootfile=note,guestfwd=tcp:10.9.0.100:80-cmd:echo forwarded,hostfwd=tcp::{port}-:99",
    )
    shell("mount -t proc proc /proc")
    sees_its_processors_and_memory(shell)
    sees_its_disks(shell)
    assert shell("cat /sys/class/net/eth0/address") == stable_mac("seen", 0)
    shell("insmod /lib/modules/*/kernel/drivers/net/ethernet/intel/e1000/e1000.ko*")
    assert shell("cat /sys/class/net/eth1/address") == "52:54:00:00:00:0e"
    assert shell("readlink /sys/class/net/eth1/device/driver").endswith("/e1000")
    sees_the_share(shell)
    reaches_what_was_forwarded(shell, port)
    shell.close()
    machines("vm", "kill", "seen")


def sees_its_processors_and_memory(shell: Shell) -> None:
    cpu, node = "/sys/devices/system/cpu", "/sys/devices/system/node"
    one = f"{cpu}/cpu$n/topology"
    said = shell(f"for n in 0 1 2 3 4 5 6 7; do echo $(cat {one}/physical_package_id {one}/core_id); done")
    assert said.split("\n") == [f"{socket} {core}" for socket in "01" for core in "01" for _ in range(2)]
    assert shell(f"cat {cpu}/cpu*/topology/thread_siblings_list | sort -u") == "0-1\n2-3\n4-5\n6-7"
    assert shell(f"cat {node}/node*/cpulist {node}/node*/distance") == "0-3\n4-7\n10 25\n25 10"
    found = [int(word) >> 10 for word in shell(f"awk '/MemTotal/ {{print $4}}' {node}/node*/meminfo").split()]
    assert all(size - 48 <= megabytes <= size for megabytes, size in zip(found, (256, 192), strict=True)), found
    assert shell("cat /sys/class/dmi/id/product_uuid") == "550e8400-e29b-41d4-a716-446655440000"


def sees_its_disks(shell: Shell) -> None:
    said = shell("cd /sys/block; for d in nvme0n1 sda vda vdb; do echo $d $(cat $d/size $d/ro); done; cd")
    sectors = {"nvme0n1": (40 << 11, 0), "sda": (24 << 11, 0), "vda": (1 << 21, 0), "vdb": (56 << 11, 1)}
    assert said.split("\n") == [f"{name} {size} {readonly}" for name, (size, readonly) in sectors.items()]
    assert shell("cat /sys/block/vdb/serial") == "VIRTIO-C"
    assert shell("cat /sys/block/nvme0n1/device/serial") == "NVME-B"
    assert shell("tail -c 6 /sys/block/sda/device/vpd_pg80") == "SCSI-A"


def sees_the_share(shell: Shell) -> None:
    for module in ("fs/netfs/netfs", "net/9p/9pnet", "net/9p/9pnet_virtio", "fs/9p/9p"):
        shell(f"insmod /lib/modules/*/kernel/{module}.ko*")
    mount = "mount -t 9p -o trans=virtio,version=9p2000.L data /tmp/data"
    assert shell(f"mount -t tmpfs tmpfs /tmp; mkdir /tmp/data; {mount}; cat /tmp/data/note") == "from the host"
    assert "Read-only" in shell("touch /tmp/data/new 2>&1")


def reaches_what_was_forwarded(shell: Shell, port: int) -> None:
    shell("insmod /lib/modules/*/kernel/net/packet/af_packet.ko*")
    shell(r"printf '#!/bin/sh\nset\n' > /tmp/script; chmod +x /tmp/script; ip link set lo up; ip link set eth0 up")
    lease = set(shell("udhcpc -i eth0 -n -q -s /tmp/script").split("\n"))
    assert lease >= {"ip='10.9.0.30'", "router='10.9.0.9'", "dns='10.9.0.8'", "hostname='web'", "search='a.example'"}
    assert "boot_file='note'" in lease
    shell("ip address add 10.9.0.30/24 dev eth0")
    assert shell("sleep 1 | nc -w 20 10.9.0.100 80") == "forwarded"
    shell("(echo the guest answers | nc -l -p 99) >/dev/null 2>&1 & true")
    shell("while ! netstat -ltn | grep -q :99; do usleep 50000; done")
    with socket.create_connection(("127.0.0.1", port), timeout=60) as reached:
        assert reached.recv(100) == b"the guest answers\n"


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
