"""The whole command line for each part of a machine: nothing missing, nothing beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from imgtool.errors import ConfigError
from imgtool.machine.argv import compile_argv
from imgtool.machine.config import Machine
from imgtool.machine.host import Command, Disk, Helper, Host, Link, Scratch, Secret, TapNeed, Uefi
from imgtool.machine.options.words import from_words
from imgtool.qemu.capabilities import DeviceType

MakeHost = Callable[..., Host]

QMP = ["-chardev", "socket,id=qmp,path=/run/vm/qmp.sock,server=on,wait=off", "-mon", "chardev=qmp,mode=control"]
CONSOLE = [
    "-chardev",
    "socket,id=serial0,path=/run/vm/serial0.sock,server=on,wait=off,logfile=/run/vm/serial0.log",
    "-serial",
    "chardev:serial0",
]
USER = [
    *("-netdev", '{"type":"user","id":"net0"}'),
    *("-device", '{"driver":"virtio-net-pci","id":"nic0","netdev":"net0","mac":"52:54:00:ef:ca:d9"}'),
]


def sandbox(**changes: str) -> list[str]:
    words = {"obsolete": "deny", "elevateprivileges": "deny", "spawn": "deny", "resourcecontrol": "deny", **changes}
    return ["-sandbox", ",".join(["on", *(f"{key}={value}" for key, value in words.items())])]


def line(
    *,
    identity: Sequence[str] = ("-machine", "pc", "-accel", "tcg"),
    cpu: Sequence[str] = ("-cpu", "max", "-smp", "cpus=1,maxcpus=1,sockets=1,cores=1,threads=1"),
    memory: Sequence[str] = ("-m", "size=1G"),
    start: Sequence[str] = (),
    drives: Sequence[str] = (),
    networks: Sequence[str] = (),
    display: Sequence[str] = ("-vga", "std", "-display", "none"),
    ports: Sequence[str] = CONSOLE,
    devices: Sequence[str] = (),
    safety: Sequence[str] = (),
    arguments: Sequence[str] = (),
) -> list[str]:
    """A command line of the parts that are given, and of what every machine has for the rest."""
    head = ["/usr/bin/qemu-system-x86_64", "-nodefaults", "-no-user-config"]
    parts = (
        identity,
        cpu,
        memory,
        start,
        drives,
        networks,
        display,
        ports,
        devices,
        QMP,
        safety or sandbox(),
        arguments,
    )
    return [*head, *(word for part in parts for word in part)]


def node(
    name: str, path: str, format: str = "qcow2", *, ro: bool = False, more: str = "", backing: str = "null"
) -> list[str]:
    """The two nodes of an image, cut short where a test has nothing to say of them."""
    flag = "true" if ro else "false"
    below = f',"backing":{backing}' if format == "qcow2" and backing else ""
    return [
        "-blockdev",
        f'{{"driver":"file","node-name":"{name}-file","filename":"{path}","read-only":{flag}{more}}}',
        "-blockdev",
        f'{{"driver":"{format}","node-name":"{name}","file":"{name}-file","read-only":{flag}{more}{below}}}',
    ]


A = node("drive0", "/d/a.qcow2")
VIRTIO = ["-device", '{"driver":"virtio-blk-pci","id":"drive0","drive":"drive0"}']


def argv(words: dict[str, Any], host: Host) -> list[str]:
    return list(compiled(words, host).argv)


def compiled(words: dict[str, Any], host: Host) -> Command:
    return compile_argv(from_words({"network": ["none"], **words}, "/"), host)


CASES: list[tuple[str, dict[str, Any], list[str]]] = [
    ("nothing at all", {}, line()),
    (
        "who it is",
        {"name": "a,b", "uuid": "550e8400-e29b-41d4-a716-446655440000", "arguments": ["-S", "-x"]},
        line(
            identity=[
                *("-name", "guest=a,,b", "-uuid", "550e8400-e29b-41d4-a716-446655440000"),
                *("-machine", "pc", "-accel", "tcg"),
            ],
            arguments=["-S", "-x"],
        ),
    ),
    (
        "machine properties",
        {"machine": "q35,smm=off,vmport=auto"},
        line(identity=["-machine", "q35,smm=off,vmport=auto", "-accel", "tcg"]),
    ),
    (
        "cpu and topology",
        {"cpu": "Skylake-Server,+avx2,-svm,pmu=on", "smp": "cpus=4,maxcpus=16,sockets=2,dies=2,threads=2"},
        line(
            cpu=[
                *("-cpu", "Skylake-Server,+avx2,-svm,pmu=on"),
                *("-smp", "cpus=4,maxcpus=16,sockets=2,dies=2,cores=2,threads=2"),
            ]
        ),
    ),
    ("memory to grow", {"memory": "2048,slots=4,maxmem=8G"}, line(memory=["-m", "size=2G,slots=4,maxmem=8G"])),
    (
        "hugepages",
        {"memory": "2G", "hugepages": "/dev/hugepages"},
        line(
            identity=["-machine", "pc,memory-backend=ram0", "-accel", "tcg"],
            memory=[
                *("-m", "size=2G", "-object"),
                '{"qom-type":"memory-backend-file","id":"ram0","size":2147483648,"mem-path":"/dev/hugepages","prealloc":true}',
            ],
        ),
    ),
    (
        "numa",
        {
            "smp": "4",
            "memory": "1G",
            "numa": [
                "node,cpus=0-1,mem=256M,host-nodes=0-1,policy=interleave",
                "node,cpus=2,cpus=3",
                "dist,src=0,dst=1,val=20",
            ],
        },
        line(
            cpu=["-cpu", "max", "-smp", "cpus=4,maxcpus=4,sockets=1,cores=4,threads=1"],
            memory=[
                *("-m", "size=1G", "-object"),
                '{"qom-type":"memory-backend-ram","id":"ram-node0","size":268435456,"host-nodes":[0,1],"policy":"interleave"}',
                *("-numa", "node,nodeid=0,cpus=0-1,memdev=ram-node0"),
                *("-object", '{"qom-type":"memory-backend-ram","id":"ram-node1","size":805306368}'),
                *("-numa", "node,nodeid=1,cpus=2,cpus=3,memdev=ram-node1"),
                *("-numa", "dist,src=0,dst=1,val=20"),
            ],
        ),
    ),
    (
        "numa: what memory is like",
        {
            "smp": "2,sockets=2",
            "numa": [
                "node,mem=256M",
                "node,mem=0,initiator=0",
                "node,mem=0,initiator=0",
                "dist,src=0,dst=1,val=30",
                "dist,src=1,dst=0,val=40",
                "cpu,node-id=0,socket-id=1",
                "hmat-lb,initiator=0,target=0,hierarchy=memory,data-type=access-latency,latency=5",
                "hmat-lb,initiator=0,target=0,hierarchy=memory,data-type=access-bandwidth,bandwidth=200M",
                "hmat-cache,node-id=0,size=10k,level=1,associativity=direct,policy=write-back,line=8",
            ],
        },
        line(
            identity=["-machine", "pc,hmat=on", "-accel", "tcg"],
            cpu=["-cpu", "max", "-smp", "cpus=2,maxcpus=2,sockets=2,cores=1,threads=1"],
            memory=[
                *("-m", "size=256M", "-object"),
                '{"qom-type":"memory-backend-ram","id":"ram-node0","size":268435456}',
                *("-numa", "node,nodeid=0,memdev=ram-node0", "-numa", "node,nodeid=1,initiator=0"),
                *("-numa", "node,nodeid=2,initiator=0", "-numa", "dist,src=0,dst=1,val=30"),
                *("-numa", "dist,src=1,dst=0,val=40", "-numa", "dist,src=0,dst=2,val=20"),
                *("-numa", "dist,src=2,dst=0,val=20", "-numa", "dist,src=1,dst=2,val=20"),
                *("-numa", "dist,src=2,dst=1,val=20", "-numa", "cpu,node-id=0,socket-id=1", "-numa"),
                "hmat-lb,initiator=0,target=0,hierarchy=memory,data-type=access-latency,latency=5",
                "-numa",
                "hmat-lb,initiator=0,target=0,hierarchy=memory,data-type=access-bandwidth,bandwidth=209715200",
                "-numa",
                "hmat-cache,node-id=0,size=10240,level=1,associativity=direct,policy=write-back,line=8",
            ],
        ),
    ),
    (
        "a kernel",
        {
            "kernel": "/boot/k",
            "initrd": "/boot/i",
            "append": "root=/dev/vda, quiet",
            "boot": "once=d,menu=on,strict=off",
        },
        line(
            start=[
                *("-boot", "once=d,menu=on,strict=off"),
                *("-kernel", "/boot/k", "-initrd", "/boot/i", "-append", "root=/dev/vda, quiet"),
            ]
        ),
    ),
    ("a disk", {"drive": ["/d/a.qcow2,if=virtio"]}, line(drives=[*A, *VIRTIO])),
    (
        "the tutorial's disks",
        {"hda": "/d/a.qcow2", "cdrom": "/d/b.raw", "fda": "/d/f.img", "boot": "dc"},
        line(
            start=["-boot", "order=dc"],
            drives=[
                *node("fda", "/d/f.img", "raw"),
                *("-device", '{"driver":"floppy","id":"fda","drive":"fda","unit":0}'),
                *node("hda", "/d/a.qcow2"),
                *("-device", '{"driver":"ide-hd","id":"hda","drive":"hda","bus":"ide.0","unit":0}'),
                *node("cdrom", "/d/b.raw", "raw", ro=True),
                *("-device", '{"driver":"ide-cd","id":"cdrom","drive":"cdrom","bus":"ide.1","unit":0}'),
            ],
        ),
    ),
    (
        "the same on a q35",
        {"machine": "q35", "hdb": "/d/a.qcow2", "cdrom": "/d/b.raw", "fdb": "/d/f.img"},
        line(
            identity=["-machine", "q35", "-accel", "tcg"],
            drives=[
                *node("fdb", "/d/f.img", "raw"),
                *("-device", '{"driver":"isa-fdc","id":"fdc0"}'),
                *("-device", '{"driver":"floppy","id":"fdb","drive":"fdb","unit":1}'),
                *node("hdb", "/d/a.qcow2"),
                *("-device", '{"driver":"ide-hd","id":"hdb","drive":"hdb","bus":"ide.1","unit":0}'),
                *node("cdrom", "/d/b.raw", "raw", ro=True),
                *("-device", '{"driver":"ide-cd","id":"cdrom","drive":"cdrom","bus":"ide.2","unit":0}'),
            ],
        ),
    ),
    (
        "what moved from -drive to -device",
        {
            "drive": [
                "/d/a.qcow2,if=ide,index=3,cyls=10,heads=16,secs=63,trans=lba,serial=S1,werror=stop,rerror=report"
            ]
        },
        line(
            drives=[
                *A,
                "-device",
                '{"driver":"ide-hd","id":"drive0","drive":"drive0","bus":"ide.1","unit":1,"serial":"S1","werror":"stop",'
                '"rerror":"report","cyls":10,"heads":16,"secs":63,"bios-chs-trans":"lba"}',
            ]
        ),
    ),
    (
        "threads of drives",
        {"drive": ["/d/a.qcow2,if=virtio,iothread=io0", "/d/b.raw,if=scsi,iothread=io0", "if=scsi,media=cdrom"]},
        line(
            drives=[
                *("-object", '{"qom-type":"iothread","id":"iothread-io0"}', *A, "-device"),
                '{"driver":"virtio-blk-pci","id":"drive0","drive":"drive0","iothread":"iothread-io0"}',
                *(*node("drive1", "/d/b.raw", "raw"), "-device"),
                '{"driver":"virtio-scsi-pci","id":"scsi0","iothread":"iothread-io0"}',
                *(
                    "-device",
                    '{"driver":"scsi-hd","id":"drive1","drive":"drive1","bus":"scsi0.0","scsi-id":0,"lun":0}',
                ),
                *("-device", '{"driver":"scsi-cd","id":"drive2","bus":"scsi0.0","scsi-id":1,"lun":0}'),
            ]
        ),
    ),
    (
        "scsi beyond one bus, usb, nvme, sd, none",
        {
            "drive": [
                "/d/a.qcow2,if=scsi,index=7",
                "/d/b.raw,if=usb,readonly=on",
                "/d/c.raw,if=nvme,format=raw,addr=0x8,bootindex=0",
                "/d/c.raw,if=sd,format=raw",
                "/d/c.raw,if=none,format=raw,id=spare",
                "if=scsi,media=cdrom",
            ]
        },
        line(
            drives=[
                *A,
                "-device",
                '{"driver":"nvme","id":"drive2","drive":"drive2","serial":"drive2","bootindex":0,"addr":"0x8"}',
                *("-device", '{"driver":"virtio-scsi-pci","id":"scsi1"}'),
                *(
                    "-device",
                    '{"driver":"scsi-hd","id":"drive0","drive":"drive0","bus":"scsi1.0","scsi-id":0,"lun":0}',
                ),
                *node("drive1", "/d/b.raw", "raw", ro=True),
                *("-device", '{"driver":"qemu-xhci","id":"usb"}'),
                *("-device", '{"driver":"usb-storage","id":"drive1","drive":"drive1","bus":"usb.0"}'),
                *node("drive2", "/d/c.raw", "raw"),
                *node("drive3", "/d/c.raw", "raw"),
                *("-device", '{"driver":"sdhci-pci","id":"sd0"}'),
                *("-device", '{"driver":"sd-card","id":"drive3","drive":"drive3"}'),
                *node("spare", "/d/c.raw", "raw"),
                *("-device", '{"driver":"virtio-scsi-pci","id":"scsi0"}'),
                *("-device", '{"driver":"scsi-cd","id":"drive5","bus":"scsi0.0","scsi-id":0,"lun":0}'),
            ]
        ),
    ),
    (
        "flash",
        {"drive": ["/d/b.raw,if=pflash,readonly=on"]},
        line(
            identity=["-machine", "pc,pflash0=drive0", "-accel", "tcg"],
            drives=node("drive0", "/d/b.raw", "raw", ro=True),
        ),
    ),
    (
        "a floppy to start from",
        {"drive": ["/d/f.img,if=floppy,bootindex=2"]},
        line(
            drives=[
                *node("drive0", "/d/f.img", "raw"),
                *("-device", '{"driver":"floppy","id":"drive0","drive":"drive0","unit":0}'),
                *("-global", "isa-fdc.bootindexA=2"),
            ]
        ),
    ),
    (
        "the chain is spelled out",
        {"drive": ["/d/o.qcow2,if=virtio"]},
        line(
            drives=[
                *node("drive0-1", "/d/b.raw", "raw", ro=True),
                *node("drive0", "/d/o.qcow2", backing='"drive0-1"'),
                *VIRTIO,
            ]
        ),
    ),
    (
        "filters and throttling",
        {
            "drive": [
                "/d/a.qcow2,if=virtio,copy-on-read=on,bps_rd=1M,iops=100,iops_max=200,group=g,aio=native,cache=none"
            ]
        },
        line(
            drives=[
                "-object",
                '{"qom-type":"throttle-group","id":"throttle-g","limits":{"bps-read":1048576,"iops-total":100,"iops-total-max":200}}',
                "-blockdev",
                '{"driver":"file","node-name":"drive0-file","filename":"/d/a.qcow2","read-only":false,'
                '"cache":{"direct":true,"no-flush":false},"aio":"native"}',
                "-blockdev",
                '{"driver":"qcow2","node-name":"drive0","file":"drive0-file","read-only":false,'
                '"cache":{"direct":true,"no-flush":false},"backing":null}',
                *("-blockdev", '{"driver":"copy-on-read","node-name":"drive0-cor","file":"drive0"}'),
                "-blockdev",
                '{"driver":"throttle","node-name":"drive0-cor-throttle","throttle-group":"throttle-g","file":"drive0-cor"}',
                "-device",
                '{"driver":"virtio-blk-pci","id":"drive0","drive":"drive0-cor-throttle","write-cache":"on"}',
            ]
        ),
    ),
    (
        "discard",
        {"drive": ["/d/a.qcow2,if=virtio,discard=unmap,detect-zeroes=unmap"]},
        line(
            drives=[
                "-blockdev",
                '{"driver":"file","node-name":"drive0-file","filename":"/d/a.qcow2","read-only":false,"discard":"unmap"}',
                "-blockdev",
                '{"driver":"qcow2","node-name":"drive0","file":"drive0-file","read-only":false,"discard":"unmap",'
                '"detect-zeroes":"unmap","backing":null}',
                *VIRTIO,
            ]
        ),
    ),
    (
        "a microvm",
        {"machine": "microvm", "drive": ["/d/a.qcow2"], "network": ["user"], "rng": True},
        line(
            identity=["-machine", "microvm", "-accel", "tcg"],
            drives=[*A, "-device", '{"driver":"virtio-blk-device","id":"drive0","drive":"drive0"}'],
            networks=[
                *("-netdev", '{"type":"user","id":"net0"}', "-device"),
                '{"driver":"virtio-net-device","id":"nic0","netdev":"net0","mac":"52:54:00:ef:ca:d9"}',
            ],
            display=["-display", "none"],
            devices=[
                *("-object", '{"qom-type":"rng-builtin","id":"rng0"}'),
                *("-device", '{"driver":"virtio-rng-device","id":"rng-device0","rng":"rng0"}'),
            ],
        ),
    ),
    (
        "an isapc",
        {"machine": "isapc", "network": ["user"]},
        line(
            identity=["-machine", "isapc", "-accel", "tcg"],
            cpu=["-smp", "cpus=1,maxcpus=1,sockets=1,cores=1,threads=1"],
            networks=[
                *("-netdev", '{"type":"user","id":"net0"}', "-device"),
                '{"driver":"ne2k_isa","id":"nic0","netdev":"net0","mac":"52:54:00:ef:ca:d9"}',
            ],
        ),
    ),
    (
        "a user network in full",
        {
            "network": [
                "user,hostfwd=tcp::2222-:22,hostfwd=udp:0.0.0.0:53-10.0.2.15:53,dns=10.0.2.9,net=10.0.2.0/24,restrict=on,"
                "ipv6-net=fd00::/64,tftp=/srv,bootfile=/pxe,hostname=vm,dnssearch=a,dnssearch=b,model=e1000,"
                "mac=52:54:00:00:00:01,addr=0x9,bootindex=1"
            ]
        },
        line(
            networks=[
                "-netdev",
                '{"type":"user","id":"net0","hostname":"vm","restrict":true,"net":"10.0.2.0/24","dns":"10.0.2.9",'
                '"ipv6-prefix":"fd00::","ipv6-prefixlen":64,"tftp":"/srv","bootfile":"/pxe",'
                '"dnssearch":[{"str":"a"},{"str":"b"}],'
                '"hostfwd":[{"str":"tcp:127.0.0.1:2222-:22"},{"str":"udp:0.0.0.0:53-10.0.2.15:53"}]}',
                "-device",
                '{"driver":"e1000","id":"nic0","netdev":"net0","mac":"52:54:00:00:00:01","addr":"0x9","bootindex":1}',
            ]
        ),
    ),
    (
        "guests side by side",
        {
            "network": [
                "socket,listen=:4000,mac=52:54:00:00:00:01",
                "stream,server=on,addr.type=unix,addr.path=/s,mac=52:54:00:00:00:02",
                "dgram,local.type=inet,local.host=127.0.0.1,local.port=1,remote.type=inet,remote.host=127.0.0.1,"
                "remote.port=2,mac=52:54:00:00:00:03",
            ]
        },
        line(
            networks=[
                *("-netdev", '{"type":"socket","id":"net0","listen":":4000"}', "-device"),
                '{"driver":"virtio-net-pci","id":"nic0","netdev":"net0","mac":"52:54:00:00:00:01"}',
                *(
                    "-netdev",
                    '{"type":"stream","id":"net1","server":true,"addr":{"type":"unix","path":"/s"}}',
                    "-device",
                ),
                '{"driver":"virtio-net-pci","id":"nic1","netdev":"net1","mac":"52:54:00:00:00:02"}',
                "-netdev",
                '{"type":"dgram","id":"net2","local":{"type":"inet","host":"127.0.0.1","port":"1"},'
                '"remote":{"type":"inet","host":"127.0.0.1","port":"2"}}',
                *("-device", '{"driver":"virtio-net-pci","id":"nic2","netdev":"net2","mac":"52:54:00:00:00:03"}'),
            ]
        ),
    ),
    (
        "vhost-user shares the guest's memory",
        {"network": ["vhost-user,path=/s,queues=2,mac=52:54:00:00:00:01"]},
        line(
            identity=["-machine", "pc,memory-backend=ram0", "-accel", "tcg"],
            memory=[
                *("-m", "size=1G"),
                *("-object", '{"qom-type":"memory-backend-memfd","id":"ram0","size":1073741824,"share":true}'),
            ],
            networks=[
                *("-chardev", "socket,id=net0-switch,path=/s"),
                *("-netdev", '{"type":"vhost-user","id":"net0","chardev":"net0-switch","queues":2}', "-device"),
                '{"driver":"virtio-net-pci","id":"nic0","netdev":"net0","mac":"52:54:00:00:00:01","mq":true,"vectors":6}',
            ],
        ),
    ),
    (
        "smb starts a program",
        {"network": ["user,smb=/srv,mac=52:54:00:00:00:01"]},
        line(
            networks=[
                *("-netdev", '{"type":"user","id":"net0","smb":"/srv"}', "-device"),
                '{"driver":"virtio-net-pci","id":"nic0","netdev":"net0","mac":"52:54:00:00:00:01"}',
            ],
            safety=sandbox(elevateprivileges="allow", spawn="allow"),
        ),
    ),
    (
        "a window",
        {"display": "gtk,gl=on,full-screen=off", "vga": "virtio", "keymap": "de"},
        line(
            display=["-vga", "virtio", "-display", "gtk,gl=on,full-screen=off", "-k", "de"],
            safety=sandbox(resourcecontrol="allow"),
        ),
    ),
    (
        "ports",
        {
            "serial": [
                "stdio",
                "pty",
                "file:/o,,1",
                "unix:/s,server=off",
                "tcp:127.0.0.1:44,server=on,wait=on",
                "none",
                "/dev/tty5",
            ],
            "parallel": ["null"],
        },
        line(
            identity=["-machine", "pc,graphics=off", "-accel", "tcg"],
            ports=[
                *("-chardev", "stdio,id=serial0,mux=on,signal=off,logfile=/run/vm/serial0.log"),
                *("-mon", "chardev=serial0,mode=readline", "-serial", "chardev:serial0"),
                *("-chardev", "pty,id=serial1,logfile=/run/vm/serial1.log", "-serial", "chardev:serial1"),
                *("-chardev", "file,id=serial2,path=/o,,1,logfile=/run/vm/serial2.log", "-serial", "chardev:serial2"),
                *(
                    "-chardev",
                    "socket,id=serial3,path=/s,server=off,logfile=/run/vm/serial3.log",
                    "-serial",
                    "chardev:serial3",
                ),
                "-chardev",
                "socket,id=serial4,host=127.0.0.1,port=44,server=on,wait=on,logfile=/run/vm/serial4.log",
                *("-serial", "chardev:serial4", "-serial", "none"),
                *(
                    "-chardev",
                    "serial,id=serial6,path=/dev/tty5,logfile=/run/vm/serial6.log",
                    "-serial",
                    "chardev:serial6",
                ),
                *("-chardev", "null,id=parallel0,logfile=/run/vm/parallel0.log", "-parallel", "chardev:parallel0"),
            ],
        ),
    ),
    (
        "small devices",
        {
            "rng": "/dev/urandom,max-bytes=1024",
            "balloon": "free-page-reporting=on",
            "agent": True,
            "vsock": "42",
            "tablet": True,
            "watchdog": "ib700,action=poweroff",
            "share": ["/srv/data,readonly=on", "/srv/more,security_model=mapped,multidevs=remap"],
            "rtc": "localtime,driftfix=slew",
            "audio": "wav,path=/o.wav",
        },
        line(
            devices=[
                *("-object", '{"qom-type":"rng-random","id":"rng0","filename":"/dev/urandom"}', "-device"),
                '{"driver":"virtio-rng-pci","id":"rng-device0","rng":"rng0","max-bytes":1024,"period":1000}',
                *("-device", '{"driver":"virtio-balloon-pci","id":"balloon0","free-page-reporting":true}'),
                *("-device", '{"driver":"virtio-serial-pci","id":"virtio-serial"}'),
                *("-chardev", "socket,id=agent,path=/run/vm/agent.sock,server=on,wait=off", "-device"),
                '{"driver":"virtserialport","id":"agent-port","bus":"virtio-serial.0","chardev":"agent",'
                '"name":"org.qemu.guest_agent.0"}',
                *("-device", '{"driver":"vhost-vsock-pci","id":"vsock0","guest-cid":42}'),
                *("-device", '{"driver":"qemu-xhci","id":"usb"}'),
                *("-device", '{"driver":"usb-tablet","id":"tablet0","bus":"usb.0"}'),
                *("-device", '{"driver":"ib700","id":"watchdog0"}', "-watchdog-action", "poweroff"),
                *("-fsdev", "local,id=share0,path=/srv/data,security_model=mapped-xattr,readonly=on"),
                *("-device", '{"driver":"virtio-9p-pci","id":"share0-device","fsdev":"share0","mount_tag":"data"}'),
                *("-fsdev", "local,id=share1,path=/srv/more,security_model=mapped,multidevs=remap"),
                *("-device", '{"driver":"virtio-9p-pci","id":"share1-device","fsdev":"share1","mount_tag":"more"}'),
                *("-rtc", "base=localtime,driftfix=slew"),
                *("-audiodev", "wav,id=audio0,path=/o.wav"),
                *("-device", '{"driver":"intel-hda","id":"sound0"}', "-device"),
                '{"driver":"hda-duplex","id":"sound0-codec","bus":"sound0.0","audiodev":"audio0"}',
            ]
        ),
    ),
    (
        "another user",
        {"safety": {"run-as": "nobody"}},
        line(safety=["-runas", "nobody", *sandbox(elevateprivileges="allow")]),
    ),
    (
        "the terminal's screen",
        {"display": {"type": "curses"}, "serial": [{"type": "null"}]},
        line(
            display=["-vga", "std", "-display", "curses"],
            ports=["-chardev", "null,id=serial0,logfile=/run/vm/serial0.log", "-serial", "chardev:serial0"],
            safety=sandbox(elevateprivileges="allow"),
        ),
    ),
]


@pytest.mark.parametrize(("words", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_the_whole_command_line(words: dict[str, Any], expected: list[str], make_host: MakeHost) -> None:
    assert argv(words, make_host()) == expected


def test_without_a_word_about_it_there_is_one_user_network(make_host: MakeHost) -> None:
    assert list(compile_argv(Machine(), make_host()).argv) == line(networks=USER)


CACHES = [
    ("writeback", "false", "false", "on"),
    ("none", "true", "false", "on"),
    ("writethrough", "false", "false", "off"),
    ("directsync", "true", "false", "off"),
    ("unsafe", "false", "true", "on"),
]


@pytest.mark.parametrize(("mode", "direct", "no_flush", "write_cache"), CACHES)
def test_each_cache_mode(mode: str, direct: str, no_flush: str, write_cache: str, make_host: MakeHost) -> None:
    cache = f',"cache":{{"direct":{direct},"no-flush":{no_flush}}}'
    device = f'{{"driver":"virtio-blk-pci","id":"drive0","drive":"drive0","write-cache":"{write_cache}"}}'
    assert argv({"drive": [f"/d/a.qcow2,if=virtio,cache={mode}"]}, make_host()) == line(
        drives=[*node("drive0", "/d/a.qcow2", more=cache), "-device", device]
    )


def test_what_is_thrown_away_goes_to_an_overlay_on_the_read_only_chain(make_host: MakeHost) -> None:
    found = compiled(
        {"drive": ["/d/o.qcow2,if=virtio", "/d/a.qcow2,if=virtio,snapshot=off"], "ephemeral": True}, make_host()
    )
    unsafe = ',"cache":{"direct":false,"no-flush":true}'
    assert list(found.argv) == line(
        drives=[
            *node("drive0-1", "/d/b.raw", "raw", ro=True),
            *node("drive0-0", "/d/o.qcow2", ro=True, backing='"drive0-1"'),
            *node("drive0", "/run/vm/drive0.qcow2", more=unsafe, backing='"drive0-0"'),
            *VIRTIO,
            *node("drive1", "/d/a.qcow2"),
            *("-device", '{"driver":"virtio-blk-pci","id":"drive1","drive":"drive1"}'),
        ]
    )
    assert found.scratch == (
        Scratch(path="/run/vm/drive0.qcow2", backing="/d/o.qcow2", backing_format="qcow2", size=1 << 30),
    )


def test_a_name_that_is_not_utf8_is_written_in_keys(make_host: MakeHost) -> None:
    path = os.fsdecode(b"/d/caf\xe9,readonly=on.qcow2")
    host = make_host(disks={path: Disk(chain=(Link(path=path, format="qcow2"),))})
    doubled = os.fsdecode(b"/d/caf\xe9,,readonly=on.qcow2")
    assert argv({"drive": [{"file": path, "if": "virtio"}]}, host) == line(
        drives=[
            *("-blockdev", f"file,node-name=drive0-file,filename={doubled},read-only=off"),
            *A[2:],
            *VIRTIO,
        ]
    )


def test_a_block_device_a_data_file_and_a_parent_elsewhere(make_host: MakeHost) -> None:
    disks = {
        "/dev/sdz": Disk(chain=(Link(path="/dev/sdz", format="raw", protocol="host_device"),)),
        "/d/x.qcow2": Disk(chain=(Link(path="/d/x.qcow2", format="qcow2", data_file="/d/x.data"),), follow=True),
    }
    found = argv({"drive": ["/dev/sdz,if=virtio", "/d/x.qcow2,if=virtio"]}, make_host(disks=disks))
    own = node("drive1", "/d/x.qcow2", backing="")
    assert found == line(
        drives=[
            "-blockdev",
            '{"driver":"host_device","node-name":"drive0-file","filename":"/dev/sdz","read-only":false}',
            *node("drive0", "", "raw")[2:],
            *VIRTIO,
            *own[:2],
            *("-blockdev", '{"driver":"file","node-name":"drive1-data","filename":"/d/x.data","read-only":false}'),
            *("-blockdev", own[3].replace('"read-only":false', '"read-only":false,"data-file":"drive1-data"')),
            *("-device", '{"driver":"virtio-blk-pci","id":"drive1","drive":"drive1"}'),
        ]
    )


def test_a_qemu_of_2020_gets_key_and_value(make_host: MakeHost) -> None:
    words = {
        "drive": ["/d/a.qcow2,if=virtio,serial=a,,b,bps=5"],
        "network": ["user,hostfwd=tcp::1-:2,hostfwd=tcp::3-:4,restrict=on,mac=52:54:00:00:00:01"],
        "rng": True,
        "display": "vnc=:1",
    }
    found = compiled(words, make_host((5, 2)))
    assert list(found.argv) == line(
        drives=[
            *("-object", "throttle-group,id=throttle-drive0,x-bps-total=5"),
            *A,
            "-blockdev",
            '{"driver":"throttle","node-name":"drive0-throttle","throttle-group":"throttle-drive0","file":"drive0"}',
            *("-device", "virtio-blk-pci,id=drive0,drive=drive0-throttle,serial=a,,b"),
        ],
        networks=[
            *("-netdev", "user,id=net0,restrict=on,hostfwd=tcp:127.0.0.1:1-:2,hostfwd=tcp:127.0.0.1:3-:4"),
            *("-device", "virtio-net-pci,id=nic0,netdev=net0,mac=52:54:00:00:00:01"),
        ],
        display=["-vga", "std", "-display", "none", "-vnc", "127.0.0.1:1,password=on"],
        devices=["-object", "rng-builtin,id=rng0", "-device", "virtio-rng-pci,id=rng-device0,rng=rng0"],
    )
    assert found.secrets == (Secret(id="vnc-password", path="/run/vm/vnc.secret", protocol="vnc", by_qmp=True),)


def test_a_qemu_of_2025_changes_its_user_in_another_word(make_host: MakeHost) -> None:
    assert argv({"safety": {"run-as": "nobody", "sandbox": False}}, make_host((10, 0)))[-2:] == [
        "-run-with",
        "user=nobody",
    ]


def test_a_guest_draws_with_opengl_where_its_screen_is(make_host: MakeHost) -> None:
    host = make_host()
    devices = (*host.capabilities.devices, DeviceType(name="virtio-vga-gl", category="Display"))
    able = replace(host, capabilities=replace(host.capabilities, devices=devices))
    card = ["-vga", "none", "-device", '{"driver":"virtio-vga-gl","id":"video0"}']
    gtk = ["-display", "gtk,gl=on"]
    loose = sandbox(resourcecontrol="allow")
    words = {"vga": "virtio", "display": "gtk,gl=on"}
    assert argv(words, able) == line(display=[*card, *gtk], safety=loose)
    assert argv(words, host) == line(display=["-vga", "virtio", *gtk], safety=loose), "QEMU 6.0 and before"
    assert argv({"vga": "virtio", "display": "gtk"}, able) == line(
        display=["-vga", "virtio", "-display", "gtk"], safety=loose
    )
    assert (
        argv({"vga": "virtio", "display": "egl-headless"}, able)[8:]
        == line(display=[*card, "-display", "egl-headless"], safety=loose)[8:]
    )


def test_vnc_asks_a_password_that_is_in_a_file(make_host: MakeHost) -> None:
    found = compiled({"display": "vnc"}, make_host())
    assert list(found.argv) == line(
        display=[
            *("-vga", "std", "-object", '{"qom-type":"secret","id":"vnc-password","file":"/run/vm/vnc.secret"}'),
            *("-display", "none", "-vnc", "127.0.0.1:0,password-secret=vnc-password,to=99"),
        ]
    )
    assert found.secrets == (Secret(id="vnc-password", path="/run/vm/vnc.secret", protocol="vnc"),)


def test_a_password_file_of_the_users_own_and_none_at_all(make_host: MakeHost) -> None:
    own = compiled({"display": "vnc=unix:/s,password-file=/p"}, make_host())
    assert own.secrets == ()
    assert own.argv[own.argv.index("-vnc") + 1] == "unix:/s,password-secret=vnc-password"
    bare = compiled({"display": "vnc=[::1]:2,password=off"}, make_host())
    assert bare.argv[bare.argv.index("-vnc") + 1] == "[::1]:2"


def test_vnc_speaks_tls_and_to_browsers(make_host: MakeHost) -> None:
    found = argv({"display": "vnc=:3,password=off,tls-creds=/pki,verify-peer=on,websocket=on"}, make_host())
    creds = '{"qom-type":"tls-creds-x509","id":"vnc-tls","dir":"/pki","endpoint":"server","verify-peer":true}'
    where = "127.0.0.1:3,websocket=on,tls-creds=vnc-tls"
    assert found == line(display=["-vga", "std", "-object", creds, "-display", "none", "-vnc", where])
    other = argv({"display": "vnc=:3,password=off,websocket=5799"}, make_host())
    assert other[other.index("-vnc") + 1] == "127.0.0.1:3,websocket=5799"


VDAGENT = [
    *("-device", '{"driver":"virtio-serial-pci","id":"virtio-serial"}'),
    *("-chardev", "spicevmc,id=vdagent,name=vdagent", "-device"),
    '{"driver":"virtserialport","id":"vdagent-port","bus":"virtio-serial.0","chardev":"vdagent",'
    '"name":"com.redhat.spice.0"}',
]


def test_spice_is_a_unix_socket_with_the_agents_channel(make_host: MakeHost) -> None:
    found = argv({"display": "spice,password=off"}, make_host())
    where = "unix=on,addr=/run/vm/spice.sock,disable-ticketing=on"
    assert found == line(display=["-vga", "std", "-display", "none", "-spice", where, *VDAGENT])
    words = "spice,unix=on,addr=/s,disable-ticketing=on"
    assert argv({"display": words}, make_host()) == argv({"display": "spice,path=/s,password=off"}, make_host())


def test_spice_speaks_tls_and_its_viewer_hands_usb_devices_on(make_host: MakeHost) -> None:
    found = argv({"display": "spice,tls-port=5901,x509-dir=/pki,disable-ticketing=on,usb-redir=2"}, make_host())
    where = "tls-port=5901,x509-dir=/pki,addr=127.0.0.1,disable-ticketing=on"
    assert found == line(
        display=[
            *("-vga", "std", "-display", "none", "-spice", where, *VDAGENT),
            *("-device", '{"driver":"qemu-xhci","id":"usb"}', "-chardev", "spicevmc,id=usb-redir0,name=usbredir"),
            *("-device", '{"driver":"usb-redir","id":"usb-redir0-device","bus":"usb.0","chardev":"usb-redir0"}'),
            *("-chardev", "spicevmc,id=usb-redir1,name=usbredir"),
            *("-device", '{"driver":"usb-redir","id":"usb-redir1-device","bus":"usb.0","chardev":"usb-redir1"}'),
        ]
    )


def test_uefi_with_secure_boot(make_host: MakeHost) -> None:
    uefi = Uefi(code="/o/code", vars="/v/vars.qcow2", secure_boot=True, requires_smm=True)
    found = argv({"machine": "q35", "firmware": {"secure-boot": True}}, make_host(uefi=uefi))
    flash = [*node("uefi-code", "/o/code", "raw", ro=True), *node("uefi-vars", "/v/vars.qcow2", backing="")]
    assert found == line(
        identity=["-machine", "q35,pflash0=uefi-code,pflash1=uefi-vars,smm=on", "-accel", "tcg"],
        start=[
            *flash,
            *("-global", "driver=cfi.pflash01,property=secure,value=on", "-global", "ICH9-LPC.disable_s3=1"),
        ],
    )


def test_uefi_gets_the_boot_order_as_bootindex(make_host: MakeHost) -> None:
    words = {
        "firmware": {"uefi": True},
        "drive": ["/d/a.qcow2,if=virtio", "/d/b.raw,if=ide,media=cdrom"],
        "network": ["user,mac=52:54:00:00:00:01"],
        "boot": "order=dnc,menu=on",
    }
    found = argv(words, make_host(uefi=Uefi(code="/o/code")))
    assert found == line(
        identity=["-machine", "pc,pflash0=uefi-code", "-accel", "tcg"],
        start=[*node("uefi-code", "/o/code", "raw", ro=True), "-boot", "menu=on"],
        drives=[
            *A,
            *("-device", '{"driver":"virtio-blk-pci","id":"drive0","drive":"drive0","bootindex":2}'),
            *node("drive1", "/d/b.raw", "raw", ro=True),
            *("-device", '{"driver":"ide-cd","id":"drive1","drive":"drive1","bus":"ide.0","unit":0,"bootindex":0}'),
        ],
        networks=[
            *("-netdev", '{"type":"user","id":"net0"}', "-device"),
            '{"driver":"virtio-net-pci","id":"nic0","netdev":"net0","mac":"52:54:00:00:00:01","bootindex":1}',
        ],
    )


def test_a_tpm_has_swtpm_beside_it(make_host: MakeHost) -> None:
    found = compiled({"tpm": "tpm-tis,state=/t"}, make_host(swtpm="/usr/bin/swtpm"))
    assert list(found.argv) == line(
        devices=[
            *(
                "-chardev",
                "socket,id=tpm-socket,path=/run/vm/tpm.sock",
                "-tpmdev",
                "emulator,id=tpm0,chardev=tpm-socket",
            ),
            *("-device", '{"driver":"tpm-tis","tpmdev":"tpm0"}'),
        ]
    )
    swtpm = (
        "/usr/bin/swtpm",
        "socket",
        "--tpm2",
        "--tpmstate",
        "dir=/t",
        "--ctrl",
        "type=unixio,path=/run/vm/tpm.sock",
    )
    assert found.helpers == (
        Helper(name="swtpm", argv=(*swtpm, "--terminate"), socket="/run/vm/tpm.sock", directory="/t"),
    )
    (helper,) = compiled({"tpm": "tpm-tis,state=/a,,b"}, make_host(swtpm="/usr/bin/swtpm")).helpers
    assert helper.argv[3:5] == ("--tpmstate", "dir=/run/vm/tpm-state"), "swtpm knows no comma in a name"
    assert (helper.directory, helper.link) == ("/a,b", "/run/vm/tpm-state")


def test_virtiofs_has_virtiofsd_beside_it_and_shared_memory(make_host: MakeHost) -> None:
    found = compiled({"share": ["/srv,type=virtiofs,tag=t"]}, make_host(virtiofsd="/usr/libexec/virtiofsd"))
    assert list(found.argv) == line(
        identity=["-machine", "pc,memory-backend=ram0", "-accel", "tcg"],
        memory=[
            *("-m", "size=1G"),
            *("-object", '{"qom-type":"memory-backend-memfd","id":"ram0","size":1073741824,"share":true}'),
        ],
        devices=[
            *("-chardev", "socket,id=share0,path=/run/vm/share0.sock"),
            *("-device", '{"driver":"vhost-user-fs-pci","id":"share0-device","chardev":"share0","tag":"t"}'),
        ],
    )
    argv_ = ("/usr/libexec/virtiofsd", "--socket-path=/run/vm/share0.sock", "--shared-dir=/srv")
    assert found.helpers == (Helper(name="virtiofsd-share0", argv=argv_, socket="/run/vm/share0.sock"),)


@pytest.mark.parametrize(("own", "common"), [("ubuntu", "pc"), ("ubuntu-q35", "q35")])
def test_a_distribution_s_own_name_of_a_machine_is_that_machine(make_host: MakeHost, own: str, common: str) -> None:
    """Ubuntu's default is `ubuntu`, an alias of pc-i440fx-noble."""
    host = make_host()
    settings = {"fda": "/d/f.img", "hda": "/d/b.raw", "drive": ["/d/a.qcow2,if=ide,index=2"]}
    expected = compiled({**settings, "machine": common}, host).argv
    machines = [replace(m, alias=own) if m.alias == common else m for m in host.capabilities.machines]
    there = replace(host, capabilities=replace(host.capabilities, machines=tuple(machines)))
    assert list(compiled({**settings, "machine": own}, there).argv) == [own if w == common else w for w in expected]


