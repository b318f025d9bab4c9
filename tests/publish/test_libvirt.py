"""Machines as libvirt's domains: judged by libvirt's schema, defined and started by a libvirtd, and read back."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from imgtool.errors import CommandError, ConfigError, RefusedError
from imgtool.machine.config import Machine
from imgtool.machine.firmware import Found as Firmware
from imgtool.machine.host import Disk, Host, Link, Uefi
from imgtool.machine.layout import SHORTHANDS
from imgtool.machine.profile import parse_profile
from imgtool.machine.values.network import Nat
from imgtool.machine.values.storage import Drive
from imgtool.publish.libvirt.define import DefineRequest
from imgtool.publish.libvirt.domain import Domain, domain
from imgtool.publish.libvirt.prepare import Prepared, prepare
from imgtool.publish.libvirt.reading import read_domain
from imgtool.publish.libvirt.settle import settled
from imgtool.publish.libvirt.toml import to_toml
from imgtool.publish.libvirt.virsh import Connection, define_argv, dump_argv, is_remote
from imgtool.qemu.process import Completed, run
from imgtool.qemu.programs import Programs
from tests.conftest import Images
from tests.hugepages import reserved
from tests.publish.libvirtd import Libvirt, RootLibvirt
from tests.publish.test_kubevirt import DISK, alone
from tests.vhost_user import Switch

PROFILES = {
    "plain": "",
    "server": """
        uuid = "12345678-1234-1234-1234-123456789abc"
        machine = "q35"
        cpu = { model = "qemu64", features = ["+ssse3", "-svm"] }
        smp = { cpus = 2, maxcpus = 8, sockets = 2, dies = 1, cores = 2, threads = 2 }
        memory = { size = "256M", maxmem = "1G", slots = 4 }
        rng = { source = "/dev/urandom", max-bytes = 1024, period = 1000 }
        balloon = { deflate-on-oom = true, free-page-reporting = true }
        agent = true
        tablet = true
        watchdog = { model = "i6300esb", action = "poweroff" }
        rtc = { base = "utc", clock = "host", driftfix = "slew" }
        display = { type = "vnc", password = false, path = "FOLDER/vnc.sock" }
        vga = "virtio"
        keymap = "de"
        [[network]]
        type = "user"
        model = "e1000e"
        mac = "52:54:00:12:34:56"
        net = "10.1.0.0/24"
    """,
    "storage": """
        machine = "pc"
        memory = "128M"
        [[drive]]
        file = "FOLDER/ide.raw"
        format = "raw"
        if = "ide"
        cache = "writethrough"
        serial = "IDE1"
        [[drive]]
        file = "FOLDER/scsi.qcow2"
        if = "scsi"
        iothread = "io1"
        cache = "none"
        aio = "native"
        discard = "unmap"
        detect-zeroes = "unmap"
        werror = "stop"
        rerror = "report"
        serial = "SCSI 1"
        throttling = { bps-rd = 1048576, bps-wr = 2097152, bps-rd-max = 4194304, bps-rd-max-length = 5, iops = 100 }
        [[drive]]
        file = "FOLDER/usb.raw"
        format = "raw"
        if = "usb"
        readonly = true
        [[drive]]
        file = "FOLDER/floppy.raw"
        format = "raw"
        if = "floppy"
        [[drive]]
        file = "FOLDER/install.iso"
        format = "raw"
        if = "ide"
        media = "cdrom"
        [[drive]]
        if = "ide"
        media = "cdrom"
        [[drive]]
        file = "FOLDER/second.qcow2"
        if = "virtio"
        iothread = "io2"
        snapshot = true
        addr = "a"
        copy-on-read = true
    """,
    "nvme": """
        machine = "q35"
        memory = "128M"
        [[drive]]
        file = "FOLDER/nvme.qcow2"
        if = "nvme"
        serial = "NV1"
        cache = "none"
        discard = "unmap"
    """,
    "boot": """
        machine = "q35"
        memory = "128M"
        boot = { menu = true, splash-time = 3000, reboot-timeout = 5000 }
        [[drive]]
        file = "FOLDER/second.qcow2"
        if = "ide"
        bootindex = 2
        [[network]]
        type = "user"
        bootindex = 1
        [[network]]
        type = "user"
        model = "rtl8139"
    """,
    "kernel": """
        memory = "256M"
        kernel = "FOLDER/vmlinuz"
        initrd = "FOLDER/initrd"
        append = "console=ttyS0 quiet & <quoted> \\"x\\""
        network = []
        vga = "none"
        rtc = { base = "2030-01-31T12:00:00" }
        arguments = ["-global", "kvm-pit.lost_tick_policy=discard"]
        machine = { type = "pc", properties = { hpet = false } }
        serial = [
            { type = "file", path = "FOLDER/serial.log" },
            { type = "unix", path = "FOLDER/serial.sock", server = true },
            { type = "tcp", address = "127.0.0.1:0", server = true, telnet = true },
            { type = "null" },
        ]
        parallel = [{ type = "null" }]
    """,
    "uefi": """
        machine = "q35"
        memory = "256M"
        firmware = { uefi = true }
        boot = { order = "cn" }
        tpm = { model = "tpm-crb" }
    """,
    "secure": """
        machine = "q35"
        memory = "256M"
        firmware = { uefi = true, secure-boot = true, vars = "FOLDER/secure-vars.fd" }
        tpm = { model = "tpm-tis" }
        cpu = { model = "max", properties = { kvm = false } }
    """,
    "numa": """
        machine = "q35"
        smp = { cpus = 4, sockets = 2, cores = 2, threads = 1 }
        memory = "512M"
        [numa]
        node = [
            { nodeid = 0, cpus = ["0-1"], mem = "256M", host-nodes = ["0"], policy = "bind" },
            { nodeid = 1, cpus = ["2-3"], mem = "256M", host-nodes = ["0"], policy = "preferred" },
        ]
        dist = [
            { src = 0, dst = 0, val = 10 }, { src = 0, dst = 1, val = 20 },
            { src = 1, dst = 0, val = 20 }, { src = 1, dst = 1, val = 10 },
        ]
    """,
    "hmat": """
        machine = "q35"
        smp = { cpus = 2, sockets = 1, cores = 2, threads = 1 }
        memory = "512M"
        [numa]
        node = [
            { nodeid = 0, cpus = ["0-1"], mem = "256M" },
            { nodeid = 1, mem = "256M", initiator = 0 },
        ]
        hmat-lb = [
            { initiator = 0, target = 0, hierarchy = "memory", data-type = "access-latency", latency = 5 },
            { initiator = 0, target = 0, hierarchy = "memory", data-type = "access-bandwidth", bandwidth = "200M" },
            { initiator = 0, target = 0, hierarchy = "first-level", data-type = "access-latency", latency = 2 },
            { initiator = 0, target = 1, hierarchy = "memory", data-type = "read-latency", latency = 9 },
            { initiator = 0, target = 1, hierarchy = "memory", data-type = "write-bandwidth", bandwidth = "100M" },
        ]
        hmat-cache = [
            { node-id = 0, size = 10240, level = 1, associativity = "complex", policy = "write-through", line = 64 },
        ]
    """,
    "shared": """
        machine = "q35"
        memory = "128M"
        audio = { driver = "none", model = "ac97" }
        [[share]]
        path = "FOLDER/share"
        tag = "data"
        readonly = true
        [[share]]
        path = "FOLDER/share"
        tag = "more"
        security-model = "none"
        multidevs = "remap"
        [[network]]
        type = "user"
        [[network]]
        type = "socket"
        mcast = "230.0.0.1:22155"
    """,
    "drives": """
        machine = "pc"
        memory = "128M"
        vga = "cirrus"
        watchdog = { model = "ib700" }
        firmware = { bios = "/usr/share/seabios/bios.bin" }
        audio = { driver = "wav", path = "FOLDER/heard.wav", model = "es1370" }
        [[drive]]
        file = "FOLDER/ide.raw"
        format = "raw"
        if = "ide"
        cyls = 40
        heads = 16
        secs = 4
        trans = "lba"
        cache = "directsync"
        aio = "threads"
        werror = "enospc"
        rerror = "ignore"
        [[drive]]
        file = "FOLDER/scsi.qcow2"
        if = "scsi"
        unit = 5
        cache = "unsafe"
        aio = "io_uring"
        discard = "ignore"
        detect-zeroes = "on"
        werror = "ignore"
        rerror = "stop"
        throttling = { iops-rd = 100, iops-wr = 50, iops-rd-max = 200, iops-size = 4096, group = "limits" }
        [[drive]]
        file = "FOLDER/install.iso"
        format = "raw"
        if = "scsi"
        media = "cdrom"
        cache = "writeback"
    """,
    "shorthands": """
        machine = "pc"
        memory = "128M"
        vga = "vmware"
        boot = { order = "dca" }
        fda = "FOLDER/floppy.raw"
        hda = "FOLDER/second.qcow2"
        hdb = "FOLDER/scsi.qcow2"
        hdd = "FOLDER/nvme.qcow2"
        cdrom = "FOLDER/install.iso"
        serial = [{ type = "host", path = "/dev/null" }, { type = "pty" }]
        [[network]]
        type = "user"
        model = "vmxnet3"
    """,
}

OF_ROOT = {
    "host": """
        machine = "q35"
        smp = 2
        memory = "64M"
        hugepages = { page-size = "2M", share = true }
        [numa]
        node = [
            { nodeid = 0, cpus = ["0"], mem = "32M", host-nodes = ["0"], policy = "bind" },
            { nodeid = 1, cpus = ["1"], mem = "32M", host-nodes = ["0"], policy = "interleave" },
        ]
        [[network]]
        type = "bridge"
        br = "br-it"
        [[network]]
        type = "tap"
        ifname = "it-tap0"
        vhost = false
        sndbuf = 1600
        [[network]]
        type = "tap"
        br = "br-it"
        ifname = "it-tap1"
        queues = 2
        [[network]]
        type = "nat"
        net = "lab"
        [[share]]
        type = "virtiofs"
        path = "FOLDER"
        tag = "data"
    """,
    "wires": """
        machine = "q35"
        memory = "64M"
        display = { type = "spice", port = 5930, password = false, usb-redir = 2 }
        vga = "qxl"
        [[network]]
        type = "socket"
        listen = "127.0.0.1:5000"
        [[network]]
        type = "socket"
        connect = "127.0.0.1:5000"
        [[network]]
        type = "socket"
        udp = "127.0.0.1:5003"
        localaddr = "127.0.0.1:5002"
        [[network]]
        type = "vhost-user"
        path = "FOLDER/switch.sock"
        queues = 2
    """,
    "vnc": """
        memory = "64M"
        display = { type = "vnc", display = 3, address = "::1", password = false, websocket = true }
        vga = "std"
    """,
}
"""Started by a libvirtd of root's: what needs the host's memory or network, or ports that are free for sure."""
LAB = "<network><name>lab</name><forward mode='bridge'/><bridge name='br-it'/></network>"


@pytest.fixture(autouse=True)
def _one_cache(home: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What QEMU can do is asked once, and not in each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "libvirt-cache"))


@pytest.fixture(scope="module")
def folder(libvirt: Libvirt) -> Path:
    """Images for the profiles, the daemon's own."""
    images = Images(libvirt.images)
    images.base("base.qcow2", "8M")
    images.overlay("middle.qcow2", "base.qcow2")
    images.overlay("web.qcow2", "middle.qcow2")
    for name in ("scsi", "nvme", "second"):
        images.overlay(f"{name}.qcow2", "base.qcow2")
    for name in ("ide.raw", "usb.raw", "floppy.raw", "install.iso", "vmlinuz", "initrd"):
        with open(images / name, "wb") as file:
            file.truncate(1474560)
    # all of a Linux kernel that QEMU looks at (Linux's Documentation/arch/x86/boot.rst)
    header = bytearray(16384)
    header[0x1FE:0x200], header[0x202:0x206] = b"\x55\xaa", b"HdrS"
    header[0x206:0x208], header[0x22C:0x230] = (0x20C).to_bytes(2, "little"), (0x7FFFFFFF).to_bytes(4, "little")
    (images / "vmlinuz").write_bytes(header)
    (images / "share").mkdir()
    libvirt.give(*libvirt.images.iterdir())
    return libvirt.images


