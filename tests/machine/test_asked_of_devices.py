"""Networks, displays, firmware and the small devices as a user types them, and what QEMU answers about each."""

from __future__ import annotations

import os
import re
import socket
import struct
import threading
from contextlib import closing
from pathlib import Path
from typing import ClassVar

import pytest

from imgtool.machine.checks.network import SMBD
from imgtool.machine.compile.networks import NO_CARDS, stable_mac
from imgtool.qemu.capabilities import Capabilities
from tests.machine.paused import Paused, Typed

pytestmark = pytest.mark.matrix


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def info(vm: Paused, name: str) -> str:
    """The line of a network in `info network`."""
    return next(line for line in vm.told("info network").splitlines() if re.match(rf"[ \\]*{name}: ", line))


def test_a_user_network_with_everything(typed: Typed) -> None:
    tcp, udp = free_port(), free_port()
    vm = typed(
        f"--name box --network user,hostfwd=tcp::{tcp}-:22,hostfwd=udp:0.0.0.0:{udp}-10.9.0.40:53,"
        "guestfwd=tcp:10.9.0.100:80-cmd:cat,net=10.9.0.0/24,host=10.9.0.9,dns=10.9.0.8,"
        "dhcpstart=10.9.0.30,hostname=guest,domainname=example.org,dnssearch=a.example,dnssearch=b.example,"
        "tftp={folder},bootfile=/boot.bin,tftp-server-name=files,restrict=off,ipv6-net=fd09::/64,ipv6-dns=fd09::8 "
        "--network user,restrict=on,ipv6=off"
    )
    told = vm.told("info usernet")
    assert re.search(rf"TCP\[HOST_FORWARD\] +\d+ +127\.0\.0\.1 +{tcp} +10\.9\.0\.30 +22 ", told)
    assert re.search(rf"UDP\[HOST_FORWARD\] +\d+ +(\*|0\.0\.0\.0) +{udp} +10\.9\.0\.40 +53 ", told)
    assert "net=10.9.0.0,restrict=off" in info(vm, "net0")
    assert "net=10.0.2.0,restrict=on" in info(vm, "net1")
    assert vm.device("nic0", "mac", "netdev") == [stable_mac("box", 0), "net0"]
    assert vm.device("nic1", "mac", "netdev") == [stable_mac("box", 1), "net1"]


def test_a_folder_over_smb_needs_smbd(typed: Typed) -> None:
    if os.path.exists(SMBD):
        assert "10.0.2.4" in typed("--network user,smb={folder}").told("info usernet")
    else:
        assert "smbd, which was not found" in typed.refused("--network user,smb={folder}")


def test_guests_joined_over_sockets_of_every_kind(typed: Typed, real_capabilities: Capabilities) -> None:
    port, udp = free_port(), free_port()
    first = typed(
        f"--network socket,listen=127.0.0.1:{port} "
        f"--network socket,udp=127.0.0.1:{udp},localaddr=127.0.0.1:{udp + 1} "
        "--network socket,mcast=230.9.0.1:4711,localaddr=127.0.0.1,id=many"
    )
    second = typed(f"--network socket,connect=127.0.0.1:{port}")
    assert "connection from 127.0.0.1" in info(first, "net0")
    assert f"127.0.0.1:{port}" in info(second, "net0")
    assert f"udp=127.0.0.1:{udp}" in info(first, "net1")
    assert "mcast=230.9.0.1:4711" in info(first, "many")
    stream = "--network stream,addr.type=unix,addr.path={wire},server="
    dgram = "--network dgram,local.type=unix,local.path={here},remote.type=unix,remote.path={there}"
    if "stream" not in real_capabilities.netdevs:
        typed.close()
        assert "this QEMU has no stream network; QEMU 7.2 brought it" in typed.refused(f"{stream}on")
        assert "this QEMU has no dgram network; QEMU 7.2 brought it" in typed.refused(dgram)
        return
    third = typed(f"{stream}on {dgram}")
    fourth = typed(f"{stream}off")
    assert typed.files["wire"] in info(fourth, "net0")
    assert "unix:" in info(third, "net0")
    assert typed.files["here"] in info(third, "net1")


def test_a_stream_that_connects_again(typed: Typed, real_capabilities: Capabilities) -> None:
    line = "--network stream,addr.type=unix,addr.path={nobody},server=off,reconnect=7"
    keys = real_capabilities.netdev_keys.get("stream", ())
    if {"reconnect", "reconnect-ms"} & set(keys):
        assert "net0" in typed(line).told("info network")
    else:
        said = typed.refused(line)
        assert "cannot reconnect" in said or "no stream network" in said