def test_passt_stands_behind_a_stream(make_host: MakeHost) -> None:
    found = compiled(
        {"network": ["passt,hostfwd=tcp::2222-:22,ipv6=off,mac=52:54:00:00:00:01"]}, make_host(passt="/p")
    )
    assert list(found.argv) == line(
        networks=[
            "-netdev",
            '{"type":"stream","id":"net0","server":false,"addr":{"type":"unix","path":"/run/vm/net0.sock"}}',
            *("-device", '{"driver":"virtio-net-pci","id":"nic0","netdev":"net0","mac":"52:54:00:00:00:01"}'),
        ]
    )
    options = ("--foreground", "--quiet", "--one-off", "--socket", "/run/vm/net0.sock", "--ipv4-only")
    assert found.helpers == (
        Helper(
            name="passt-net0", argv=("/p", *options, "--tcp-ports", "127.0.0.1/2222:22"), socket="/run/vm/net0.sock"
        ),
    )


def test_passt_started_by_root_may_stay_root_where_it_cannot_do_without(make_host: MakeHost) -> None:
    (helper,) = compiled({"network": ["passt"]}, make_host(passt="/p", root=True)).helpers
    assert helper.argv == ("/p", "--foreground", "--quiet", "--one-off", "--socket", "/run/vm/net0.sock")
    assert helper.otherwise == (*helper.argv, "--runas", "0")


