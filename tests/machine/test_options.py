"""Option strings as QEMU writes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgtool.errors import UsageError
from imgtool.image.names import option_value
from imgtool.machine.describe import describe
from imgtool.machine.host import Host
from imgtool.machine.options import devices, processor
from imgtool.machine.options.network import parse_network
from imgtool.machine.options.storage import parse_drive
from imgtool.machine.options.text import pairs, split
from imgtool.machine.options.words import from_words
from imgtool.machine.values.devices import (
    Audio,
    Balloon,
    Boot,
    CharDevice,
    CloudInit,
    Display,
    MachineType,
    Rng,
    Rtc,
    Share,
    Tpm,
    Vsock,
    Watchdog,
)
from imgtool.machine.values.network import Address, Bridge, Dgram, Nat, Passt, Socket, Stream, Tap, User, VhostUser
from imgtool.machine.values.processor import (
    Cpu,
    Hugepages,
    Memory,
    Numa,
    NumaCpu,
    NumaDistance,
    NumaHmatCache,
    NumaHmatLb,
    NumaNode,
    Smp,
)
from imgtool.machine.values.storage import Drive, Throttle

MakeHost = Callable[..., Host]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a,b", ["a", "b"]),
        ("a,,b", ["a,b"]),
        ("a,,,b", ["a,", "b"]),
        (",,,,", [",,"]),
        ("", [""]),
        ("a,", ["a", ""]),
        ("x=,y", ["x=", "y"]),
    ],
)
def test_a_comma_inside_a_value_is_doubled(text: str, parts: list[str]) -> None:
    assert split(text) == parts


@given(st.lists(st.text(min_size=1).map(lambda text: text.strip(",") or "x"), min_size=1))
def test_what_was_joined_with_doubled_commas_comes_apart_again(values: list[str]) -> None:
    assert split(",".join(option_value(value) for value in values)) == values


def test_a_bare_key_is_on_and_with_no_before_it_off() -> None:
    keys = ("server", "wait")
    assert pairs("-x", "server,nowait", first=None, keys=keys) == [("server", "on"), ("wait", "off")]


CASES: list[tuple[Callable[[str], Any], str, Any]] = [
    (processor.parse_machine, "q35,smm=on", MachineType(type="q35", properties={"smm": "on"})),
    (processor.parse_machine, "vmport=off,type=pc", MachineType(type="pc", properties={"vmport": "off"})),
    (processor.parse_cpu, "max", Cpu(model="max")),
    (processor.parse_cpu, "+aes", Cpu(features=("+aes",))),
    (
        processor.parse_cpu,
        "EPYC,+aes,-svm,enforce,model-id=A,,B",
        Cpu(model="EPYC", features=("+aes", "-svm"), properties={"enforce": "on", "model-id": "A,B"}),
    ),
    (processor.parse_smp, "4", Smp(cpus=4)),
    (processor.parse_smp, "cpus=8,sockets=2,maxcpus=0x10", Smp(cpus=8, sockets=2, maxcpus=16)),
    (processor.parse_memory, "512", Memory(size=512 << 20)),
    (processor.parse_memory, "1.5G", Memory(size=3 << 29)),
    (processor.parse_memory, "size=2G,slots=2,maxmem=8G", Memory(size=2 << 30, slots=2, maxmem=8 << 30)),
    (processor.parse_hugepages, "", Hugepages()),
    (processor.parse_hugepages, "/mnt,page-size=1G,share=on", Hugepages(path="/mnt", page_size=1 << 30, share=True)),
    (parse_drive, "/a,,b.qcow2", Drive(file="/a,b.qcow2")),
    (
        parse_drive,
        "file=/a,format=raw,if=scsi,bus=1,unit=2,media=cdrom,read-only=on,snapshot=off,id=x",
        Drive(
            file="/a",
            format="raw",
            interface="scsi",
            bus=1,
            unit=2,
            media="cdrom",
            readonly=True,
            snapshot=False,
            id="x",
        ),
    ),
    (
        parse_drive,
        "if=virtio,bps=1M,throttling.iops-read=5,iops_rd_max=9,throttling.group=g,file=",
        Drive(interface="virtio", throttling=Throttle(bps=1 << 20, iops_rd=5, iops_rd_max=9, group="g")),
    ),
    (parse_network, "none", None),
    (parse_network, "user", User()),
    (
        parse_network,
        "user,hostfwd=tcp::1-:2,hostfwd=tcp::3-:4,net=10.1.0.0/16,restrict=on,model=e1000,macaddr=52:54:00:00:00:01",
        User(
            hostfwd=("tcp::1-:2", "tcp::3-:4"),
            net="10.1.0.0/16",
            restrict=True,
            model="e1000",
            mac="52:54:00:00:00:01",
        ),
    ),
    (parse_network, "bridge,br=br1", Bridge(br="br1")),
    (parse_network, "bridge,br1", Bridge(br="br1")),
    (parse_network, "tap,tap0,vhost=on,queues=2", Tap(ifname="tap0", vhost=True, queues=2)),
    (parse_network, "nat,lab", Nat(net="lab")),
    (parse_network, "passt,hostfwd=tcp::1-:2", Passt(hostfwd=("tcp::1-:2",))),
    (parse_network, "socket,mcast=230.0.0.1:5", Socket(mcast="230.0.0.1:5")),
    (
        parse_network,
        "stream,server=on,addr.type=unix,addr.path=/s,addr=0x5",
        Stream(server=True, address=Address(type="unix", path="/s"), addr="0x5"),
    ),
    (
        parse_network,
        "dgram,local.type=fd,local.str=7,remote.type=inet,remote.host=h,remote.port=5",
        Dgram(local=Address(type="fd", fd="7"), remote=Address(type="inet", host="h", port="5")),
    ),
    (parse_network, "vhost-user,/s,server", VhostUser(path="/s", server=True)),
    (devices.parse_boot, "dc", Boot(order="dc")),
    (
        devices.parse_boot,
        "once=n,menu,splash=/s.bmp,splash-time=5,reboot-timeout=-1,strict=on",
        Boot(once="n", menu=True, splash="/s.bmp", splash_time=5, reboot_timeout=-1, strict=True),
    ),
    (devices.parse_display, "none", Display(type="none")),
    (devices.parse_display, "gtk,gl=es,full-screen=on", Display(type="gtk", gl="es", full_screen=True)),
    (devices.parse_display, "vnc", Display(type="vnc")),
    (devices.parse_display, "vnc=:1", Display(type="vnc", display=1)),
    (
        devices.parse_display,
        "vnc=[::1]:1,password=off",
        Display(type="vnc", address="::1", display=1, password=False),
    ),
    (devices.parse_display, "vnc=unix:/a,,b", Display(type="vnc", path="/a,b")),
    (devices.parse_display, "spice,port=5930,addr=0.0.0.0", Display(type="spice", port=5930, address="0.0.0.0")),
    (devices.parse_display, "vnc=:1,websocket", Display(type="vnc", display=1, websocket=True)),
    (devices.parse_display, "vnc=:1,websocket=5799", Display(type="vnc", display=1, websocket=5799)),
    (devices.parse_display, "gtk,zoom-to-fit", Display(type="gtk", zoom_to_fit=True)),
    (devices.parse_rng, "", Rng()),
    (devices.parse_rng, "/dev/hwrng,max-bytes=1k", Rng(source="/dev/hwrng", max_bytes=1024)),
    (devices.parse_balloon, "deflate-on-oom", Balloon(deflate_on_oom=True)),
    (devices.parse_vsock, "5", Vsock(cid=5)),
    (devices.parse_watchdog, "ib700,action=none", Watchdog(model="ib700", action="none")),
    (
        devices.parse_share,
        "/srv,tag=t,security_model=none,readonly",
        Share(path="/srv", tag="t", security_model="none", readonly=True),
    ),
    (
        devices.parse_share,
        "local,path=/srv,mount_tag=t,security_model=mapped,multidevs=remap",
        Share(path="/srv", tag="t", security_model="mapped", multidevs="remap"),
    ),
    (devices.parse_rtc, "localtime,clock=vm", Rtc(base="localtime", clock="vm")),
    (devices.parse_audio, "pa,model=ac97", Audio(driver="pa", model="ac97")),
    (devices.parse_tpm, "tpm-tis", Tpm(model="tpm-tis")),
    (devices.parse_cloud_init, "/u,ssh-key=/a,ssh-key=/b", CloudInit(user_data="/u", ssh_keys=("/a", "/b"))),
    (lambda text: devices.parse_port("--serial", text), "mon:stdio", CharDevice(type="stdio")),
    (
        lambda text: devices.parse_port("--serial", text),
        "unix:/s,server,nowait",
        CharDevice(type="unix", path="/s", server=True, wait=False),
    ),
    (
        lambda text: devices.parse_port("--serial", text),
        "telnet::44,server=on",
        CharDevice(type="tcp", address=":44", server=True, telnet=True),
    ),
    (lambda text: devices.parse_port("--serial", text), "/dev/ttyUSB0", CharDevice(type="host", path="/dev/ttyUSB0")),
]


@pytest.mark.parametrize(("parse", "text", "expected"), CASES, ids=[text or "empty" for _, text, _ in CASES])
def test_an_option_string_becomes_its_struct(parse: Callable[[str], Any], text: str, expected: Any) -> None:
    assert parse(text) == expected


def test_what_numa_tells_of_memory() -> None:
    found = processor.parse_numa(
        [
            "node,cpus=0",
            "hmat-lb,initiator=0,target=1,hierarchy=first-level,data-type=read-bandwidth,bandwidth=200M",
            "hmat-cache,node-id=1,size=10k,level=2,associativity=complex,policy=write-through,line=64",
        ]
    )
    assert found.hmat_lb == (
        NumaHmatLb(initiator=0, target=1, hierarchy="first-level", data_type="read-bandwidth", bandwidth=200 << 20),
    )
    assert found.hmat_cache == (
        NumaHmatCache(node_id=1, size=10240, level=2, associativity="complex", policy="write-through", line=64),
    )


def test_numa_options_are_read_together() -> None:
    found = processor.parse_numa(
        [
            "node,cpus=0-1,cpus=4,mem=512,host-nodes=0,policy=bind",
            "dist,src=0,dst=1,val=20",
            "cpu,node-id=1,socket-id=1",
        ]
    )
    node = NumaNode(cpus=("0-1", "4"), mem=512 << 20, host_nodes=("0",), policy="bind")
    assert found == Numa(
        nodes=(node,), distances=(NumaDistance(src=0, dst=1, val=20),), cpus=(NumaCpu(node_id=1, socket_id=1),)
    )


@pytest.mark.parametrize(
    ("parse", "text", "message", "hint"),
    [
        (
            devices.parse_display,
            "gtk,zoom=on",
            "--display gtk has no 'zoom'",
            "gtk knows: full-screen, show-cursor, ",
        ),
        (devices.parse_display, "curses,x=y", "--display curses has no 'x'", "--display curses takes nothing more"),
        (devices.parse_display, "vnc,websocket=yess", "websocket is on or off, not 'yess'", ""),
        (parse_drive, "a,cahe=none", "--drive has no 'cahe'", "did you mean cache?"),
        (parse_drive, "a,if=ide,if=scsi", "--drive says if twice: ide and scsi", ""),
        (parse_drive, "a,cache=fast", "cache cannot be 'fast'", "unsafe"),
        (parse_drive, "a,readonly=perhaps", "readonly is on or off", ""),
        (parse_drive, "a,cyls=0", "cyls is at least 1, not 0", ""),
        (parse_drive, "a,bps=much", "'much' is not a size", "write a number"),
        (parse_drive, "a,,", "", None),
        (parse_network, "user,hostfwrd=x", "--network user has no 'hostfwrd'", "did you mean hostfwd?"),
        (parse_network, "usr", "--network has no 'usr'", "did you mean user?"),
        (parse_network, "lab", "--network has no 'lab'", "one made by `imgtool net` is nat,NAME"),
        (parse_network, "none,model=e1000", "takes nothing more", ""),
        (parse_network, "vhost-user", "needs path=", ""),
        (processor.parse_smp, "4,,cores=2", "--smp", ""),
        (processor.parse_cpu, "max,+a,", "nothing stands between", ""),
        (processor.parse_machine, "pc,acpi", "'acpi' has no value", "acpi=on"),
        (devices.parse_display, "sdl=5", "takes no '5'", "vnc=ADDRESS:N"),
        (lambda text: devices.parse_port("--serial", text), "file,path=x", "file does not say where", "file:PATH"),
        (lambda text: devices.parse_port("--serial", text), "tcp,server", "tcp does not say where", "127.0.0.1:4444"),
        (devices.parse_vsock, "9999999999", "at most 4294967294", ""),
    ],
)
def test_a_wrong_word_is_named_and_the_right_one_too(
    parse: Callable[[str], Any], text: str, message: str, hint: str | None
) -> None:
    if hint is None:
        assert parse(text) == Drive(file="a,")
        return
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


def test_file_names_are_absolute_from_the_given_folder() -> None:
    machine = from_words(
        {
            "kernel": "k",
            "drive": ["a.qcow2"],
            "network": ["tap,script=no,downscript=down.sh", "stream,addr.type=unix,addr.path=s"],
            "serial": ["file:out.log"],
            "cloud-init": "u,ssh-key=../k.pub",
            "boot": "splash=x.bmp",
        },
        "/here",
    )
    document = msgspec.json.decode(msgspec.json.encode(machine))
    assert document == {
        "kernel": "/here/k",
        "drive": [{"file": "/here/a.qcow2"}],
        "network": [
            {"type": "tap", "script": "no", "downscript": "/here/down.sh"},
            {"type": "stream", "address": {"type": "unix", "path": "/here/s"}},
        ],
        "serial": [{"type": "file", "path": "/here/out.log"}],
        "cloud-init": {"user-data": "/here/u", "ssh-key": ["/k.pub"]},
        "boot": {"splash": "/here/x.bmp"},
    }


def test_a_machine_in_words(make_host: MakeHost) -> None:
    machine = from_words(
        {
            "name": "web",
            "smp": "4,threads=2",
            "memory": "2G,slots=2,maxmem=4G",
            "numa": ["node,cpus=0-3"],
            "drive": ["/d/a.qcow2,if=virtio"],
            "cdrom": "/d/b.raw",
            "ephemeral": True,
            "network": ["user,hostfwd=tcp::2222-:22,mac=52:54:00:00:00:01"],
        }
    )
    assert describe(machine, make_host()) == [
        ("machine", "pc"),
        ("accel", "tcg"),
        ("cpu", "max"),
        ("smp", "4 logical CPUs: 1 socket × 2 cores × 2 threads"),
        ("memory", "2G, up to 4G in 2 slots"),
        ("numa", "2G, CPUs 0-3"),
        ("firmware", "the machine's own BIOS"),
        ("drive", "cdrom: ide CD-ROM, bus 1, unit 0, /d/b.raw, read-only"),
        ("drive", "drive0: virtio disk, bus 0, unit 0, /d/a.qcow2, writes thrown away"),
        ("network", "net0: user, virtio-net-pci, 52:54:00:00:00:01, forwards tcp::2222-:22"),
        ("display", "none, VGA std"),
    ]


@pytest.mark.parametrize("words", [{"smp": 5.5}, {"memory": "much"}, {"network": 3}, {"kernel": ["a"]}])
def test_a_setting_of_another_type_is_misuse(words: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        from_words(words)