def test_passt_beside_qemu(typed: Typed, real_capabilities: Capabilities) -> None:
    line = f"--network passt,hostfwd=tcp::{free_port()}-:22,ipv6=off"
    if "stream" not in real_capabilities.netdevs:
        assert "this QEMU has no stream network; QEMU 7.2 brought it" in typed.refused(line)
        return
    vm = typed(line)
    assert typed.vm("vm0").file("net0.sock") in info(vm, "net0")
    assert "net0.pid" in os.listdir(typed.vm("vm0").path)


class Switch(threading.Thread):
    """As much of a vhost-user switch as QEMU needs to start. QEMU docs: interop/vhost-user."""

    ANSWERED: ClassVar = {1: 1 << 30, 15: 1, 17: 4}
    """GET_FEATURES (protocol features), GET_PROTOCOL_FEATURES (MQ), GET_QUEUE_NUM."""

    def __init__(self, path: str) -> None:
        super().__init__(daemon=True)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        self.heard: set[int] = set()

    def run(self) -> None:
        with self.listener:
            connection, _ = self.listener.accept()
        with connection:
            while header := connection.recv(12, socket.MSG_WAITALL):
                request, flags, size = struct.unpack("<III", header)
                connection.recv(size, socket.MSG_WAITALL) if size else b""
                self.heard.add(request)
                if request in self.ANSWERED:
                    connection.sendall(struct.pack("<IIIQ", request, 5, 8, self.ANSWERED[request]))
                elif flags & 8:
                    connection.sendall(struct.pack("<IIIQ", request, 5, 8, 0))


def test_a_switch_in_another_process_shares_the_guests_memory(typed: Typed) -> None:
    switch = Switch(typed.files["switch"])
    switch.start()
    vm = typed("--network vhost-user,path={switch},queues=2,mac=52:54:00:00:00:07")
    assert "vhost-user" in info(vm, "net0")
    assert vm.chardevs["net0-switch"].startswith("unix:")
    (backend,) = vm.ask("query-memdev")
    assert (backend["id"], backend["size"]) == ("ram0", 64 << 20)
    assert vm.get("/objects/ram0", "share") is True
    assert vm.get("/machine", "memory-backend") in ("ram0", "/objects/ram0")
    assert vm.device("nic0", "mq", "vectors", "mac") == [True, 6, "52:54:00:00:00:07"]
    assert {1, 15, 17} <= switch.heard


def test_every_network_card(typed: Typed, real_capabilities: Capabilities) -> None:
    cards = [card for card in real_capabilities.devices_in("Network") if card.user_creatable and card.bus == "PCI"]
    names = sorted(card.name for card in cards if "virtio" not in card.name and card.name not in NO_CARDS)
    # The functions of an igb take numbers after its own, which run out for one in a late slot.
    models = ["virtio", *[name for name in names if name == "igb"], "usb-net", "ne2k_isa"]
    models += [name for name in names if name != "igb"]
    lines = " ".join(f"--network user,model={model}" for model in models)
    vm = typed(f"--machine q35 {lines}")
    found = [vm.device(f"nic{place}", "type")[0] for place in range(len(models))]
    assert found == ["virtio-net-pci", *models[1:]]
    assert len({vm.device(f"nic{place}", "mac")[0] for place in range(len(models))}) == len(models)
    assert {"e1000", "e1000e", "rtl8139", "vmxnet3", "pcnet", "i82551"} <= set(models)


def test_none_is_no_network_and_silence_is_one(typed: Typed) -> None:
    assert "nic0" not in typed("--network none").pci
    assert "nic0" in typed("{disk}", base="--memory 64M").pci


@pytest.mark.parametrize(
    ("vga", "audio", "ids", "sound"),
    [
        ("std", "hda", (0x1234, 0x1111), ("intel-hda", "hda-duplex")),
        ("cirrus", "ac97", (0x1013, 0xB8), ("AC97", None)),
        ("vmware", "es1370", (0x15AD, 0x405), ("ES1370", None)),
        ("virtio", "usb", (0x1AF4, 0x1050), ("usb-audio", None)),
        ("qxl", "sb16", (0x1B36, 0x100), ("sb16", None)),
        ("none", "virtio", None, ("virtio-sound-pci", None)),
    ],
)
def test_graphics_and_sound_cards(
    typed: Typed,
    real_capabilities: Capabilities,
    vga: str,
    audio: str,
    ids: tuple[int, int] | None,
    sound: tuple[str, str | None],
) -> None:
    line = f"--machine q35 --vga {vga} --audio none,model={audio} --keymap de"
    if vga == "qxl" and real_capabilities.device("qxl-vga") is None:
        assert "this QEMU was built without --vga qxl" in typed.refused(line)
        line = line.replace("--vga qxl", "--vga none")
        ids = None
    if real_capabilities.device(sound[0]) is None:
        assert "this QEMU has no virtio sound card" in typed.refused(line)
        return
    vm = typed(line)
    devices = [item for bus in vm.ask("query-pci") for item in bus["devices"]]
    shown = [
        (item["id"]["vendor"], item["id"]["device"]) for item in devices if item["class_info"]["class"] >> 8 == 3
    ]
    assert shown == ([ids] if ids else [])
    assert vm.device("sound0", "type") == [sound[0]]
    if sound[1]:
        assert vm.device("sound0-codec", "type", "audiodev") == [sound[1], "audio0"]
    else:
        assert vm.device("sound0", "audiodev") == ["audio0"]