NIC = '{"driver":"virtio-net-pci","id":"nic0","netdev":"net0","mac":"52:54:00:00:00:01"'


@pytest.mark.parametrize(
    ("network", "netdev", "need"),
    [
        (
            "bridge,br=br1",
            '{"type":"bridge","id":"net0","br":"br1","helper":"/h"}',
            TapNeed(id="net0", ifname=None, bridge="br1", helper="/h"),
        ),
        (
            "nat,net=lab",
            '{"type":"tap","id":"net0","br":"imgtool-lab","helper":"/h"}',
            TapNeed(id="net0", ifname=None, bridge="imgtool-lab", helper="/h"),
        ),
    ],
)
def test_a_tap_that_qemu_opens_needs_a_looser_sandbox(
    network: str, netdev: str, need: TapNeed, make_host: MakeHost
) -> None:
    host = make_host(bridge_helper="/h", bridges={"lab": "imgtool-lab"})
    found = compiled({"network": [f"{network},mac=52:54:00:00:00:01"]}, host)
    assert list(found.argv) == line(
        networks=["-netdev", netdev, "-device", NIC + "}"],
        safety=sandbox(elevateprivileges="allow", spawn="allow"),
    )
    assert found.taps == (need,)


def test_a_tap_that_is_there_is_named(make_host: MakeHost) -> None:
    found = compiled({"network": ["tap,ifname=tap0,vhost=on,queues=2,mac=52:54:00:00:00:01"]}, make_host())
    assert list(found.argv) == line(
        networks=[
            "-netdev",
            '{"type":"tap","id":"net0","vhost":true,"queues":2,"ifname":"tap0","script":"no","downscript":"no"}',
            *("-device", NIC + ',"mq":true,"vectors":6}'),
        ]
    )


