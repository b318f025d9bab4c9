"""Displays, firmware and the small devices as a user types them, and what QEMU answers about each."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from msgspec.structs import replace

from imgtool.machine.options.words import from_words
from imgtool.machine.outside import usual_display
from imgtool.qemu.capabilities import Capabilities
from tests.machine.paused import Typed, free_port
from tests.publish.registries import make_certificates

pytestmark = pytest.mark.matrix


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


def certificates_in(folder: str) -> None:
    """As QEMU wants them."""
    made = make_certificates(Path(folder))
    names = {"ca-cert.pem": made.ca, "server-cert.pem": made.certificate, "server-key.pem": made.key}
    for name, file in names.items():
        file.rename(os.path.join(folder, name))


def test_screens_by_tls_and_for_browsers(typed: Typed, real_capabilities: Capabilities) -> None:
    assert "--display tls-creds: {nothing} does not exist".format_map(typed.files) in typed.refused(
        "--display vnc,tls-creds={nothing}"
    )
    folder = typed.files["folder"]
    assert f"{folder}/ca-cert.pem does not exist" in typed.refused("--display vnc,tls-creds={folder}")
    certificates_in(folder)
    vm = typed("--display vnc=:79,tls-creds={folder},websocket=on")
    (found,) = vm.ask("query-vnc-servers")
    assert (found["auth"], found["vencrypt"]) == ("vencrypt", "x509-vnc")
    places = {(one["websocket"], one["host"], one["service"]) for one in found["server"]}
    assert places == {(False, "127.0.0.1", "5979"), (True, "127.0.0.1", "5779")}
    assert (vm.get("/objects/vnc-tls", "dir"), vm.get("/objects/vnc-tls", "verify-peer")) == (folder, False)
    if real_capabilities.device("qxl-vga") is None:
        return
    port = free_port()
    vm = typed(f"--display spice,tls-port={port},tls-creds={{folder}},usb-redir=2")
    spice = vm.ask("query-spice")
    assert (spice["tls-port"], spice.get("port"), spice["auth"]) == (port, None, "spice")
    assert vm.device("usb-redir1-device", "type", "chardev") == ["usb-redir", "usb-redir1"]
    assert vm.chardevs["usb-redir1"] == "spicevmc"


def test_what_no_display_here_can_show_is_refused(
    typed: Typed, real_capabilities: Capabilities, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert typed("--display none").ask("query-display-options")["type"] == "none"
    typed.close()
    for kind in ("gtk", "sdl"):
        reason = "opens a window" if kind in real_capabilities.displays else f"this QEMU has no {kind} display"
        assert reason in typed.refused(f"--display {kind}")
    if not list(Path("/dev").glob("dri/renderD*")):
        assert re.search("egl-headless (draws with a GPU|display)", typed.refused("--display egl-headless"))


@pytest.mark.parametrize(
    ("line", "device", "reason"),
    [
        ("--network user,model=igb", "igb", "this QEMU has no network card 'igb'"),
        ("--machine q35 --audio none,model=virtio", "virtio-sound-pci", "this QEMU has no virtio sound card"),
        ("--vga qxl", "qxl-vga", "this QEMU was built without --vga qxl"),
        ("--machine q35,cxl=off", "cxl-type3", "machine q35 has no property 'cxl'"),
    ],
)
def test_what_came_with_a_later_qemu_is_refused_by_an_earlier_one(
    typed: Typed, real_capabilities: Capabilities, line: str, device: str, reason: str
) -> None:
    if real_capabilities.device(device) is None:
        assert reason in typed.refused(f"{line} {{disk}}")
    else:
        assert typed(line).ask("query-status")["running"] is False


def test_a_window_is_what_shows_a_machine_without_a_terminal(
    real_capabilities: Capabilities, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = replace(real_capabilities, displays=("none", "sdl", "gtk"))
    monkeypatch.setenv("DISPLAY", ":0")
    elsewhere, here = from_words({"serial": ["null"]}), from_words({"serial": ["stdio"]})
    assert usual_display(elsewhere, found, foreground=True) == "gtk"
    assert usual_display(elsewhere, found, foreground=False) == "none"
    assert usual_display(here, found, foreground=True) == "none"
    assert usual_display(elsewhere, replace(found, displays=("none", "curses")), foreground=True) == "none"
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert usual_display(elsewhere, found, foreground=True) == "none"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("--vga vmwar", "--vga cannot be 'vmwar'\nhint: did you mean vmware?"),
        ("--kernel {nothing}", "--kernel: {nothing} does not exist"),
        ("--share {nothing}", "--share: {nothing} does not exist"),
        ("--bios {nothing}", "--bios: {nothing} does not exist"),
        ("--boot menu=on,splash={nothing}", "--boot splash: {nothing} does not exist"),
        ("--network user,tftp={nothing}", "--network user tftp: {nothing} does not exist"),
        ("--rng={nothing}", "--rng: {nothing} does not exist"),
        (
            "--serial file:{nothing}/x",
            "--serial file: {nothing}/x cannot be made: {nothing} does not exist\nhint: mkdir",
        ),
        ("--serial unix:{disk0}/x", "--serial unix: {disk0}/x cannot be made: {disk0} is not a folder"),
        ("--run-as no-such-user", "--run-as no-such-user: this host has no such user\nhint: `getent passwd`"),
        ("--drive {disk},cahce=none", "--drive has no 'cahce'\nhint: did you mean cache?\n"),
        ("--nic-model e1001", "has no network card 'e1001'\nhint: did you mean e1000?"),
        ("--memory 90T", "--memory 90T is more than this host has"),
        ("--machine q35 --tpm=tpm-tsi", "model cannot be 'tpm-tsi'\nhint: did you mean tpm-tis?"),
    ],
)
def test_a_slip_is_said_before_qemu_starts(typed: Typed, line: str, reason: str) -> None:
    assert reason.format_map(typed.files) in typed.run(f"{line} {{disk0}}", base="--memory 64M")[1]
    assert typed.names() == []


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


def test_uefi_variables_in_a_file_of_the_users_own(typed: Typed) -> None:
    kept, other = (os.path.join(typed.files.folder, name) for name in ("vars.fd", "fresh"))
    found = typed(f"--machine q35 --uefi --uefi-vars {kept}").nodes["uefi-vars"]
    assert (found["drv"], found["file"]) == ("raw", kept)
    typed.close()
    assert os.path.getsize(kept) > 128 << 10, "a copy of the template"
    os.rename(kept, f"{kept}.of-old")
    assert typed(f"--machine q35 --uefi --uefi-vars {kept}.of-old --name old").nodes["uefi-vars"]["drv"] == "raw"
    assert typed(f"--machine q35 --uefi --uefi-vars {other} --name new").nodes["uefi-vars"]["drv"] == "qcow2"
    assert "add --uefi" in typed.run("--uefi-vars {other}")[1]


@pytest.mark.parametrize("model", ["tpm-crb", "tpm-tis"])
def test_a_tpm_by_swtpm(typed: Typed, model: str) -> None:
    vm = typed(f"--machine q35 --tpm={model} --name tpm")
    (found,) = vm.ask("query-tpm")
    assert (found["id"], found["model"], found["options"]["type"]) == ("tpm0", model, "emulator")
    assert {"tpm.pid", "tpm.sock"} <= set(os.listdir(typed.vm("tpm").path))
    assert os.path.isdir(os.path.join(typed.files.folder, "imgtool/vm/tpm/tpm"))
    state = os.path.join(typed.files.folder, f"{model},state")
    typed(f"--machine q35 --tpm={model},state={state.replace(',', ',,')} --name comma").ask("query-tpm")
    assert os.listdir(state)
    typed.close()
    assert "tpm-state" not in os.listdir(typed.vm("comma").path)


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
        "--share {folder},tag=data,readonly=on,security_model=none "
        "--share {folder2},security_model=mapped,multidevs=remap"
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
