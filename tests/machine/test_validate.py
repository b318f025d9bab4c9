"""Combinations that make no sense: each gets one clear error, before any process starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from imgtool.errors import ConfigError, UsageError
from imgtool.machine.board import known_machine
from imgtool.machine.host import Disk, Host, HugepageMount, HugepagePool, Link, Uefi
from imgtool.machine.options.words import from_words
from imgtool.machine.validate import problems, validate, warnings
from imgtool.qemu.capabilities import MachineType

MakeHost = Callable[..., Host]

A, B, F = "/d/a.qcow2", "/d/b.raw", "/d/f.img"
MIB = 1 << 20

LATENCY = "hmat-lb,initiator=0,target=0,hierarchy=memory,data-type=access-latency,latency=5"
BANDWIDTH = "hmat-lb,initiator=0,target=0,hierarchy=memory,data-type=access-bandwidth,bandwidth=200M"
CACHE = "hmat-cache,node-id=0,size=10k,level=1,associativity=direct,policy=write-back,line=8"

NONSENSE: list[tuple[dict[str, Any], str]] = [
    # identity, machine, CPU
    ({"uuid": "12"}, "--uuid 12 is not a UUID"),
    ({"name": " "}, "is not a name"),
    ({"name": "a\nb"}, "is not a name"),
    ({"arguments": ["-daemonize"]}, "-daemonize takes the VM out of imgtool's hands"),
    ({"arguments": ["-m", "2G"]}, "-m among the arguments for QEMU would change what the others"),
    ({"arguments": ["-accel", "kvm,dirty-ring-size=4096"]}, "-accel kvm among the arguments for QEMU, and the accel"),
    ({"accel": "tcg,thread=single"}, "--accel tcg takes no properties"),
    ({"accel": "kvm:tcg"}, "--accel is one, not 'kvm:tcg'"),
    ({"arguments": ["--smp", "2"]}, "-smp among the arguments"),
    ({"machine": "q53"}, "has no machine type 'q53'"),
    ({"machine": "q35,accel=kvm"}, "accel is an option of its own"),
    ({"accel": "hvf"}, "built without hvf"),
    ({"cpu": "host"}, "which TCG only imitates"),
    ({"cpu": "Skylake-Sever"}, "has no CPU model 'Skylake-Sever'"),
    ({"cpu": "max,+avx22"}, "there is no CPU feature 'avx22'"),
    ({"cpu": "max,-nothing-like-it"}, "there is no CPU feature 'nothing-like-it'"),
    ({"cpu": "max,+aes,-aes"}, "both adds and removes aes"),
    # SMP
    ({"smp": "sockets=32,cores=4,threads=2,maxcpus=128"}, "sockets(32) × cores(4) × threads(2) = 256 ≠ maxcpus(128)"),
    ({"smp": "cpus=8,sockets=3,cores=2"}, "sockets(3) × cores(2) × threads(1) = 6 ≠ cpus(8)"),
    ({"smp": "cpus=8,maxcpus=4"}, "cpus(8) is more than maxcpus(4)"),
    ({"smp": "0"}, "cpus is at least 1"),
    ({"smp": "256"}, "256 CPUs are more than machine pc has: 255"),
    ({"smp": "289", "machine": "q35"}, "289 CPUs are more than machine q35 has: 288"),
    ({"smp": "2,threads=2", "machine": "isapc", "network": "user,model=ne2k_isa"}, "more than machine isapc has: 1"),
    ({"smp": "2,maxcpus=4", "machine": "microvm"}, "cannot plug CPUs in"),
    ({"smp": "4,clusters=2"}, "has no clusters"),
    ({"smp": "4,dies=2", "machine": "microvm"}, "has no dies"),
    ({"smp": "4,socket=2"}, "--smp has no 'socket'"),
    ({"smp": "cpus=four"}, "cpus is a number, not 'four'"),
    # memory, hugepages
    ({"memory": "0"}, "leaves the guest nothing"),
    ({"memory": "1000b"}, "not a whole number of 4 KiB pages"),
    ({"memory": "lots"}, "'lots' is not a size"),
    ({"memory": "2G,maxmem=1G"}, "more than its maxmem"),
    ({"memory": "2G,slots=2"}, "without maxmem"),
    ({"memory": "2G,maxmem=4G"}, "without slots"),
    ({"memory": "2G,maxmem=4G,slots=300"}, "at most 256 slots"),
    ({"memory": "1G,maxmem=2G,slots=1", "machine": "microvm"}, "cannot plug memory in"),
    ({"memory": "64G"}, "more than this host has: 16G"),
    ({"memory": "1025M", "hugepages": True}, "not a whole number of 2M hugepages"),
    ({"memory": "1G", "hugepages": "page-size=3M"}, "is not a power of two"),
    ({"memory": "1G", "hugepages": "page-size=1G"}, "are 2M, not 1G"),
    ({"memory": "8G", "hugepages": True}, "only 4G of hugepages are free"),
    # NUMA
    ({"numa": ["node,mem=512M", "node,mem=1G"], "memory": "1G"}, "mem(512M) + mem(1G) = 1536M ≠ memory(1G)"),
    ({"numa": ["node,mem=1G", "node"], "memory": "1G"}, "nothing is left"),
    ({"numa": ["node,nodeid=1", "node,nodeid=1"]}, "NUMA node 1 is there twice"),
    ({"numa": ["node,nodeid=0", "node,nodeid=2"]}, "numbered from 0 without gaps"),
    ({"numa": ["node,cpus=0-2", "node,cpus=2-3"], "smp": "4"}, "CPU 2 is in NUMA node 0 and in node 1"),
    ({"numa": ["node,cpus=0-1", "node,cpus=2-4"], "smp": "4"}, "NUMA node 1 has CPU 4"),
    ({"numa": ["node,cpus=0", "node,cpus=2-3"], "smp": "4"}, "CPU 1 is in no NUMA node"),
    ({"numa": ["node,cpus=3-1"], "smp": "4"}, "'3-1' is not a range"),
    ({"numa": ["dist,src=0,dst=1,val=20"]}, "there is none"),
    ({"numa": ["node", "node", "dist,src=0,dst=1,val=9"]}, "the distance of two nodes is 11 to 255"),
    ({"numa": ["node", "node", "dist,src=0,dst=0,val=20"]}, "distance to itself is 10"),
    ({"numa": ["node", "node", "dist,src=0,dst=7,val=20"]}, "node 7, which is not there"),
    ({"numa": ["node,policy=bind"]}, "policy=bind needs host-nodes="),
    ({"numa": ["node", "node", "dist,src=0,dst=1,val=11", "dist,src=0,dst=1,val=12"]}, "node 0 to node 1 is there 2"),
    ({"numa": ["hmat-cache,node-id=0,size=1M,level=1,associativity=none,policy=none,line=8"]}, "there is none"),
    ({"numa": ["node", "cpu,node-id=1,socket-id=0"]}, "--numa cpu speaks of node 1, which is not there"),
    ({"numa": ["node", "cpu,node-id=0,socket-id=1"]}, "socket-id=1, and there is 1 socket"),
    (
        {"smp": "2,sockets=2", "numa": ["node", "node", "cpu,node-id=0,socket-id=1", "cpu,node-id=1,socket-id=1"]},
        "puts the same CPUs into node 0 and node 1",
    ),
    ({"numa": ["node", "node,initiator=0"]}, "are about nodes with CPUs, and none names some"),
    ({"numa": ["node,cpus=0", "node,initiator=1"]}, "NUMA node 1: initiator=1 is no node with CPUs"),
    ({"numa": ["node,cpus=0", "node", "node,initiator=0"]}, "NUMA node 1 has no CPUs, and no initiator"),
    ({"smp": 2, "numa": ["node,cpus=0", "node,cpus=1,initiator=0"]}, "NUMA node 1 has CPUs, and so is its own"),
    (
        {"numa": ["node,cpus=0", LATENCY.replace("latency=5", "bandwidth=5M")]},
        "data-type=access-latency needs latency=",
    ),
    ({"numa": ["node,cpus=0", LATENCY.replace("target=0", "target=1")]}, "speaks of node 1, which is not there"),
    (
        {"numa": ["node,cpus=0", "node,initiator=0", LATENCY.replace("initiator=0", "initiator=1")]},
        "--numa hmat-lb: initiator=1 is no node with CPUs",
    ),
    ({"numa": ["node,cpus=0", BANDWIDTH.replace("200M", "200k")]}, "a bandwidth is a whole number of MiB"),
    ({"numa": ["node,cpus=0", LATENCY, CACHE]}, "latency and bandwidth of node 0's memory are not told"),
    ({"numa": ["node,cpus=0", LATENCY, CACHE.replace("level=1", "level=4")]}, "level is at most 3"),
    ({"numa": ["node"], "machine": "microvm"}, "machine microvm has no NUMA"),
    ({"numa": ["nod,cpus=1"]}, "--numa has no 'nod'"),
    ({"numa": ["node,memdev=ram"]}, "memdev names a memory backend"),
    # drives: places
    ({"cdrom": B, "hdc": A}, "--cdrom and --hdc are the same place"),
    ({"hdd": A, "machine": "microvm"}, "--hdd is an IDE disk, and machine microvm has no IDE"),
    ({"fdb": F, "machine": "microvm"}, "no floppy controller"),
    ({"drive": [f"{A},if=ide"], "machine": "microvm"}, "machine microvm has no IDE"),
    ({"hda": A, "drive": [f"{B},if=ide,index=0"]}, "--hda and --drive b.raw are both at if=ide, bus 0, unit 0"),
    ({"drive": [f"{A},if=ide,index=4"]}, "has no bus 2, unit 0"),
    ({"drive": [f"{A},if=ide,index=1,unit=1"]}, "index says bus and unit already"),
    ({"drive": [f"{A},if=scsi,unit=9"]}, "has no bus 0, unit 9"),
    ({"drive": [f"{A},if=virtio,addr=5", f"{B},if=virtio,addr=0x5"]}, "both in PCI slot 0x5"),
    ({"drive": [f"{A},if=virtio,addr=zz"]}, "addr=zz is not a PCI slot"),
    ({"drive": [f"{A},if=virtio,addr=0"]}, "slot 0 is the host bridge's"),
    ({"drive": [f"{A},if=virtio,addr=0x2"]}, "slot 0x2 is the VGA card's"),
    ({"machine": "q35", "network": "user,addr=1"}, "slot 1 is the VGA card's"),
    ({"drive": [f"{A},if=virtio"], "machine": "isapc", "network": "none"}, "has no PCI bus, so no if=virtio"),
    ({"drive": [f"{A},if=nvme"], "machine": "microvm"}, "has no PCI bus, so no if=nvme"),
    ({"drive": [f"{A},if=mtd"]}, "has no MTD flash"),
    ({"drive": [f"{A},if=pflash"], "machine": "microvm"}, "has no flash chips"),
    ({"drive": [f"{A},if=pflash,index=1"]}, "second flash chip without the first"),
    ({"drive": [f"{A},if=virtio,id=x", f"{B},if=virtio,id=x"]}, "both have id=x"),
    ({"drive": [f"{A},if=virtio,id=1x"]}, "cannot be the name of a block node"),
    ({"drive": [f"{A},if=virtio,id=nic0"]}, "is a device that imgtool makes"),
    ({"network": "user,id=0"}, "id=0 is not a name for a network"),
    ({"drive": [f"{A},if=virtio"], "hda": A}, "which --drive a.qcow2 has too"),
    ({"drive": [f"{A},if=vritio"]}, "if cannot be 'vritio'"),
    ({"drive": [f"{A},cahce=none"]}, "--drive has no 'cahce'"),
    # drives: options
    ({"drive": [f"{F},if=floppy,serial=1"]}, "if=floppy takes no serial="),
    ({"drive": [f"{A},if=ide,addr=5"]}, "if=ide takes no addr="),
    ({"drive": [f"{A},if=nvme,werror=stop"]}, "if=nvme takes no werror="),
    ({"drive": [f"{A},if=virtio,trans=lba,cyls=1,heads=1,secs=1"]}, "if=virtio takes no trans="),
    ({"drive": [f"{A},if=virtio,serial=123456789012345678901"]}, "more than 20 characters"),
    ({"drive": [f"{A},if=ide,cyls=10"]}, "heads and secs missing"),
    ({"drive": [f"{A},if=ide,cyls=10,heads=17,secs=1"]}, "heads=17 is more than 16"),
    ({"drive": [f"{A},if=ide,trans=lba"]}, "translates a geometry"),
    ({"drive": [f"{B},if=ide,media=cdrom,cyls=1,heads=1,secs=1"]}, "a CD-ROM has no geometry"),
    ({"drive": [f"{A},if=virtio,media=cdrom"]}, "no if=virtio CD-ROM drive"),
    ({"drive": ["if=virtio"]}, "--drive #1: a disk needs file="),
    ({"drive": ["if=ide,media=cdrom,cache=none"]}, "an empty drive has no cache"),
    ({"drive": [f"{B},if=ide,media=cdrom,readonly=off"]}, "a CD-ROM cannot be written"),
    ({"drive": [f"{A},if=ide,readonly=on"]}, "an IDE disk cannot be read-only"),
    ({"drive": [f"{A},if=virtio,readonly=on,snapshot=on"]}, "readonly=on allows none"),
    ({"drive": [f"{A},if=virtio,readonly=on,copy-on-read=on"]}, "which is read-only"),
    ({"drive": [f"{A},if=virtio,aio=native"]}, "aio=native needs the host's cache out of the way"),
    ({"drive": [f"{A},if=virtio,detect-zeroes=unmap"]}, "detect-zeroes=unmap discards"),
    ({"drive": [f"{A},if=virtio,bps=1,bps_rd=1"]}, "bps limits reads and writes together"),
    ({"drive": [f"{A},if=virtio,iops_max=5"]}, "iops_max is a burst above iops"),
    ({"drive": [f"{A},if=virtio,iops=9,iops_max=5"]}, "the burst iops_max=5 is below iops=9"),
    ({"drive": [f"{A},if=virtio,bps=9,bps_max_length=5"]}, "the length of a burst"),
    ({"drive": [f"{A},if=virtio,bps=9,iops_size=5"]}, "counts large requests for iops"),
    ({"drive": [f"{A},if=ide,iothread=io0"]}, "if=ide takes no iothread="),
    ({"drive": [f"{A},if=virtio,iothread=1"]}, "iothread=1 is not a name for a thread"),
    (
        {"drive": [f"{A},if=scsi,iothread=x", f"{B},if=scsi,iothread=y"]},
        "--drive a.qcow2 and --drive b.raw are on SCSI bus 0, which has one iothread, not two",
    ),
    ({"drive": [f"{A},iothread=x"], "machine": "microvm"}, "a drive under TCG has no iothread of its own"),
    ({"drive": ["/d/x,if=virtio"]}, "the format of /d/x is not known"),
    ({"drive": [f"{A},if=virtio,format=qcow3"]}, "reads no format 'qcow3'"),
    ({"drive": [f"{A},if=floppy"]}, "is not a floppy"),
    ({"drive": ["/d/odd,if=sd"]}, "a power of two, not 3M"),
    # boot, kernel, firmware
    ({"boot": "z"}, "'z' is not a device"),
    ({"boot": "once=cc"}, "has c twice"),
    ({"boot": "d", "hda": A}, "the machine has no CD-ROM"),
    ({"boot": "n", "network": "none"}, "the machine has no network"),
    ({"boot": "splash-time=10"}, "with the boot menu only"),
    ({"boot": "menu=on,splash-time=70000"}, "at most 65535"),
    ({"boot": "menu=maybe"}, "menu is on or off"),
    ({"drive": [f"{A},if=virtio,bootindex=1"], "network": "user,bootindex=1"}, "both have bootindex=1"),
    ({"append": "quiet"}, "--append is the kernel's command line"),
    ({"initrd": "/boot/initrd"}, "--initrd is loaded beside the kernel"),
    ({"dtb": "/boot/dtb"}, "--dtb is handed to the kernel"),
    ({"kernel": "/boot/k", "dtb": "/boot/dtb"}, "not by a device tree"),
    ({"firmware": {"uefi": True, "bios": "/b"}}, "--bios and --uefi"),
    ({"firmware": {"secure-boot": True}}, "needs a machine with SMM"),
    ({"firmware": {"uefi": True}, "machine": "microvm"}, "has no flash chips"),
    ({"firmware": {"secure-boot": True}, "machine": "q35"}, "has no Secure Boot"),
    ({"firmware": {"vars": "/v"}}, "but there is no UEFI"),
    ({"firmware": {"uefi": True}, "hda": A, "boot": "once=c"}, "read by SeaBIOS, not by UEFI"),
    ({"firmware": {"uefi": True}, "drive": [f"{A},if=pflash"]}, "--uefi fills the flash chips"),
    ({"tpm": True}, "swtpm, which imitates the chip"),
    # networks
    ({"network": "tun"}, "--network has no 'tun'"),
    ({"network": ["none", "user"]}, "leaves no room"),
    ({"network": "user,vhost=on"}, "--network user has no 'vhost'"),
    ({"network": "tap,vhost=on,model=e1000"}, "vhost moves virtio packets"),
    (
        {"network": "user,hostfwd=tcp::2222-:22,hostfwd=tcp:127.0.0.1:2222-:23"},
        "tcp port 2222 of the host is forwarded",
    ),
    (
        {"network": ["user,hostfwd=tcp::2222-:22", "user,hostfwd=tcp::2222-:22"]},
        "tcp port 2222 of the host is forwarded",
    ),
    ({"network": "user,hostfwd=2222:22"}, "is not a forward"),
    ({"network": "user,hostfwd=tcp::70000-:22"}, "a port is 1 to 65535"),
    ({"network": "user,hostfwd=sctp::7000-:22"}, "carries tcp or udp"),
    ({"network": "user,mac=01:00:5e:00:00:01"}, "is a multicast address"),
    ({"network": "user,mac=52:54:00"}, "is not a MAC address"),
    ({"network": "user,mac=00:00:00:00:00:00"}, "nobody's address"),
    ({"network": ["user,mac=52:54:00:00:00:01", "user,mac=52:54:00:00:00:01"]}, "two networks have mac="),
    ({"network": ["user,id=a", "user,id=a"]}, "two networks have id=a"),
    ({"network": ["tap,ifname=t0", "tap,ifname=t0"]}, "two networks have ifname=t0"),
    ({"network": "user,queues=4"}, "queues=4 is for tap"),
    ({"network": "tap,queues=4,model=e1000"}, "has one queue"),
    ({"network": "user,model=e100"}, "no network card 'e100'"),
    ({"network": "user,model=e1000", "machine": "microvm"}, "has no PCI bus for a e1000"),
    ({"network": "user,model=virtio", "machine": "isapc"}, "no virtio card"),
    ({"network": "user,ipv4=off,ipv6=off"}, "nothing is left"),
    ({"network": "user,net=10.0.0.300"}, "is not a subnet"),
    ({"network": "user,dns=192.168.0.1"}, "outside of the guest's net"),
    ({"network": "user,guestfwd=10.0.2.100:80"}, "guestfwd=10.0.2.100:80 is not a forward"),
    ({"network": "user,guestfwd=tcp:10.0.2.100:0-cmd:cat"}, "is not a forward"),
    ({"network": "user,guestfwd=tcp:10.0.3.9:80-cmd:cat"}, "10.0.3.9 is outside of the guest's net, 10.0.2.0/24"),
    ({"network": "user,bootfile=x"}, "fetched over TFTP"),
    ({"network": "nat,net=lab"}, "no network 'lab'"),
    ({"network": "passt"}, "passt was not found"),
    ({"network": "tap,ifname=abcdefghijklmnop"}, "cannot be an interface"),
    ({"network": "socket"}, "says how to reach the other guest"),
    ({"network": "socket,listen=:1,connect=a:1"}, "listen and connect"),
    ({"network": "socket,mcast=10.0.0.1:5"}, "is not a multicast address"),
    ({"network": "socket,udp=10.0.0.1:5"}, "localaddr= receives"),
    ({"network": "stream"}, "needs addr.type="),
    ({"network": "stream,addr.type=unix"}, "needs addr.path="),
    ({"network": "stream,server=on,reconnect=5,addr.type=unix,addr.path=/s"}, "does not reconnect"),
    ({"network": "dgram"}, "needs local.type="),
    ({"network": "vhost-user,path=/" + "x" * 120}, "at most 107 bytes"),
    # display, ports
    ({"display": "vnc=:60000"}, "VNC display 60000 would be TCP port 65900"),
    ({"display": "vnc=:x"}, "is not an address"),
    ({"display": "gtk2"}, "type cannot be 'gtk2'"),
    ({"display": "sdl"}, "this QEMU has no sdl display"),
    ({"display": "none,gl=on"}, "--display none has no gl"),
    ({"display": "vnc,password=off,password-file=/p"}, "a password file, but no password"),
    ({"display": "vnc=unix:/x,websocket=on"}, "a browser reaches no unix socket"),
    ({"display": "vnc,verify-peer=on"}, "verify-peer is about TLS"),
    ({"display": "vnc,usb-redir=1"}, "--display vnc has no usb-redir"),
    ({"display": "vnc=:1,path=/x"}, "a unix socket has no address and port"),
    ({"vga": "std", "machine": "microvm"}, "has no VGA card"),
    ({"vga": "qxl", "machine": "isapc"}, "sits on PCI"),
    ({"vga": "vmware"}, "built without --vga vmware"),
    ({"keymap": "ed"}, "no keymap 'ed'"),
    ({"serial": ["stdio"], "parallel": ["stdio"]}, "two ports are on the terminal"),
    ({"serial": ["null", "null"], "machine": "microvm"}, "2 serial ports, but machine microvm has 1"),
    ({"parallel": ["null"], "machine": "microvm"}, "no parallel ports"),
    ({"serial": ["stdoi"]}, "--serial has no 'stdoi'"),
    ({"serial": ["tcp:localhost"]}, "has no port"),
    ({"serial": ["stdio"], "display": "curses"}, "both want the terminal"),
    # devices
    ({"rng": "period=5"}, "is the time that max-bytes counts for"),
    ({"agent": True, "machine": "isapc"}, "--agent is a virtio device"),
    ({"tablet": True, "machine": "microvm"}, "--tablet needs USB"),
    ({"vsock": "2"}, "cid is at least 3"),
    ({"watchdog": "i6300esb", "machine": "microvm"}, "sits on PCI"),
    ({"watchdog": "diag288"}, "has no watchdog diag288"),
    ({"share": ["/a/x", "/b/x"]}, "two shares have the tag x"),
    ({"share": ["/a,type=virtiofs"]}, "virtiofsd was not found"),
    ({"share": ["/a,multidevs=rmap"]}, "multidevs cannot be 'rmap'"),
    ({"rtc": "yesterday"}, "is not a date"),
    ({"audio": "pulse"}, "no audio driver 'pulse'"),
    ({"audio": "pa,model=es1370"}, "no es1370 sound card"),
    ({"audio": "pa,path=/x"}, "writes no file"),
    ({"serial": ["unix:/" + "x" * 107]}, "--serial unix: a socket's path has at most 107 bytes"),
    ({"display": "vnc=unix:/" + "x" * 107}, "--display vnc: a socket's path has at most 107 bytes"),
    ({"cloud-init": ""}, "--cloud-init says nothing"),
    ({"cloud-init": "user=root:x"}, "--user root:x is not a user name"),
    ({"cloud-init": "/u,user=me"}, "which would be in user-data too"),
    ({"cloud-init": "hostname=a_b"}, "is not a host name"),
    ({"safety": {"run-as": "Some One"}}, "is not a user"),
    ({"safety": {"run-as": "nobody"}}, "only root can become another user"),
]


@pytest.fixture(scope="module")
def host(make_host: MakeHost) -> Host:
    found = make_host(
        memory_total=16 << 30,
        hugepages=HugepageMount(path="/dev/hugepages", page_size=2 * MIB, free=4 << 30),
        uefi=Uefi(code="/ovmf/code.fd", vars="/ovmf/vars.qcow2"),
        cpu_properties=("hv-relaxed", "x-odd", "pmu"),
    )
    odd = Disk(chain=(Link(path="/d/odd", format="raw"),), size=3 * MIB)
    return replace(found, disks={**found.disks, "/d/odd": odd})


def complaints(words: dict[str, Any], host: Host) -> list[ConfigError | UsageError]:
    try:
        return list(problems(from_words(words), host))
    except UsageError as error:
        return [error]


def test_the_table_of_nonsense_is_long() -> None:
    assert len(NONSENSE) >= 60
    assert len({repr(words) for words, _ in NONSENSE}) == len(NONSENSE)


@pytest.mark.parametrize(("words", "message"), NONSENSE, ids=[message for _, message in NONSENSE])
def test_nonsense_gets_one_clear_error(words: dict[str, Any], message: str, host: Host) -> None:
    found = complaints(words, host)
    assert [message in error.message for error in found] == [True], [error.message for error in found]
    assert found[0].exit_status == 2


def test_nearly_every_error_says_what_to_do(host: Host) -> None:
    bare = [error.message for words, _ in NONSENSE for error in complaints(words, host) if not error.hint]
    assert len(bare) < len(NONSENSE) // 6, bare


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ({"display": "vnc,port=5901"}, "--display spice can have one"),
        (
            {"hugepages": True},
            "`mkdir -p /dev/hugepages && mount -t hugetlbfs none /dev/hugepages` mounts one; "
            "`sysctl vm.nr_hugepages=512` reserves pages",
        ),
    ],
)
def test_what_a_hint_says_to_do(words: dict[str, Any], hint: str, make_host: MakeHost) -> None:
    [error] = complaints(words, make_host(hugepages=None))
    assert error.hint == hint


USUAL = HugepageMount(path="/dev/huge pages", page_size=2 * MIB, free=0)


@pytest.mark.parametrize(
    ("words", "mounts", "pools", "hint"),
    [
        (
            "/data/my pages",
            (),
            (HugepagePool(page_size=2 * MIB, free=0, total=1 << 30),),
            "`mkdir -p '/data/my pages' && mount -t hugetlbfs none '/data/my pages'` mounts one; "
            "`sysctl vm.nr_hugepages=1024` reserves pages",
        ),
        (
            "/data",
            (USUAL,),
            (HugepagePool(page_size=2 * MIB, free=1 << 30, total=1 << 30),),
            "`--hugepages='/dev/huge pages'` names one, with pages of 2M",
        ),
        (
            "/data,page-size=1G",
            (USUAL,),
            (HugepagePool(page_size=2 * MIB, free=4 << 30, total=4 << 30),),
            "`mkdir -p /data && mount -t hugetlbfs -o pagesize=1G none /data` mounts one; "
            "`echo 1 > /sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages` reserves pages",
        ),
    ],
)
def test_a_folder_that_is_no_hugetlbfs_says_where_pages_are(
    words: str,
    mounts: tuple[HugepageMount, ...],
    pools: tuple[HugepagePool, ...],
    hint: str,
    make_host: MakeHost,
) -> None:
    host = make_host(hugepages=None, hugepage_mounts=mounts, hugepage_pools=pools)
    [error] = complaints({"hugepages": words}, host)
    assert error.hint == hint


def test_more_pages_are_reserved_beside_those_in_use(make_host: MakeHost) -> None:
    pools = (HugepagePool(page_size=2 * MIB, free=512 * MIB, total=1 << 30),)
    mount = HugepageMount(path="/dev/hugepages", page_size=2 * MIB, free=512 * MIB)
    [error] = complaints({"memory": "1G", "hugepages": True}, make_host(hugepages=mount, hugepage_pools=pools))
    assert error.hint == "`sysctl vm.nr_hugepages=768` reserves more"


def test_names_that_qemu_has_are_listed_in_order(make_host: MakeHost, host: Host) -> None:
    machines = [MachineType(name=name) for name in ("pc-2.12", "x-remote", "pc-2.9", "q35")]
    capabilities = replace(host.capabilities, machines=tuple(machines))
    known = make_host(capabilities=capabilities)
    for name, hint in (
        ("none-such", "there are: pc-2.9, pc-2.12, q35, x-remote;"),
        ("pc-2.8", "did you mean pc-2.9?"),
    ):
        with pytest.raises(ConfigError) as caught:
            known_machine(from_words({"machine": name}), known)
        assert caught.value.hint == f"{hint} `--machine help` says what they are"


GOOD: list[dict[str, Any]] = [
    {},
    {"hda": A, "cdrom": B, "boot": "dc"},
    {"drive": [f"{A},if=virtio,addr=0x2"], "vga": "none"},
    {"drive": [f"{A},if=virtio,readonly=on", f"{A},if=virtio,readonly=on"]},
    {"drive": [f"{A},if=virtio", f"{A},if=virtio"], "ephemeral": True},
    {"network": ["user,hostfwd=tcp::2222-:22,hostfwd=udp::2222-:22", "user,hostfwd=tcp:10.0.0.1:2222-:22"]},
    {"network": "user,guestfwd=tcp:10.0.2.100:80-cmd:cat,guestfwd=:10.0.2.100:81-null"},
    {"numa": ["node,cpus=0", LATENCY, BANDWIDTH, CACHE]},
    {"smp": "cpus=2,maxcpus=8", "numa": ["node,cpus=0-3", "node,cpus=4-7"]},
    {"memory": "8G", "hugepages": "prealloc=off"},
    {"cpu": "max,+hv-relaxed,+x-odd,-vmx,+sse4.1,pmu=on"},
    {"display": "vnc=unix:/x"},
    {"machine": "isapc", "hda": A, "fda": F},
    {"machine": "microvm", "drive": [A], "kernel": "/k", "append": "quiet"},
    {"cloud-init": "user=me,ssh-key=/k.pub,hostname=web"},
]


@pytest.mark.parametrize("words", GOOD, ids=str)
def test_what_makes_sense_passes(words: dict[str, Any], host: Host) -> None:
    assert [error.message for error in complaints(words, host)] == []


@pytest.mark.parametrize("words", [{"memory": "64G"}, {"arguments": ["-cpu", "486"]}])
def test_force_lets_a_machine_have_what_only_might_go_wrong(words: dict[str, Any], host: Host) -> None:
    assert problems(from_words(words), host, force=True) == []


def test_the_first_problem_is_raised_and_the_others_named(host: Host) -> None:
    with pytest.raises(ConfigError, match="--uuid x is not a UUID") as caught:
        validate(from_words({"uuid": "x", "append": "quiet"}), host)
    assert "also: --append is the kernel's command line" in (caught.value.hint or "")


def test_networks_that_qemu_7_2_brought_are_refused_before_it(make_host: MakeHost) -> None:
    host = make_host((5, 2), passt="/usr/bin/passt")
    found = complaints({"network": "dgram,local.type=unix,local.path=/l"}, host)
    assert [error.message for error in found] == [
        "--network dgram: this QEMU has no dgram network; QEMU 7.2 brought it"
    ]
    assert len(complaints({"network": "passt"}, host)) == 1


def test_a_sandbox_that_was_asked_for_and_is_not_there_is_an_error(make_host: MakeHost) -> None:
    host = make_host()
    bare = replace(host, capabilities=replace(host.capabilities, options={}))
    assert ["seccomp" in error.message for error in complaints({"safety": {"sandbox": True}}, bare)] == [True]
    assert complaints({}, bare) == []


def test_what_is_allowed_yet_unwise_is_a_warning(make_host: MakeHost) -> None:
    host = make_host(memory_free=MIB << 6)
    machine = from_words({"machine": "pc-i440fx-1.4", "display": "vnc=0.0.0.0:1,password=off", "memory": "128M"})
    assert problems(machine, host) == []
    assert warnings(machine, host) == [
        "machine pc-i440fx-1.4 is deprecated: a later QEMU will not have it",
        "the machine's memory is 128M, and the host has only 64M free",
        "anyone who reaches 0.0.0.0 can use the machine's screen: it asks no password",
    ]


@pytest.mark.parametrize(
    ("arguments", "option", "instead"),
    [
        (["-s", "-S"], "-s", "-gdb tcp:127.0.0.1:1234"),
        (["-gdb", "tcp::9000"], "-gdb", "-gdb tcp:127.0.0.1:9000"),
        (["-monitor", "telnet:0.0.0.0:55,server,nowait"], "-monitor", "-monitor tcp:127.0.0.1:55,server,nowait"),
        (["--qmp", "tcp:[::]:56,server=on"], "--qmp", "-qmp tcp:127.0.0.1:56,server=on"),
        (["-gdb", "tcp:127.0.0.1:9000"], None, None),
        (["-qmp", "tcp::56"], None, None),
        (["-qmp", "unix:/q,server"], None, None),
        (["-serial", "tcp::56,server"], None, None),
    ],
)
def test_a_debugger_or_monitor_for_everybody_is_worth_a_word(
    make_host: MakeHost, arguments: list[str], option: str | None, instead: str | None
) -> None:
    machine = from_words({"arguments": arguments})
    said = f"anyone who reaches this host can command the machine by {option}; {instead} keeps it here"
    assert warnings(machine, make_host()) == ([said] if option else [])