def machine_of(text: str, folder: Path, name: str = "plain") -> Machine:
    machine = parse_profile(text.replace("FOLDER", str(folder)))
    disk = Drive(file=str(folder / "web.qcow2"), interface="virtio")
    return replace(machine, name=f"it-{name}", accel="tcg", drives=(disk, *machine.drives))


def export(machine: Machine, **options: Any) -> tuple[Prepared, Domain]:
    prepared = prepare(machine, Programs())
    return prepared, prepared.domain(**options)


def validate(domain: Domain, tmp_path: Path) -> Path:
    path = tmp_path / "domain.xml"
    path.write_text(domain.xml)
    done = subprocess.run(["virt-xml-validate", path, "domain"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode() + domain.xml
    return path


def differences(said: Any, found: Any, place: str = "") -> Iterator[str]:
    """Where `found` is not what was `said`; what was left open may be anything."""
    if isinstance(said, msgspec.Struct):
        for field in msgspec.structs.fields(said):
            value = getattr(said, field.name)
            if value != field.default and value not in ((), {}):
                yield from differences(value, getattr(found, field.name), f"{place}.{field.encode_name}")
    elif isinstance(said, tuple) and isinstance(found, tuple) and len(said) == len(found):
        for at, (one, other) in enumerate(zip(said, found, strict=True)):
            yield from differences(one, other, f"{place}[{at}]")
    elif said != found:
        yield f"{place}: {said!r} became {found!r}"


def by_id(machine: Machine) -> Machine:
    """libvirt keeps disks in an order of its own: that of their buses."""
    return replace(machine, drives=tuple(sorted(machine.drives, key=lambda drive: drive.id or "")))


@pytest.mark.parametrize("name", PROFILES)
def test_a_domain_is_defined_started_and_read_back_as_it_was(
    name: str, libvirt: Libvirt, folder: Path, tmp_path: Path
) -> None:
    there_and_back(machine_of(PROFILES[name], folder, name), libvirt, tmp_path)


@pytest.mark.parametrize("name", OF_ROOT)
def test_so_is_one_with_what_root_alone_may_have(name: str, root_libvirt: RootLibvirt, tmp_path: Path) -> None:
    folder = root_libvirt.images
    images = Images(folder)
    if not (images / "web.qcow2").exists():
        images.base("base.qcow2", "8M")
        images.overlay("web.qcow2", "base.qcow2")
        (tmp_path / "lab.xml").write_text(LAB)
        root_libvirt.virsh("net-define", tmp_path / "lab.xml")
        root_libvirt.virsh("net-start", "lab")
        Switch(str(folder / "switch.sock")).start()
    machine = machine_of(OF_ROOT[name], folder, name)
    with reserved(40 if machine.hugepages is not None else 0) as enough:
        assert enough
        there_and_back(machine, root_libvirt, tmp_path)


def there_and_back(machine: Machine, libvirt: Libvirt, tmp_path: Path) -> None:
    prepared, written = export(machine)
    assert written.left_out == ()
    path = validate(written, tmp_path)
    try:
        libvirt.virsh("define", "--validate", path)
        libvirt.virsh("start", "--paused", written.name)
        assert libvirt.virsh("domstate", written.name).strip() == "paused"
        dumped = libvirt.virsh("dumpxml", "--inactive", written.name)
    finally:
        libvirt.remove(written.name)
    found = read_domain(dumped)
    assert found.left_out == ()
    assert to_toml(by_id(found.machine)).split("\n") == to_toml(by_id(prepared.settled.machine)).split("\n")
    assert by_id(found.machine) == by_id(prepared.settled.machine)
    shorthands = {name: path for name in SHORTHANDS if (path := getattr(machine, name)) is not None}
    known = replace(machine, machine=replace(machine.machine, type=None), **dict.fromkeys(SHORTHANDS))
    drives = tuple(replace(drive, id=f"drive{place}") for place, drive in enumerate(known.drives))
    assert {drive.id: drive.file for drive in found.machine.drives if drive.id in SHORTHANDS} == shorthands
    others = tuple(drive for drive in found.machine.drives if drive.id not in SHORTHANDS)
    assert list(differences(by_id(replace(known, drives=drives)), by_id(replace(found.machine, drives=others)))) == []
    assert parse_profile(to_toml(found.machine)) == found.machine


def test_a_chain_is_copied_into_a_pool_once_and_starts_there(libvirt: Libvirt, folder: Path, tmp_path: Path) -> None:
    libvirt.virsh("pool-create-as", "images", "dir", "--target", libvirt.pool)
    machine = replace(machine_of(PROFILES["plain"], folder), name="it-pool")
    request = DefineRequest(machine, Programs(), uri=libvirt.uri, pool="images")
    try:
        first = request.make()
        assert [volume.sent for volume in first.volumes] == [True, True, True]
        assert [Path(volume.path).name for volume in first.volumes] == ["base.qcow2", "middle.qcow2", "web.qcow2"]
        assert {Path(volume.volume).parent for volume in first.volumes} == {libvirt.pool}
        images = Images(libvirt.pool)
        chain = images.qemu_img("info", "--backing-chain", "--output=json", first.volumes[-1].volume)
        names = [Path(one["filename"]).name for one in msgspec.json.decode(chain)]
        assert names == [volume.name for volume in reversed(first.volumes)]
        images.qemu_img("compare", first.volumes[-1].volume, folder / "web.qcow2")
        libvirt.virsh("start", "--paused", "it-pool")
        libvirt.virsh("destroy", "it-pool")
        again = DefineRequest(machine, Programs(), uri=libvirt.uri, pool="images").make()
        assert [volume.sent for volume in again.volumes] == [False, False, False]
        assert again.xml == first.xml
        (libvirt.pool / first.volumes[0].name).write_bytes(bytes(first.volumes[0].size))
        with pytest.raises(RefusedError, match="is not the image that its name says"):
            DefineRequest(machine, Programs(), uri=libvirt.uri, pool="images").make()
    finally:
        libvirt.remove("it-pool")
        libvirt.virsh("pool-destroy", "images")


def test_a_machine_for_another_host_leaves_the_choice_of_firmware_to_its_libvirt(
    libvirt: Libvirt, folder: Path, tmp_path: Path
) -> None:
    machine = replace(machine_of(PROFILES["secure"], folder, "secure"), name="it-elsewhere")
    machine = replace(machine, firmware=replace(machine.firmware, vars=None))
    assert prepare(replace(machine, accel=None), Programs(), here=False).settled.machine.accel == "kvm"
    prepared = prepare(machine, Programs(), here=False)
    written = prepared.domain()
    validate(written, tmp_path)
    assert "OVMF" not in written.xml
    assert "<emulator>" not in written.xml
    try:
        libvirt.virsh("define", "--validate", tmp_path / "domain.xml")
        libvirt.virsh("start", "--paused", "it-elsewhere")
        found = read_domain(libvirt.virsh("dumpxml", "--inactive", "it-elsewhere")).machine
    finally:
        libvirt.remove("it-elsewhere")
    assert (found.firmware.uefi, found.firmware.secure_boot) == (True, True)
    assert (found.machine.type or "").startswith("pc-q35-")


def test_an_upload_that_breaks_leaves_no_volume(libvirt: Libvirt, folder: Path) -> None:
    def broken(argv: Sequence[str], **options: Any) -> Completed:
        if "vol-upload" in argv:
            return Completed(tuple(argv), 1, b"", b"error: the connection is gone\n")
        return run(argv, **options)

    for path in libvirt.pool.iterdir():
        path.unlink()
    libvirt.virsh("pool-create-as", "images", "dir", "--target", libvirt.pool)
    try:
        request = DefineRequest(
            machine_of(PROFILES["plain"], folder), Programs(), uri=libvirt.uri, pool="images", runner=broken
        )
        with pytest.raises(CommandError, match="the connection is gone"):
            request.make()
        assert list(libvirt.pool.iterdir()) == []
    finally:
        libvirt.virsh("pool-destroy", "images")


ONLY_WRITTEN = {
    "opengl": """
        vga = "virtio"
        display = { type = "sdl", gl = "on" }
    """,
    "passt": """
        [[network]]
        type = "passt"
        hostfwd = ["tcp:127.0.0.1:2222-:22", "udp:127.0.0.1:53-:53"]
    """,
    "vhost": """
        vsock = { cid = 5 }
        [[network]]
        type = "tap"
        ifname = "tap0"
        vhost = true
        queues = 4
        [[network]]
        type = "nat"
        net = "lab"
        vhost = true
    """,
}
"""What needs devices, daemons or a libvirt that are not everywhere: libvirt 9.0 of Debian 12 has no passt."""


@pytest.mark.parametrize("name", ONLY_WRITTEN)
def test_a_domain_fits_the_schema_and_is_read_back(name: str, folder: Path, tmp_path: Path) -> None:
    machine = replace(parse_profile(ONLY_WRITTEN[name]), name="only", accel="tcg")
    prepared, written = export(machine)
    validate(written, tmp_path)
    found = read_domain(written.xml)
    assert found.left_out == ()
    assert ('accel3d="yes"' in written.xml) is (name == "opengl")
    assert to_toml(found.machine).split("\n") == to_toml(prepared.settled.machine).split("\n")
    known = replace(machine, machine=replace(machine.machine, type=None))
    assert list(differences(known, found.machine)) == []


LOST = {
    '[[network]]\ntype = "user"\nhostfwd = ["tcp::2222-:22"]': "network[0].hostfwd",
    '[[network]]\ntype = "user"\nrestrict = true': "network[0].restrict",
    '[[network]]\ntype = "bridge"\nhelper = "/helper"': "network[0].helper",
    '[[network]]\ntype = "dgram"\nlocal = { type = "unix", path = "/a" }': "network[0]",
    '[[drive]]\nif = "pflash"': "drive[0].if",
    '[[drive]]\nif = "none"': "drive[0].if",
    "smp = 2\nnuma = { node = [{ cpus = ['0-1'] }, { mem = '1M', initiator = 0 }] }": "numa.node[1].initiator",
    'display = { type = "gtk" }': "display.type",
    'display = { type = "vnc", password = false, tls-creds = "/pki" }': "display.tls-creds",
    'display = { type = "spice", password = false, tls-port = 5901, tls-creds = "/pki" }': "display.tls-creds",
    'display = { type = "vnc" }': "display.password",
    'keymap = "de"': "keymap",
    'tpm = { state = "/tpm" }': "tpm.state",
    'boot = { once = "d" }': "boot.once",
    "boot = { strict = false }": "boot.strict",
    'rtc = { clock = "rt" }': "rtc.clock",
    'serial = [{ type = "unix", path = "/s", wait = true }]': "serial[0].wait",
    'watchdog = { action = "debug" }': "watchdog.action",
    '[[share]]\npath = "/srv"\nsecurity-model = "mapped-file"': "share[0].security-model",
    "cpu = { properties = { phys-bits = 40 } }": "cpu.properties.phys-bits",
    "memory = { size = 100000001 }": "memory",
    'hugepages = { page-size = "2M", path = "/huge" }': "hugepages.path",
    "numa = { node = [{}], cpu = [{ node-id = 0, socket-id = 0 }] }": "numa.cpu[0]",
    "safety = { sandbox = false }": "safety.sandbox",
    'cloud-init = { user = "me" }': "cloud-init",
}


@pytest.mark.parametrize("text", LOST)
def test_what_libvirt_cannot_have_is_an_error_that_names_it(text: str, tmp_path: Path) -> None:
    machine = replace(parse_profile(text), name="lost", accel="tcg")
    with pytest.raises(RefusedError) as caught:
        export(machine)
    assert f"{LOST[text]}:" in caught.value.message
    assert "--partial" in (caught.value.hint or "")
    _, written = export(machine, partial=True)
    assert LOST[text] in [one.setting for one in written.left_out]
    validate(written, tmp_path)


def test_the_port_of_spice_by_tls_goes_along_and_its_certificates_are_named() -> None:
    text = 'display = { type = "spice", password = false, tls-port = 5901, tls-creds = "/pki" }'
    _, written = export(replace(parse_profile(text), name="tls", accel="tcg"), partial=True)
    (left_out,) = written.left_out
    assert left_out.reason.startswith("`spice_tls = 1` and `spice_tls_x509_cert_dir` in libvirt's qemu.conf")
    assert '<graphics type="spice" autoport="no" tlsPort="5901">' in written.xml
    assert [one.setting for one in read_domain(written.xml).left_out] == ["graphics/tlsPort"]


FOREIGN = """
<domain type='kvm' id='7'>
  <name>win11</name>
  <memory unit='GiB'>4</memory>
  <vcpu placement='static'>4</vcpu>
  <os firmware='efi'>
    <type arch='x86_64' machine='pc-q35-9.0'>hvm</type>
    <firmware><feature enabled='yes' name='secure-boot'/></firmware>
  </os>
  <features><acpi/><hyperv/></features>
  <cpu mode='host-passthrough'/>
  <clock offset='localtime'/>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' discard='unmap'/>
      <source file='/images/win &amp; dows.qcow2'/>
      <target dev='sda' bus='sata'/>
      <address type='drive' controller='0' bus='0' target='0' unit='3'/>
    </disk>
    <disk type='network' device='disk'>
      <source protocol='rbd' name='pool/disk'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <interface type='network'>
      <mac address='52:54:00:00:00:01'/>
      <source network='default'/>
      <model type='e1000e'/>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x1f' function='0x1'/>
    </interface>
    <interface type='direct'><source dev='eth0'/></interface>
    <graphics type='spice' autoport='yes'><listen type='address'/></graphics>
    <sound model='ich9'/>
    <video><model type='qxl'/></video>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
    <hostdev mode='subsystem' type='usb'/>
    <watchdog model='itco' action='reset'/>
    <memballoon model='virtio'/>
  </devices>
</domain>
"""


def test_a_domain_of_another_hand_is_read_and_what_has_no_setting_is_said() -> None:
    found = read_domain(FOREIGN)
    machine = found.machine
    assert (machine.name, machine.accel, machine.memory.size) == ("win11", "kvm", 4 << 30)
    assert (machine.machine.type, machine.cpu.model) == ("pc-q35-9.0", "host")
    assert (machine.smp.cpus, machine.smp.sockets) == (4, 4)
    assert (machine.firmware.uefi, machine.firmware.secure_boot) == (True, True)
    (drive,) = machine.drives
    assert (drive.file, drive.interface, drive.bus, drive.unit) == ("/images/win & dows.qcow2", "ide", 3, 0)
    (network,) = machine.networks or ()
    assert isinstance(network, Nat)
    assert (network.net, network.model, network.addr) == ("default", "e1000e", "1f.1")
    assert machine.rtc is not None
    assert machine.rtc.base == "localtime"
    assert machine.audio is not None
    assert [one.setting for one in found.left_out] == ["disk[1]", "interface[1]", "hostdev[0]"]
    assert parse_profile(to_toml(machine)) == machine


@pytest.mark.parametrize(
    "text",
    [
        "no xml",
        "<network/>",
        "<domain type='xen'/>",
        "<!DOCTYPE d [<!ENTITY a 'b'>]><domain type='kvm'/>",
        "<domain type='kvm'><devices><disk type='file'><driver type='raw' cache='none' io='x'/>"
        "<source file='/a'/><target bus='virtio'/></disk></devices></domain>",
    ],
)
def test_what_is_no_domain_is_one_error(text: str) -> None:
    with pytest.raises(ConfigError):
        read_domain(text)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("<vcpu>abc</vcpu>", "<vcpu> is 'abc', which is no number"),
        (f"<memory>{'9' * 5000}</memory>", "<memory> is '9+', which is no number"),
        ("<clock offset='absolute' start='99999999999999999'/>", "its clock starts at 99999999999999999 s"),
        (
            "<devices><disk type='file'><source file='/a'/><target dev='vda' bus='virtio'/>"
            "<iotune><total_bytes_sec>x</total_bytes_sec></iotune></disk></devices>",
            "<total_bytes_sec> is 'x', which is no number",
        ),
        (
            "<devices><interface type='user'><backend type='passt'/><portForward proto='tcp'>"
            "<range start='1' end='99999999999'/></portForward></interface></devices>",
            "the forwarded ports 1 to 99999999999 are none",
        ),
    ],
)
def test_numbers_that_are_none_are_named(part: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_domain(f"<domain type='kvm'>{part}</domain>")


def test_names_are_escaped_and_those_xml_cannot_hold_are_refused(images: Images, tmp_path: Path) -> None:
    path = images.base("a<b>&\"c'.qcow2")
    _, written = export(Machine(name="x", accel="tcg", drives=(Drive(file=str(path), interface="virtio"),)))
    validate(written, tmp_path)
    assert read_domain(written.xml).machine.drives[0].file == str(path)
    odd = images.base("a\nb\x01.qcow2")
    with pytest.raises(ConfigError, match="cannot be written in XML"):
        export(Machine(name="x", accel="tcg", drives=(Drive(file=str(odd), interface="virtio"),)))


def test_virsh_is_given_names_that_are_no_options() -> None:
    assert dump_argv("qemu:///system", "-x") == [
        *("virsh", "-q", "-c", "qemu:///system"),
        *("dumpxml", "--inactive", "--", "-x"),
    ]
    assert define_argv("qemu:///session", "/a b.xml") == [
        *("virsh", "-q", "-c", "qemu:///session"),
        *("define", "--validate", "/a b.xml"),
    ]
    assert [is_remote(uri) for uri in ("qemu:///system", "qemu+unix:///session", "qemu+tcp://localhost/x")] == [
        False
    ] * 3
    assert [
        is_remote(uri) for uri in ("qemu+ssh://host/system", "qemu+ssh://127.0.0.1:1/system", "qemu+tls://host/x")
    ] == [True] * 3
    with pytest.raises(RefusedError):
        Connection("--version")


def test_nothing_is_dropped_in_silence(folder: Path) -> None:
    host = prepare(machine_of(PROFILES["plain"], folder), Programs()).host
    host = replace(host, disks={str(DISK.file): Disk(chain=(Link(path=str(DISK.file), format="qcow2"),))})
    dropped, seen = [], 0
    for name, machine, before in alone():
        try:
            found = domain_of(machine, host)
            plain = domain_of(before, host)
        except ConfigError:
            continue  # it contradicts itself, or the sample is none: refused is not silent
        if any(one.setting == "network[0]" for one in plain.left_out):
            continue  # the whole network is left out, and said to be
        seen += 1
        if (found.xml, found.left_out) == (plain.xml, plain.left_out) and name not in SILENT:
            dropped.append(name)
    assert dropped == [], "\n".join(dropped)
    assert seen > 150


def domain_of(machine: Machine, host: Host) -> Domain:
    firmware = Firmware(Uefi(code="/code.fd"), "/vars.fd", "raw", "")
    wanted = settled(machine, host, name="it")
    return domain(wanted, host, firmware if wanted.machine.firmware.uefi else None, partial=True)


SILENT = {
    "name": "it is given",
    "accel": "it is the host's",
    "memory.slots": "nothing is plugged in without maxmem",
    "numa.distances": "of nodes that are not there",
    "numa.hmat_lb": "of nodes that are not there",
    "numa.hmat_cache": "of nodes that are not there",
    "drives.unit": "virtio has no such places",
    "drives.index": "virtio has no such places",
    "drives.media": "a disk, as it is anyway",
    "boot.strict": "as libvirt has it anyway",
    "safety.sandbox": "as libvirt has it anyway",
    "networks.Nat.net": "the sample is the default",
    "networks.VhostUser.path": "the sample is the same",
}
