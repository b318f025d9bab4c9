"""Machine type, CPU, topology, memory, NUMA, boot order, kernel and safety as a user types them, and what QEMU
answers about each over QMP."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from imgtool.qemu.capabilities import Capabilities
from tests.hugepages import reserved
from tests.machine.paused import Typed

pytestmark = pytest.mark.matrix


@pytest.mark.parametrize("machine", ["pc", "q35", "microvm", "isapc"])
def test_name_uuid_and_machine_type(typed: Typed, real_capabilities: Capabilities, machine: str) -> None:
    vm = typed(f"--name box --uuid 550e8400-e29b-41d4-a716-446655440000 --machine {machine}")
    assert vm.ask("query-name") == {"name": "box"}
    assert vm.ask("query-uuid")["UUID"] == "550e8400-e29b-41d4-a716-446655440000"
    kind = real_capabilities.machine(machine)
    assert kind is not None
    assert vm.get("/machine", "type") == f"{kind.name}-machine"
    assert typed.names() == ["box"]


def test_properties_of_a_machine_and_an_older_version_of_it(typed: Typed, real_capabilities: Capabilities) -> None:
    found = [re.fullmatch(r"pc-q35-(\d+)\.(\d+)", machine.name) for machine in real_capabilities.machines]
    old = min((int(name[1]), int(name[2]), name[0]) for name in found if name)[2]
    vm = typed(f"--machine {old},vmport=off,smm=off,max-ram-below-4g=2G,dump-guest-core=off,mem_merge=off")
    assert vm.get("/machine", "type") == f"{old}-machine"
    told = [vm.get("/machine", name) for name in ("vmport", "smm", "max-ram-below-4g", "dump-guest-core")]
    assert told == ["off", "off", 2 << 30, False]
    assert vm.get("/machine", "mem-merge") is False


@pytest.mark.parametrize(
    ("words", "reason", "hint"),
    [
        ("--machine q35,vmprot=off", "machine q35 has no property 'vmprot'", "did you mean vmport?"),
        ("--machine pc,nvdim=on", "machine pc has no property 'nvdim'", "did you mean nvdimm?"),
        ("--machine q35,smp.cpus=4", "smp.cpus is an option of its own here", "use --smp"),
        ("--cpu max,phys-bit=40", "--cpu has no 'phys-bit'", "did you mean phys-bits?"),
        ("--cpu max,+hv_relaxed", "there is no CPU feature 'hv_relaxed'", "did you mean hv-relaxed?"),
        ("--cpu max,+nothing-like-it", "there is no CPU feature 'nothing-like-it'", "`--cpu help` lists them all"),
        ("--machine pc-q35-99.1", "has no machine type 'pc-q35-99.1'", "did you mean pc-q35-"),
    ],
)
def test_what_this_qemu_lacks_is_refused_with_the_nearest_name(
    typed: Typed, words: str, reason: str, hint: str
) -> None:
    said = typed.refused(words)
    assert reason in said
    assert hint in said


def test_the_cpu_and_its_features(typed: Typed) -> None:
    vm = typed("--cpu Skylake-Server-v1,-avx2,+sse4a,+x2apic,+pmu,model-id=Mine,phys-bits=40,stepping=3 {disk}")
    cpu = vm.ask("query-cpus-fast")[0]["qom-path"]
    assert vm.get(cpu, "type") == "Skylake-Server-v1-x86_64-cpu"
    found = [vm.get(cpu, name) for name in ("avx2", "sse4a", "aes", "model-id", "phys-bits", "stepping")]
    assert found == [False, True, True, "Mine", 40, 3]


def test_without_a_word_the_cpu_has_all_the_accelerator_can_do(typed: Typed) -> None:
    vm = typed("{disk}")
    (cpu,) = vm.ask("query-cpus-fast")
    assert vm.get(cpu["qom-path"], "type") == "max-x86_64-cpu"
    assert cpu["props"] == {"socket-id": 0, "core-id": 0, "thread-id": 0} | cpu["props"]
    assert vm.ask("query-kvm")["enabled"] is False


@pytest.mark.parametrize(
    ("smp", "cpus", "levels"),
    [
        ("8", 8, (1, 1, 8, 1)),
        ("cpus=3,maxcpus=8,threads=2", 3, (1, 1, 4, 2)),
        ("sockets=2,dies=2,cores=3,threads=2", 24, (2, 2, 3, 2)),
        ("4,sockets=4", 4, (4, 1, 1, 1)),
    ],
)
def test_the_topology(typed: Typed, smp: str, cpus: int, levels: tuple[int, int, int, int]) -> None:
    vm = typed(f"--machine q35 --smp {smp}")
    assert len(vm.ask("query-cpus-fast")) == cpus
    names = ("socket-id", "die-id", "core-id", "thread-id")
    places = {tuple(slot["props"].get(name, 0) for name in names) for slot in vm.cpus}
    sockets, dies, cores, threads = levels
    assert places == {
        (socket, die, core, thread)
        for socket in range(sockets)
        for die in range(dies)
        for core in range(cores)
        for thread in range(threads)
    }


def test_cpus_are_plugged_in_up_to_the_last(typed: Typed) -> None:
    vm = typed("--smp 1,maxcpus=4,sockets=2,cores=2 --name many")
    vm.monitor.close()
    for number in ("3", "4"):
        assert typed.imgtool("vm", "set-cpus", "many", number)[0] == 0
    status, said = typed.imgtool("vm", "set-cpus", "many", "5")
    assert (status, "has room for 4 CPUs, not 5" in said) == (1, True)
    vm = typed.connect("many")
    assert len(vm.ask("query-cpus-fast")) == 4
    assert all("qom-path" in slot for slot in vm.cpus)


@pytest.mark.parametrize("machine", ["pc", "q35", "microvm"])
def test_the_limit_of_cpus_is_the_machines_own(typed: Typed, real_capabilities: Capabilities, machine: str) -> None:
    kind = real_capabilities.machine(machine)
    assert kind is not None
    said = typed.refused(f"--machine {machine} --smp {kind.cpu_max + 1}")
    assert f"{kind.cpu_max + 1} CPUs are more than machine {machine} has: {kind.cpu_max}" in said


def test_memory_with_room_for_more(typed: Typed) -> None:
    vm = typed("--memory 96M,slots=2,maxmem=512M")
    assert vm.ask("query-memory-size-summary")["base-memory"] == 96 << 20
    for place in range(2):
        vm.ask("object-add", **{"qom-type": "memory-backend-ram", "id": f"more{place}", "size": 128 << 20})
        vm.ask("device_add", driver="pc-dimm", id=f"dimm{place}", memdev=f"more{place}")
    modules = vm.ask("query-memory-devices")
    assert [(module["data"]["slot"], module["data"]["size"]) for module in modules] == [
        (0, 128 << 20),
        (1, 128 << 20),
    ]
    assert vm.ask("query-memory-size-summary")["plugged-memory"] == 256 << 20


def test_memory_is_plugged_in_as_the_machines_own_is(typed: Typed) -> None:
    vm = typed("--name grows --memory 128M,slots=2,maxmem=1G --share {folder},type=virtiofs")
    vm.monitor.close()
    assert typed.imgtool("vm", "set-memory", "grows", "256M")[0] == 0
    assert typed.imgtool("vm", "set-memory", "grows", "384")[0] == 0
    vm = typed.connect("grows")
    modules = [(item["data"]["id"], item["data"]["size"] >> 20) for item in vm.ask("query-memory-devices")]
    assert modules == [("dimm0", 128), ("dimm1", 128)]
    backends = {item["id"]: vm.get(f"/objects/{item['id']}", "share") for item in vm.ask("query-memdev")}
    assert backends == {"ram0": True, "ram-dimm0": True, "ram-dimm1": True}


def test_memory_is_plugged_into_the_numa_node_that_is_named(typed: Typed) -> None:
    vm = typed(
        "--name grows --smp 2 --memory 256M,slots=3,maxmem=1G --numa node,cpus=0,mem=128M "
        "--numa node,cpus=1,mem=128M,host-nodes=0"
    )
    vm.monitor.close()
    assert typed.imgtool("vm", "set-memory", "grows", "384M", "--node", "1") == (0, "")
    assert typed.imgtool("vm", "set-memory", "grows", "512M") == (0, "")
    status, said = typed.imgtool("vm", "set-memory", "grows", "640M", "--node", "2")
    assert (status, "grows has no NUMA node 2\nhint: it has 0, 1" in said) == (2, True)
    vm = typed.connect("grows")
    modules = [(item["data"]["id"], item["data"]["node"]) for item in vm.ask("query-memory-devices")]
    assert sorted(modules) == [("dimm0", 1), ("dimm1", 0)]
    bound = {item["id"]: (item["host-nodes"], item["policy"]) for item in vm.ask("query-memdev")}
    assert (bound["ram-dimm0"], bound["ram-dimm1"]) == (([0], "bind"), ([], "default"))


def test_a_module_that_qemu_does_not_take_leaves_nothing(typed: Typed) -> None:
    """Something else has its name: of the sizes, QEMU 8.2 takes every one."""
    vm = typed("--name grows --memory 128M,slots=1,maxmem=1G -- -device virtio-rng-pci,id=dimm0")
    vm.monitor.close()
    status, said = typed.imgtool("vm", "set-memory", "grows", "256M")
    assert (status, "grows cannot be given 128M more: " in said) == (1, True)
    assert [item["id"] for item in typed.connect("grows").ask("query-memdev") if "dimm" in item["id"]] == []


def test_numa_nodes_with_distances_and_host_nodes(typed: Typed) -> None:
    vm = typed(
        "--machine q35 --memory 128M --smp 4,maxcpus=6,sockets=3 --numa node,cpus=0-1,cpus=4-5,mem=32M "
        "--numa node,cpus=2-3,mem=64M,host-nodes=0,policy=bind --numa node,mem=32M,host-nodes=0,policy=preferred "
        "--numa dist,src=0,dst=1,val=21 --numa dist,src=0,dst=2,val=31 --numa dist,src=1,dst=2,val=41"
    )
    backends = {
        item["id"]: (item["size"] >> 20, item["policy"], item["host-nodes"]) for item in vm.ask("query-memdev")
    }
    assert backends == {
        "ram-node0": (32, "default", []),
        "ram-node1": (64, "bind", [0]),
        "ram-node2": (32, "preferred", [0]),
    }
    by_socket = {slot["props"]["socket-id"]: slot["props"]["node-id"] for slot in vm.cpus}
    assert by_socket == {0: 0, 1: 1, 2: 0}
    told = vm.told("info numa")
    assert "3 nodes" in told
    assert "node 1 size: 64 MB" in told


def test_places_in_the_topology_belong_to_nodes_and_a_node_has_an_initiator(typed: Typed) -> None:
    vm = typed(
        "--machine q35 --memory 128M --smp 2,sockets=2 --numa node,mem=64M --numa node,mem=64M,initiator=0 "
        "--numa cpu,node-id=0,socket-id=1 --numa cpu,node-id=0,socket-id=0"
    )
    assert {slot["props"]["socket-id"]: slot["props"]["node-id"] for slot in vm.cpus} == {0: 0, 1: 0}
    assert vm.get("/machine", "hmat") is True


def test_distances_that_are_left_out_and_a_node_without_memory(typed: Typed) -> None:
    """QEMU wants all of them once there is one, and both ways once one is longer than the other."""
    nodes = "--machine q35 --memory 64M --smp 3,sockets=3 --numa node,mem=64M --numa node,mem=0 --numa node,mem=0 "
    vm = typed(f"{nodes} --numa dist,src=2,dst=1,val=31")
    assert [backend["id"] for backend in vm.ask("query-memdev")] == ["ram-node0"]
    assert "node 2 size: 0 MB" in vm.told("info numa")
    vm = typed(
        f"{nodes} --numa dist,src=0,dst=1,val=31 --numa dist,src=1,dst=0,val=41 --numa dist,src=2,dst=1,val=51"
    )
    assert "3 nodes" in vm.told("info numa")
    assert "this host has no NUMA node 1000" in typed.run(f"{nodes} --numa node,host-nodes=1000,mem=0")[1]


def test_latencies_bandwidths_and_caches_of_memory(typed: Typed) -> None:
    """The example of QEMU's documentation. No query tells of HMAT, only the guest's firmware tables."""
    lb = "--numa hmat-lb,initiator=0,hierarchy=memory"
    vm = typed(
        "--machine q35 --memory 128M --smp 2 --numa node,mem=64M,cpus=0-1 --numa node,mem=64M,initiator=0 "
        f"{lb},target=0,data-type=access-latency,latency=5 {lb},target=0,data-type=access-bandwidth,bandwidth=200M "
        f"{lb},target=1,data-type=access-latency,latency=10 {lb},target=1,data-type=access-bandwidth,bandwidth=100M "
        "--numa hmat-cache,node-id=1,size=10k,level=1,associativity=direct,policy=write-back,line=8"
    )
    assert vm.get("/machine", "hmat") is True
    assert "node 1 cpus:\r\n" in vm.told("info numa")


def test_hugepages(typed: Typed, tmp_path: Path) -> None:
    """In a mount namespace of its own; where no pages can be reserved, the command that does it is named."""
    command = [sys.executable, "-m", "imgtool", "boot", "-d", "--accel", "tcg", "--memory", "64M", "--name", "huge"]
    command += ["--network", "none", f"--hugepages={tmp_path}"]
    mounted = 'mount -t hugetlbfs none "$0" && exec "$@"'
    inside = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        mounted,
        str(tmp_path),
        *command,
        "--numa",
        "node,mem=64M",
        "--",
        "-S",
    ]
    with reserved(48) as enough:
        try:
            done = subprocess.run(inside, capture_output=True, text=True, check=False)
            if enough:
                assert done.returncode == 0, done.stderr
                vm = typed.connect("huge")
                (backend,) = vm.ask("query-memdev")
                assert (backend["size"], backend["prealloc"]) == (64 << 20, True)
                assert str(tmp_path) in Path(f"/proc/{typed.status('huge')['Pid']}/maps").read_text()
                assert int(Path("/proc/meminfo").read_text().partition("HugePages_Free:")[2].split()[0]) <= 48 - 32
            else:
                assert "sysctl vm.nr_hugepages=" in done.stderr
        finally:
            typed.close()
    assert "is not a hugetlbfs mount" in typed.refused(f"--hugepages={tmp_path}")


def test_boot_order_menu_splash_and_timeouts_reach_the_firmware(typed: Typed) -> None:
    picture = Path(typed.files["splash"])
    picture.write_bytes(b"BM" + bytes(26) + (24).to_bytes(2, "little") + bytes(64))
    vm = typed(
        "--boot order=dn,once=c,menu=on,splash={splash},splash-time=1234,reboot-timeout=5678,strict=on "
        "--cdrom {raw} --network user --drive {disk},if=virtio,bootindex=0"
    )
    assert vm.firmware_item(0x0E, 2) == b"\1\0", "the boot menu"
    files = vm.firmware_files()

    def content(name: str) -> bytes:
        return vm.firmware_item(*files[name])

    assert content("etc/boot-menu-wait") == (1234).to_bytes(2, "little")
    assert content("etc/boot-fail-wait") == (5678).to_bytes(4, "little")
    assert content("bootsplash.bmp") == picture.read_bytes()
    order = content("bootorder").rstrip(b"\0").decode().splitlines()
    assert [line.rpartition("/")[2].partition("@")[0] for line in order] == ["disk", "disk", "ethernet-phy", "HALT"]
    assert "scsi@" in order[0]
    assert [vm.device(name, "bootindex")[0] for name in ("drive0", "cdrom", "nic0")] == [0, 1, 2]
    assert vm.cmos(0x3D) == 0x2, "once from the hard disk"


def test_boot_letters_without_bootindex(typed: Typed) -> None:
    vm = typed("--boot order=dc,once=n --cdrom {raw} --network user --hda {disk}")
    assert vm.cmos(0x3D) == 0x4
    vm.ask("system_reset")
    vm.ask("query-status")
    assert vm.cmos(0x3D) == 0x23


def test_a_kernel_with_its_initrd_and_words(typed: Typed) -> None:
    kernel, initrd = Path(typed.files["kernel"]), Path(typed.files["initrd"])
    header = bytearray(4096)
    header[0x1F1] = 4  # sectors of set-up code
    header[0x1FE:0x200] = b"\x55\xaa"
    header[0x202:0x208] = b"HdrS" + (0x20C).to_bytes(2, "little")
    header[0x211] = 1  # loaded high
    header[0x22C:0x230] = (0x7FFFFFFF).to_bytes(4, "little")
    header[0x238:0x23C] = (2048).to_bytes(4, "little")
    kernel.write_bytes(bytes(header))
    initrd.write_bytes(b"the initrd")
    vm = typed("--kernel {kernel} --initrd {initrd} --append 'root=/dev/vda quiet,ro'")
    assert [vm.get("/machine", name) for name in ("kernel", "initrd", "append")] == [
        str(kernel),
        str(initrd),
        "root=/dev/vda quiet,ro",
    ]
    assert vm.firmware_item(0x15, 23) == b"root=/dev/vda quiet,ro\0"
    assert vm.firmware_item(0x12, 10) == b"the initrd"
    assert "a PC describes itself by ACPI" in typed.run("--kernel {kernel} --dtb {raw}")[1]


def test_a_bios_of_ones_own(typed: Typed) -> None:
    Path(typed.files["bios"]).write_bytes(b"\xf4" * 65536)
    vm = typed("--bios {bios}")
    assert "f4 0xf4" in vm.told("xp /4bx 0xffff0").replace("0x", "", 1)
    assert vm.get("/machine", "firmware") == typed.files["bios"]


def test_the_sandbox_is_on_and_nothing_of_the_users_is_read(typed: Typed) -> None:
    typed("{disk}")
    assert typed.status()["Seccomp"] == "2"
    assert typed.status()["NoNewPrivs"] == "1"
    argv = Path(f"/proc/{typed.status()['Pid']}/cmdline").read_text().split("\0")
    assert {"-no-user-config", "-nodefaults"} <= set(argv)
    typed("--no-sandbox {disk2}")
    assert typed.status("vm1")["Seccomp"] == "0"


def test_qemu_runs_as_another_user(typed: Typed) -> None:
    vm = typed("--run-as nobody {disk}")
    import pwd

    assert typed.status()["Uid"].split() == [str(pwd.getpwnam("nobody").pw_uid)] * 4
    assert vm.ask("query-status")["status"] in ("prelaunch", "paused")


def test_what_the_accelerator_is_told_after_the_dashes_counts(typed: Typed) -> None:
    told = typed("{disk} -- -accel tcg,tb-size=64").told("info jit")
    size = re.search(r"gen code size +[0-9]+/([0-9]+)", told)
    assert size is not None, told
    assert 62 < int(size[1]) / (1 << 20) <= 64


def test_a_machine_that_waits_for_another_to_migrate_to_it_is_up(typed: Typed) -> None:
    assert typed("{disk} -- -incoming defer").ask("query-status")["status"] == "inmigrate"


def test_what_stands_after_the_dashes_is_qemus(typed: Typed) -> None:
    vm = typed("{disk} -- -device edu,id=extra,addr=0x1d")
    assert vm.pci["extra"]["slot"] == 0x1D