def test_vnc_in_every_way(typed: Typed) -> None:
    for line, host, service, auth in (
        ("vnc", "127.0.0.1", None, "vnc"),
        ("vnc=127.0.0.1:77", "127.0.0.1", "5977", "vnc"),
        ("vnc=unix:{vncsock}", "", "{vncsock}", "vnc"),
        ("vnc=:78,password=off,address=::1", "::1", "5978", "none"),
    ):
        vm = typed(f"--display {line}")
        found = vm.ask("query-vnc")
        assert (found["enabled"], found["host"], found["auth"]) == (True, host, auth)
        assert service is None or found["service"] == service.format_map(typed.files)
    secret = Path(typed.vm("vm0").file("vnc.secret"))
    assert secret.stat().st_mode & 0o777 == 0o600
    assert len(secret.read_text()) == 8
    said = vm.ask("query-vnc-servers")
    assert len(said) == 1


def test_spice_on_a_socket_or_a_port_with_a_password(typed: Typed, real_capabilities: Capabilities) -> None:
    if real_capabilities.device("qxl-vga") is None:
        assert "this QEMU has no SPICE" in typed.refused("--display spice")
        return
    vm = typed("--display spice --vga qxl")
    found = vm.ask("query-spice")
    assert (found["enabled"], found["auth"]) == (True, "spice")
    assert vm.chardevs["vdagent"]
    assert Path(typed.vm("vm0").file("spice.sock")).is_socket()
    port = free_port()
    found = typed(f"--display spice,port={port},password=off").ask("query-spice")
    assert (found["host"], found["port"], found["auth"]) == ("127.0.0.1", port, "none")


def test_what_no_display_here_can_show_is_refused(typed: Typed, real_capabilities: Capabilities) -> None:
    assert typed("--display none").ask("query-display-options")["type"] == "none"
    typed.close()
    for kind in ("gtk", "sdl"):
        if kind not in real_capabilities.displays:
            assert f"this QEMU has no {kind} display" in typed.refused(f"--display {kind}")
    if not list(Path("/dev").glob("dri/renderD*")):
        assert re.search("egl-headless (draws with a GPU|display)", typed.refused("--display egl-headless"))


def test_uefi_keeps_its_variables_and_secure_boot_has_smm(typed: Typed) -> None:
    vm = typed("--machine q35 --uefi --name plain")
    nodes = vm.nodes
    assert nodes["uefi-code"]["ro"]
    assert (nodes["uefi-vars"]["drv"], nodes["uefi-vars"]["ro"]) == ("qcow2", False)
    assert nodes["uefi-vars"]["file"].endswith("/plain/uefi-vars.qcow2")
    assert [vm.get("/machine", f"pflash{chip}") for chip in range(2)] == ["uefi-code", "uefi-vars"]
    vm = typed("--machine q35 --secure-boot --name safe")
    assert vm.get("/machine", "smm") == "on"
    assert vm.get("/machine/system.flash0", "secure") is True
    assert vm.nodes["uefi-vars"]["file"].endswith("/safe/uefi-vars.qcow2")


@pytest.mark.parametrize("model", ["tpm-crb", "tpm-tis"])
def test_a_tpm_by_swtpm(typed: Typed, model: str) -> None:
    vm = typed(f"--machine q35 --tpm={model} --name tpm")
    (found,) = vm.ask("query-tpm")
    assert (found["id"], found["model"], found["options"]["type"]) == ("tpm0", model, "emulator")
    assert {"tpm.pid", "tpm.sock"} <= set(os.listdir(typed.vm("tpm").path))
    assert os.path.isdir(os.path.join(typed.files.folder, "imgtool/vm/tpm/tpm"))