@pytest.mark.parametrize("network", ["bridge,br=br1", "nat,net=lab", "tap,br=br1"])
def test_a_tap_opened_beforehand_is_a_descriptor(network: str, make_host: MakeHost) -> None:
    host = make_host(bridges={"lab": "imgtool-lab"}, descriptors={"net0": (7,)})
    assert argv({"network": [f"{network},mac=52:54:00:00:00:01"]}, host) == line(
        networks=[
            *("-netdev", '{"type":"tap","id":"net0","fd":"7"}'),
            "-device",
            NIC + "}",
        ]
    )


def test_queues_and_vhost_are_descriptors_each(make_host: MakeHost) -> None:
    host = make_host(descriptors={"net0": (7, 8), "net0-vhost": (9, 10)})
    found = argv({"network": ["tap,vhost=on,queues=2,mac=52:54:00:00:00:01"]}, host)
    assert found == line(
        networks=[
            *("-netdev", '{"type":"tap","id":"net0","fds":"7:8","vhost":true,"vhostfds":"9:10"}'),
            *("-device", NIC + ',"mq":true,"vectors":6}'),
        ]
    )


def test_on_a_terminal_the_console_shares_it_with_the_monitor(make_host: MakeHost) -> None:
    assert argv({}, make_host(console="stdio")) == line(
        identity=["-machine", "pc,graphics=off", "-accel", "tcg"],
        ports=[
            *("-chardev", "stdio,id=serial0,mux=on,signal=off,logfile=/run/vm/serial0.log"),
            *("-mon", "chardev=serial0,mode=readline", "-serial", "chardev:serial0"),
        ],
    )
    assert argv({}, make_host(console="none")) == line(ports=[])


