"""The compiled command line, taken by a real QEMU, which is then asked over QMP what machine it made of it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imgtool.machine.argv import compile_argv
from imgtool.machine.config import Machine
from imgtool.machine.host import QMP_SOCKET, Disk, Host, Link, Uefi
from imgtool.machine.options.words import from_words
from imgtool.machine.validate import problems
from imgtool.qemu import system
from imgtool.qemu.capabilities import Capabilities
from imgtool.qemu.qemu_img import QemuImg
from imgtool.qemu.qmp import Monitor, QmpUnreachable
from imgtool.sizes import parse_size
from tests.machine.paused import Paused

pytestmark = pytest.mark.matrix

_START_SECONDS = 60.0


class Compiled(Paused):
    """A paused machine, with what it was compiled from."""

    def __init__(self, monitor: Monitor, host: Host, machine: Machine) -> None:
        super().__init__(monitor)
        self.host = host
        self.machine = machine


Start = Callable[..., Compiled]


@pytest.fixture
def start(tmp_path: Path, real_capabilities: Capabilities) -> Iterator[Start]:
    """Starts the machine of these settings, paused. Each ends with the test."""
    processes: list[system.Process] = []
    monitors: list[Monitor] = []

    def begin(words: dict[str, Any], **known: Any) -> Compiled:
        runtime = tmp_path / f"vm{len(processes)}"
        runtime.mkdir(mode=0o700)
        host = Host(
            qemu=real_capabilities.program,
            capabilities=real_capabilities,
            accelerator="tcg",
            runtime_dir=str(runtime),
            **{"console": "socket", **known},
        )
        machine = from_words({"memory": "64M", "network": ["none"], **words, "arguments": ["-S"]})
        assert [error.message for error in problems(machine, host)] == []
        command = compile_argv(machine, host)
        for scratch in command.scratch:
            QemuImg().create(
                scratch.path, format="qcow2", backing=scratch.backing, backing_format=scratch.backing_format
            )
        for secret in command.secrets:
            Path(secret.path).write_text("secret")
        process = system.start(command.argv, detached=False)
        processes.append(process)
        monitor = _connect(str(runtime / QMP_SOCKET), process)
        monitors.append(monitor)
        return Compiled(monitor, host, machine)

    yield begin
    for monitor in monitors:
        monitor.close()
    for process in processes:
        process.end(grace=5.0)
        process.close()


def _connect(socket: str, process: system.Process) -> Monitor:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        if process.poll() is not None:
            raise process.failure()
        try:
            return Monitor.connect(socket)
        except QmpUnreachable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@pytest.fixture
def image(tmp_path: Path) -> Callable[..., tuple[str, Disk]]:
    """Makes an image: its path, and what a host knows of it."""

    def make(name: str, size: str = "8M", format: str = "qcow2") -> tuple[str, Disk]:
        path, size_ = str(tmp_path / name), parse_size(size)
        QemuImg().create(path, size_, format=format)
        return path, Disk(chain=(Link(path=path, format=format),), size=size_)

    return make


MakeImage = Callable[..., tuple[str, Disk]]


def test_disks_of_a_pc_sit_where_their_names_say(start: Start, image: MakeImage) -> None:
    names = ("hda", "hdb", "hdd", "cdrom")
    disks = {name: image(f"{name}.qcow2") for name in names}
    disks |= {name: image(f"{name}.img", "1440k", "raw") for name in ("fda", "fdb")}
    vm = start({name: path for name, (path, _) in disks.items()}, disks=dict(disks.values()))
    drives = vm.drives
    assert {name: drives[name]["inserted"]["file"] for name in disks} == {n: path for n, (path, _) in disks.items()}
    assert {name: vm.get(f"/machine/peripheral/{name}", "parent_bus").rpartition("/")[2] for name in names} == {
        "hda": "ide.0",
        "hdb": "ide.0",
        "hdd": "ide.1",
        "cdrom": "ide.1",
    }
    assert [vm.get(f"/machine/peripheral/{name}", "unit") for name in ("hda", "hdb", "cdrom", "hdd", "fdb")] == [
        0,
        1,
        0,
        1,
        1,
    ]
    assert drives["cdrom"]["inserted"]["ro"]
    assert drives["cdrom"]["removable"]


def test_every_interface_of_a_q35(start: Start, image: MakeImage) -> None:
    disks = dict(image(f"{number}.qcow2") for number in range(8))
    floppy, flash = image("f.img", "1440k", "raw"), image("flash.img", "256k", "raw")
    paths = list(disks)
    vm = start(
        {
            "machine": "q35",
            "fda": floppy[0],
            "drive": [
                f"{paths[0]},if=ide,index=5,cyls=16,heads=16,secs=63,serial=ATA,werror=stop,rerror=report",
                f"{paths[1]},if=scsi,index=8,serial=SCSI",
                f"{paths[2]},if=virtio,addr=0x9,serial=VIRTIO,readonly=on",
                f"{paths[3]},if=nvme,addr=0xa,serial=NVME",
                f"{paths[4]},if=usb,serial=USB",
                f"{paths[5]},if=sd",
                f"{paths[6]},if=none,id=spare",
                f"file={flash[0]},if=pflash,readonly=on",
                "if=ide,media=cdrom",
                f"{paths[7]},if=scsi,media=cdrom",
            ],
        },
        disks={**disks, floppy[0]: floppy[1], flash[0]: flash[1]},
    )
    drives, pci = vm.drives, vm.pci
    assert pci["drive2"]["slot"] == 9
    assert pci["drive3"]["slot"] == 10
    assert pci["drive3"]["class_info"]["class"] == 0x108
    serials = {
        name: vm.get(f"/machine/peripheral/{name}", "serial") for name in ("drive0", "drive1", "drive3", "drive4")
    }
    assert serials == {"drive0": "ATA", "drive1": "SCSI", "drive3": "NVME", "drive4": "USB"}
    assert vm.get("/machine/peripheral/drive2", "serial") == "VIRTIO"
    assert [vm.get("/machine/peripheral/drive0", name) for name in ("cyls", "heads", "secs")] == [16, 16, 63]
    assert [vm.get("/machine/peripheral/drive0", name) for name in ("werror", "rerror")] == ["stop", "report"]
    assert vm.get("/machine/peripheral/drive0", "parent_bus").endswith("ide.5")
    assert vm.get("/machine/peripheral/drive1", "parent_bus").endswith("scsi1.0")
    assert vm.get("/machine/peripheral/drive1", "scsi-id") == 1
    assert drives["drive2"]["inserted"]["ro"]
    assert "inserted" not in drives["drive8"]
    assert {"spare", "drive7"} <= set(vm.nodes)
    assert {"fda", "drive5", "drive9"} <= set(drives)


def test_a_slot_that_is_asked_for_is_kept_free(start: Start, image: MakeImage) -> None:
    disks = dict(image(f"{number}.qcow2") for number in range(3))
    first, second, third = disks
    wanted = [f"{first},if=virtio", f"{second},if=virtio,addr=3", f"{third},if=nvme"]
    vm = start({"drive": wanted, "network": "user,addr=0x4"}, disks=disks)
    slots = {name: device["slot"] for name, device in vm.pci.items() if name}
    assert slots == {"drive1": 3, "nic0": 4, "drive0": 5, "drive2": 6}


def test_each_cache_mode_is_what_qemu_says_it_is(start: Start, image: MakeImage) -> None:
    modes = ("writeback", "none", "writethrough", "directsync", "unsafe")
    disks = {mode: image(f"{mode}.qcow2") for mode in modes}
    vm = start(
        {"drive": [f"{disks[mode][0]},if=virtio,cache={mode},id={mode}" for mode in modes]},
        disks=dict(disks.values()),
    )
    drives, nodes = vm.drives, vm.nodes
    found = {mode: drives[mode]["inserted"]["cache"] for mode in modes}
    assert found == {
        "writeback": {"direct": False, "no-flush": False, "writeback": True},
        "none": {"direct": True, "no-flush": False, "writeback": True},
        "writethrough": {"direct": False, "no-flush": False, "writeback": False},
        "directsync": {"direct": True, "no-flush": False, "writeback": False},
        "unsafe": {"direct": False, "no-flush": True, "writeback": True},
    }
    assert nodes["none-file"]["cache"]["direct"]
    assert nodes["unsafe-file"]["cache"]["no-flush"]


def test_throttling_filters_and_zeroes(start: Start, image: MakeImage) -> None:
    path, known = image("a.qcow2")
    limits = "aio=native,cache=none,bps_rd=1000000,bps_wr=2000000,iops=100,iops_max=200,iops_max_length=5,group=slow"
    vm = start(
        {
            "drive": f"{path},if=virtio,copy-on-read=on,discard=unmap,detect-zeroes=unmap,{limits}",
            "name": "filters",
        },
        disks={path: known},
    )
    assert vm.drives["drive0"]["inserted"]["node-name"] == "drive0-cor-throttle"
    nodes = vm.nodes
    assert nodes["drive0"]["detect_zeroes"] == "unmap"
    assert [nodes[name]["drv"] for name in ("drive0-cor-throttle", "drive0-cor", "drive0", "drive0-file")] == [
        "throttle",
        "copy-on-read",
        "qcow2",
        "file",
    ]
    found = vm.get("/objects/throttle-slow", "limits")
    assert {key: found[key] for key in ("bps-read", "bps-write", "iops-total", "iops-total-max")} == {
        "bps-read": 1000000,
        "bps-write": 2000000,
        "iops-total": 100,
        "iops-total-max": 200,
    }
    assert found["iops-total-max-length"] == 5


def test_an_ephemeral_machine_writes_to_a_scratch_overlay_of_its_chain(start: Start, tmp_path: Path) -> None:
    base, top = str(tmp_path / "base,1.raw"), str(tmp_path / "top.qcow2")
    QemuImg().create(base, 8 << 20, format="raw")
    QemuImg().create(top, format="qcow2", backing=base, backing_format="raw")
    chain = (Link(path=top, format="qcow2"), Link(path=base, format="raw"))
    vm = start({"drive": f"{top},if=virtio", "ephemeral": True}, disks={top: Disk(chain=chain, size=8 << 20)})
    scratch = f"{vm.host.runtime_dir}/drive0.qcow2"
    assert vm.drives["drive0"]["inserted"]["file"] == scratch
    nodes = vm.nodes
    assert {name: (nodes[name]["file"], nodes[name]["ro"]) for name in ("drive0", "drive0-0", "drive0-1")} == {
        "drive0": (scratch, False),
        "drive0-0": (top, True),
        "drive0-1": (base, True),
    }


@pytest.mark.parametrize("name", [b"a,b=c.qcow2", b"caf\xe9,readonly=on.qcow2", "naïve:x.qcow2".encode()])
def test_an_awkward_name_is_a_file_and_nothing_else(start: Start, image: MakeImage, name: bytes) -> None:
    path, known = image(os.fsdecode(name))
    vm = start({"drive": [{"file": path, "if": "virtio"}]}, disks={path: known})
    drives = vm.drives
    assert list(drives) == ["drive0"]
    assert drives["drive0"]["inserted"]["ro"] is False


def test_processors_memory_and_numa(start: Start) -> None:
    vm = start(
        {
            "machine": "q35",
            "cpu": "max,-svm",
            "smp": "cpus=4,maxcpus=8,sockets=2,threads=2",
            "memory": "128M,slots=3,maxmem=1G",
            "numa": ["node,cpus=0-3,mem=48M", "node,cpus=4-7", "dist,src=0,dst=1,val=20"],
        }
    )
    cpus = vm.ask("query-cpus-fast")
    assert len(cpus) == 4
    slots = vm.ask("query-hotpluggable-cpus")
    props = {(slot["props"]["socket-id"], slot["props"]["core-id"], slot["props"]["thread-id"]) for slot in slots}
    assert props == {(socket, core, thread) for socket in range(2) for core in range(2) for thread in range(2)}
    assert {slot["props"]["node-id"] for slot in slots if slot["props"]["socket-id"] == 0} == {0}
    assert sorted(item["size"] >> 20 for item in vm.ask("query-memdev")) == [48, 80]
    assert vm.ask("query-memory-size-summary")["base-memory"] == 128 << 20
    assert "node 1 size: 80 MB" in vm.told("info numa")
    assert vm.ask("object-add", **{"qom-type": "memory-backend-ram", "id": "more", "size": 128 << 20}) == {}
    assert vm.ask("device_add", driver="pc-dimm", id="dimm0", memdev="more", node=0) == {}
    assert vm.ask("query-memory-devices")[0]["data"]["size"] == 128 << 20


def test_a_microvm_has_its_disk_network_and_console_without_pci(start: Start, image: MakeImage) -> None:
    path, known = image("a.qcow2")
    vm = start(
        {"machine": "microvm", "drive": path, "network": "user", "rng": True, "agent": True}, disks={path: known}
    )
    assert list(vm.drives) == ["drive0"]
    assert vm.get("/machine/peripheral/nic0", "type") == "virtio-net-device"
    assert {item["label"] for item in vm.ask("query-chardev")} == {"agent", "qmp", "serial0"}


def test_an_isa_pc_has_ide_and_an_ne2000(start: Start, image: MakeImage) -> None:
    path, known = image("a.qcow2")
    vm = start({"machine": "isapc", "hda": path, "network": "user", "serial": ["null"]}, disks={path: known})
    assert list(vm.drives) == ["hda"]
    assert vm.get("/machine/peripheral/nic0", "type") == "ne2k_isa"


def test_networks_of_several_kinds_side_by_side(
    start: Start, tmp_path: Path, real_capabilities: Capabilities
) -> None:
    wanted = [
        "user,dnssearch=a.example,dnssearch=b.example,net=10.1.0.0/16,ipv6-net=fd00::/64",
        "socket,listen=127.0.0.1:0,model=e1000,mac=52:54:00:aa:bb:cc,addr=0x7",
        "user,model=rtl8139,restrict=on,bootindex=3",
    ]
    modern = "stream" in real_capabilities.netdevs
    if modern:
        wanted.append(f"stream,server=on,addr.type=unix,addr.path={tmp_path}/s,model=e1000e")
        wanted.append(f"dgram,local.type=unix,local.path={tmp_path}/l,remote.type=unix,remote.path={tmp_path}/r")
    vm = start({"machine": "q35", "name": "many", "network": wanted})
    pci = vm.pci
    assert {f"nic{place}" for place in range(len(wanted))} <= set(pci)
    assert pci["nic1"]["slot"] == 7
    assert vm.get("/machine/peripheral/nic1", "mac") == "52:54:00:aa:bb:cc"
    assert re.match("52:54:00:", vm.get("/machine/peripheral/nic0", "mac"))
    told = vm.told("info network")
    assert "net0: index=0,type=user,net=10.1.0.0" in told
    assert "restrict=on" in told
    assert Path(tmp_path / "l").is_socket() is modern


def test_the_small_devices(start: Start, tmp_path: Path) -> None:
    vm = start(
        {
            "machine": "q35",
            "uuid": "550e8400-e29b-41d4-a716-446655440000",
            "name": "small, devices",
            "rng": "/dev/urandom,max-bytes=1024,period=500",
            "balloon": "deflate-on-oom=on",
            "agent": True,
            "tablet": True,
            "watchdog": "i6300esb,action=pause",
            "share": [f"{tmp_path},tag=data", f"{tmp_path},tag=more,readonly=on,security_model=none"],
            "rtc": "2026-01-31T12:00:00,clock=vm",
            "audio": "none,model=ac97",
            "serial": ["null", f"file:{tmp_path}/out", "unix:"],
            "parallel": ["null"],
            "keymap": "de",
            "vga": "cirrus",
            "boot": "order=n,menu=on,splash-time=100,reboot-timeout=5,strict=on",
            "network": "user",
        }
    )
    assert vm.ask("query-name") == {"name": "small, devices"}
    assert vm.ask("query-uuid")["UUID"] == "550e8400-e29b-41d4-a716-446655440000"
    devices = (
        "rng-device0",
        "balloon0",
        "virtio-serial",
        "usb",
        "watchdog0",
        "share0-device",
        "share1-device",
        "sound0",
    )
    assert set(devices) <= set(vm.pci)
    assert vm.get("/machine/peripheral/share0-device", "mount_tag") == "data"
    assert vm.get("/objects/rng0", "filename") == "/dev/urandom"
    assert vm.get("/machine/peripheral/tablet0", "type") == "usb-tablet"
    labels = {item["label"] for item in vm.ask("query-chardev")}
    assert {"serial0", "serial1", "serial2", "parallel0", "agent", "qmp"} <= labels
    assert {item["name"] for item in vm.ask("qom-list", path="/machine/peripheral")} >= set(devices)
    assert Path(vm.host.runtime_dir, "serial2.sock").is_socket()
    video = [device for bus in vm.ask("query-pci") for device in bus["devices"] if device["id"]["vendor"] == 0x1013]
    assert len(video) == 1


def test_vnc_listens_on_the_loopback_address_and_asks_a_password(start: Start) -> None:
    vm = start({"display": "vnc"})
    found = vm.ask("query-vnc")
    assert (found["enabled"], found["host"], found["auth"]) == (True, "127.0.0.1", "vnc")


def test_uefi_code_is_read_only_and_its_variables_are_the_machines_own(start: Start, image: MakeImage) -> None:
    code, known = image("code.fd", "512k", "raw")
    variables, _ = image("vars.qcow2", "128k")
    vm = start(
        {"machine": "q35", "firmware": {"secure-boot": True}},
        uefi=Uefi(code=code, vars=variables, secure_boot=True, requires_smm=True),
        disks={code: known},
    )
    nodes = vm.nodes
    assert (nodes["uefi-code"]["file"], nodes["uefi-code"]["ro"]) == (code, True)
    assert (nodes["uefi-vars"]["file"], nodes["uefi-vars"]["ro"]) == (variables, False)
    assert vm.get("/machine", "smm") == "on"


def test_a_cloud_init_seed_is_a_read_only_disk(start: Start, image: MakeImage) -> None:
    path, known = image("a.qcow2")
    seed, _ = image("seed.iso", "1M", "raw")
    vm = start({"drive": path, "cloud-init": "hostname=web"}, disks={path: known}, seed=seed)
    found = vm.drives["cloud-init"]["inserted"]
    assert (found["file"], found["ro"]) == (seed, True)


def test_a_user_network_forwards_from_the_loopback_address_alone(start: Start) -> None:
    vm = start({"network": "user,hostfwd=tcp::45678-:22"})
    assert re.search(r"TCP\[HOST_FORWARD\] +\d+ +127\.0\.0\.1 +45678 ", vm.told("info usernet"))