def test_serial_and_parallel_ports_of_every_kind(typed: Typed) -> None:
    master, slave = os.openpty()
    ports = [free_port() for _ in range(2)]
    vm = typed(
        "--serial pty --serial file:{out} --serial unix:{here},wait=off "
        f"--serial tcp:127.0.0.1:{ports[0]},server=on "
        f"--parallel telnet:127.0.0.1:{ports[1]},server=on,wait=off --parallel null --parallel vc --display vnc"
    )
    found = vm.chardevs
    assert found["serial0"].startswith("pty:/dev/pts/")
    assert found["serial1"].startswith("file")
    assert Path(typed.files["out"]).exists()
    assert found["serial2"].startswith("disconnected:unix:")
    assert found["serial2"].endswith("here,server=on") or found["serial2"].endswith("here,server")
    assert f"tcp:127.0.0.1:{ports[0]},server" in found["serial3"]
    assert f"telnet:127.0.0.1:{ports[1]},server" in found["parallel0"]
    assert (found["parallel1"], found["parallel2"][:2]) == ("null", "vc")
    assert Path(typed.vm("vm0").file("serial1.log")).exists()
    vm = typed(f"--serial none --serial {os.ttyname(slave)}")
    assert os.path.basename(os.ttyname(slave)) in vm.chardevs["serial1"] or vm.chardevs["serial1"] == "serial"
    assert "serial0" not in vm.chardevs
    for end in (master, slave):
        os.close(end)


def test_the_small_devices(typed: Typed) -> None:
    vm = typed(
        "--machine q35 --rng=/dev/urandom,max-bytes=2K,period=250 --balloon=deflate-on-oom=on,free-page-reporting=on "
        "--agent --tablet --watchdog=i6300esb,action=pause --rtc 2026-01-31T12:00:00,clock=vm,driftfix=slew "
        "--share {folder},tag=data,readonly=on,security_model=none --share {folder2}"
    )
    assert vm.device("rng-device0", "max-bytes", "period") == [2048, 250]
    assert vm.get("/objects/rng0", "filename") == "/dev/urandom"
    assert vm.ask("query-balloon") == {"actual": 64 << 20}
    assert vm.device("balloon0", "deflate-on-oom", "free-page-reporting") == [True, True]
    assert "agent.sock" in vm.chardevs["agent"]
    assert vm.device("agent-port", "name") == ["org.qemu.guest_agent.0"]
    assert any(mouse["absolute"] for mouse in vm.ask("query-mice"))
    assert vm.device("watchdog0", "type") == ["i6300esb"]
    date = vm.get("/machine", "rtc-time")
    assert (date["tm_year"], date["tm_mon"], date["tm_mday"], date["tm_hour"]) == (126, 0, 31, 12)
    assert vm.device("share0-device", "mount_tag", "fsdev") == ["data", "share0"]
    assert vm.device("share1-device", "mount_tag", "fsdev") == ["folder2", "share1"]


def test_other_clocks_watchdogs_and_entropy(typed: Typed) -> None:
    vm = typed(
        "--rtc localtime --watchdog=ib700,action=none --rng --balloon --share {folder},security_model=mapped-file"
    )
    assert vm.device("watchdog0", "type") == ["ib700"]
    assert vm.get("/objects/rng0", "type") == "rng-builtin"
    assert vm.device("balloon0", "deflate-on-oom") == [False]
    assert "cannot be 'i6300es'" in typed.run("--watchdog=i6300es")[1]


def test_a_share_by_virtiofs(typed: Typed) -> None:
    vm = typed("--share {folder},type=virtiofs,tag=data")
    assert vm.device("share0-device", "type", "tag") == ["vhost-user-fs-pci", "data"]
    assert vm.chardevs["share0"].startswith("unix:")
    assert vm.get("/objects/ram0", "share") is True
    assert "share0.pid" in os.listdir(typed.vm("vm0").path)


def test_vsock_and_what_this_host_lacks_of_it(typed: Typed) -> None:
    if os.path.exists("/dev/vhost-vsock"):
        assert typed("--vsock 77").device("vsock0", "guest-cid") == [77]
    else:
        assert "/dev/vhost-vsock" in typed.refused("--vsock 77")


def test_a_seed_for_cloud_init_from_a_key_a_name_and_a_host_name(typed: Typed) -> None:
    Path(typed.files["key.pub"]).write_text("ssh-ed25519 AAAA me\n")
    typed.files["key"] = typed.files["key.pub"]
    vm = typed("--ssh-key {key} --user me --hostname web {disk}")
    seed = vm.drives["cloud-init"]["inserted"]
    assert (seed["file"], seed["ro"]) == (typed.vm("vm0").file("seed.iso"), True)
    content = Path(seed["file"]).read_bytes()
    assert b"ssh-ed25519 AAAA me" in content
    assert b"cidata" in content.lower()


def test_a_microvm_has_it_all_without_pci(typed: Typed) -> None:
    vm = typed("--machine microvm,rtc=on,pit=off --network user --rng --balloon --agent --share {folder} {disk}")
    kinds = {
        name: vm.device(name, "type")[0] for name in ("drive0", "nic0", "rng-device0", "balloon0", "share0-device")
    }
    assert set(kinds.values()) == {
        "virtio-blk-device",
        "virtio-net-device",
        "virtio-rng-device",
        "virtio-balloon-device",
        "virtio-9p-device",
    }
    assert [vm.get("/machine", name) for name in ("rtc", "pit")] == ["on", "off"]