def test_an_accelerator_with_properties_takes_the_place_of_the_bare_one(make_host: MakeHost) -> None:
    found = compiled({"network": "none", "arguments": ["-accel", "tcg,thread=single"]}, make_host())
    assert list(found.argv) == line(identity=["-machine", "pc"], arguments=["-accel", "tcg,thread=single"])


def test_kvm_shows_the_guest_the_hosts_cpu(make_host: MakeHost) -> None:
    assert argv({}, make_host(accelerator="kvm")) == line(
        identity=["-machine", "pc", "-accel", "kvm"],
        cpu=["-cpu", "host", "-smp", "cpus=1,maxcpus=1,sockets=1,cores=1,threads=1"],
    )


def test_the_cloud_init_seed_is_the_last_disk(make_host: MakeHost) -> None:
    found = argv({"drive": ["/d/a.qcow2,if=virtio"], "cloud-init": "user=me"}, make_host(seed="/run/vm/seed.iso"))
    assert found == line(
        drives=[
            *A,
            *VIRTIO,
            *node("cloud-init", "/run/vm/seed.iso", "raw", ro=True),
            *("-device", '{"driver":"virtio-blk-pci","id":"cloud-init","drive":"cloud-init"}'),
        ]
    )


def test_the_mac_follows_the_name_and_the_place(make_host: MakeHost) -> None:
    def macs(name: str) -> list[str]:
        found = argv({"name": name, "network": ["user", "user"]}, make_host())
        return [word.partition('"mac":"')[2][:17] for word in found if '"mac"' in word]

    assert macs("web") == macs("web")
    assert len({*macs("web"), *macs("db")}) == 4
    assert all(mac.startswith("52:54:00:") for mac in macs("web"))


def test_an_image_of_unknown_format_is_not_guessed(make_host: MakeHost) -> None:
    with pytest.raises(ConfigError, match="the format of /d/new is not known"):
        argv({"drive": ["/d/new,if=virtio"]}, make_host())


def test_a_board_of_another_kind_gets_its_flash_by_the_old_option(make_host: MakeHost) -> None:
    host = make_host()
    board = replace(host.capabilities.machines[0], name="ast2500-evb", alias=None)
    other = replace(host, capabilities=replace(host.capabilities, target="arm", machines=(board,)))
    found = argv({"machine": "ast2500-evb", "drive": ["/d/b.raw,if=mtd,format=raw"]}, other)
    assert found[found.index("-drive") + 1] == "if=mtd,index=0,id=drive0,format=raw,file=/d/b.raw"


def test_firmware_speaks_on_the_terminal_unless_something_shows_the_machine(make_host: MakeHost) -> None:
    assert "pc,graphics=off" in argv({}, make_host(console="stdio"))
    for settings in ({"display": "vnc"}, {"serial": ["null"]}, {"machine": "pc,graphics=on"}):
        assert "pc,graphics=off" not in argv(settings, make_host(console="stdio"))
