"""Machines as KubeVirt's manifests, held against the CRDs' schemas."""

from __future__ import annotations

import base64
import copy
import gzip
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import jsonschema
import msgspec
import pytest
import yaml
from msgspec.structs import replace

from fixtures.kubevirt import schemas
from imgtool.errors import ConfigError, RefusedError
from imgtool.machine.config import Machine
from imgtool.machine.profile import parse_profile
from imgtool.machine.values.network import Network, Tap
from imgtool.machine.values.storage import Drive
from imgtool.publish.kubevirt.manifests import Manifests, as_yaml, manifests
from imgtool.publish.kubevirt.words import object_name, quantity
from tests.conftest import Images

DISK = Drive(file="/images/web.qcow2", interface="virtio")
GIB = 1 << 30


def export(machine: Machine, **options: Any) -> Manifests:
    return manifests(machine, size_of=lambda _: 10 * GIB, **options)


def from_profile(text: str, **options: Any) -> Manifests:
    machine = parse_profile(text)
    return export(replace(machine, drives=(DISK, *machine.drives)), **options)


def of_kind(found: Manifests, kind: str) -> list[dict[str, Any]]:
    return [manifest for manifest in found.manifests if manifest["kind"] == kind]


def domain(found: Manifests) -> dict[str, Any]:
    return dict(instance(found)["domain"])


def instance(found: Manifests) -> dict[str, Any]:
    (vm,) = of_kind(found, "VirtualMachine")
    return dict(vm["spec"]["template"]["spec"])


Schemas = dict[str, jsonschema.Draft7Validator]


@pytest.fixture(scope="session")
def strict() -> Schemas:
    """The published schemas, in which what they do not name is an error: a cluster would drop it silently."""
    found = {kind: _closed(schema) for kind, schema in schemas().items()}
    for schema in found.values():
        jsonschema.Draft7Validator.check_schema(schema)
    return {kind: jsonschema.Draft7Validator(schema) for kind, schema in found.items()}


def _closed(schema: Any, place: tuple[str, ...] = ()) -> Any:
    if isinstance(schema, list):
        return [_closed(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: value if key == "$ref" else _closed(value, (*place, key)) for key, value in schema.items()}
    found.pop("$ref", None)  # ObjectMeta and other types of Kubernetes itself
    if place[-1:] != ("properties",) and isinstance(found.get("properties"), dict):
        found.setdefault("additionalProperties", False)
    return found


def check(found: Manifests, strict: Schemas) -> None:
    for manifest in yaml.safe_load_all(as_yaml(found)):
        if manifest["kind"] in strict:
            strict[manifest["kind"]].validate(manifest)


PROFILES = {
    "plain": "",
    "server": """
        name = "Web Server"
        uuid = "12345678-1234-1234-1234-123456789abc"
        machine = "q35"
        accel = "kvm"
        memory = { size = "4G", maxmem = "8G" }
        smp = { cpus = 8, sockets = 2, threads = 2 }
        cpu = { model = "host", features = ["+avx2", "-svm"] }
        firmware = { uefi = true, secure-boot = true }
        tpm = {}
        rng = { source = "/dev/urandom" }
        balloon = {}
        agent = true
        tablet = true
        watchdog = { model = "i6300esb", action = "poweroff" }
        rtc = { base = "utc", driftfix = "slew", clock = "host" }
        [[network]]
        type = "user"
        hostfwd = ["tcp::2222-:22", "udp:127.0.0.1:53-:5353"]
        net = "10.1.0.0/24"
        [[network]]
        type = "bridge"
        br = "br0"
        mac = "52:54:00:12:34:56"
        model = "e1000e"
    """,
    "hugepages": 'memory = "4G"\nhugepages = { page-size = "1G", prealloc = true }',
    "hotplug": "smp = { cpus = 2, maxcpus = 8, cores = 2, threads = 1, sockets = 4 }",
    "bios": 'firmware = { uefi = false }\nvga = "std"\nserial = []\nnetwork = []',
    "efi": 'firmware = { uefi = true }\ndisplay = { type = "none" }\nserial = [{ type = "stdio" }]',
    "disks": """
        cdrom = "/images/install.iso"
        boot = { order = "dc" }
        [[drive]]
        file = "/images/data.qcow2"
        if = "scsi"
        serial = "DATA"
        cache = "none"
        aio = "native"
        discard = "unmap"
        werror = "stop"
        [[drive]]
        file = "/images/shared.raw"
        if = "ide"
        readonly = true
        snapshot = true
    """,
    "orders": """
        [[drive]]
        file = "/images/second.qcow2"
        if = "virtio"
        bootindex = 2
        addr = "7"
        [[network]]
        type = "user"
        bootindex = 1
        addr = "0x8.0"
    """,
    "sound": 'audio = { driver = "none", model = "ac97" }\nvsock = { cid = 5 }\nvga = "virtio"',
    "nat": '[[network]]\ntype = "nat"\nnet = "lab"\n[[network]]\ntype = "tap"\nbr = "br1"',
    "hidden": "cpu = { properties = { kvm = false } }",
}


@pytest.mark.parametrize("name", PROFILES)
def test_manifests_fit_the_published_schemas(name: str, strict: Schemas) -> None:
    check(from_profile(PROFILES[name], partial=name == "sound"), strict)


def test_the_schemas_would_notice_a_setting_that_is_none(strict: Schemas) -> None:
    found = from_profile("")
    spoilt = copy.deepcopy(of_kind(found, "VirtualMachine")[0])
    spoilt["spec"]["template"]["spec"]["domain"]["devices"]["disks"][0]["disk"]["buss"] = "virtio"
    with pytest.raises(jsonschema.ValidationError, match="buss"):
        strict["VirtualMachine"].validate(spoilt)
    spoilt = copy.deepcopy(of_kind(found, "DataVolume")[0])
    spoilt["spec"]["storage"]["resources"]["requests"]["storage"] = "ten"
    with pytest.raises(jsonschema.ValidationError, match="ten"):
        strict["DataVolume"].validate(spoilt)


def test_a_server_is_the_same_machine() -> None:
    found = from_profile(PROFILES["server"])
    assert found.left_out == ()
    assert found.name == "web-server"
    vm = domain(found)
    features = [{"name": "avx2", "policy": "require"}, {"name": "svm", "policy": "disable"}]
    assert vm["cpu"] == {
        "sockets": 2,
        "cores": 2,
        "threads": 2,
        "model": "host-passthrough",
        "features": features,
    }
    assert vm["memory"] == {"guest": "4Gi", "maxGuest": "8Gi"}
    assert vm["machine"] == {"type": "q35"}
    assert vm["firmware"] == {
        "uuid": "12345678-1234-1234-1234-123456789abc",
        "bootloader": {"efi": {"secureBoot": True}},
    }
    assert vm["features"] == {"smm": {"enabled": True}}
    assert vm["clock"] == {
        "utc": {},
        "timer": {"rtc": {"present": True, "tickPolicy": "catchup", "track": "wall"}},
    }
    devices = vm["devices"]
    assert devices["tpm"] == {}
    assert devices["rng"] == {}
    assert devices["autoattachMemBalloon"] is True
    assert devices["inputs"] == [{"name": "tablet", "type": "tablet", "bus": "usb"}]
    assert devices["watchdog"] == {"name": "watchdog", "i6300esb": {"action": "poweroff"}}
    assert devices["interfaces"] == [
        {
            "name": "net0",
            "masquerade": {},
            "ports": [{"port": 22, "protocol": "TCP"}, {"port": 5353, "protocol": "UDP"}],
        },
        {"name": "net1", "bridge": {}, "model": "e1000e", "macAddress": "52:54:00:12:34:56"},
    ]
    assert instance(found)["networks"] == [
        {"name": "net0", "pod": {"vmNetworkCIDR": "10.1.0.0/24"}},
        {"name": "net1", "multus": {"networkName": "br0"}},
    ]
    assert found.attachments == ("br0",)
    (service,) = of_kind(found, "Service")
    assert service["spec"]["selector"] == {"kubevirt.io/vm": "web-server"}
    assert [(port["port"], port["targetPort"], port["protocol"]) for port in service["spec"]["ports"]] == [
        (2222, 22, "TCP"),
        (53, 5353, "UDP"),
    ]


def test_disks_are_data_volumes() -> None:
    found = from_profile(PROFILES["disks"])
    assert found.left_out == ()
    assert domain(found)["devices"]["disks"] == [
        {"name": "disk0", "cdrom": {"bus": "sata"}, "bootOrder": 1},
        {"name": "disk1", "disk": {"bus": "virtio"}, "bootOrder": 2},
        {
            "name": "disk2",
            "disk": {"bus": "scsi"},
            "cache": "none",
            "io": "native",
            "serial": "DATA",
            "errorPolicy": "stop",
            "bootOrder": 3,
        },
        {"name": "disk3", "disk": {"bus": "sata", "readonly": True}, "bootOrder": 4},
    ]
    assert [volume["name"] for volume in instance(found)["volumes"]] == ["disk0", "disk1", "disk2", "disk3"]
    claim = {"claimName": "web-disk3", "readOnly": True}
    assert instance(found)["volumes"][3]["ephemeral"] == {"persistentVolumeClaim": claim}
    assert [volume["metadata"]["name"] for volume in of_kind(found, "DataVolume")] == [
        f"web-disk{number}" for number in range(4)
    ]
    assert found.uploads["web-disk2"] == "/images/data.qcow2"
    assert of_kind(found, "DataVolume")[0]["spec"] == {
        "source": {"upload": {}},
        "storage": {"resources": {"requests": {"storage": "10Gi"}}},
    }


def test_iothreads_are_each_of_one_disk_or_one_of_all(strict: Schemas) -> None:
    disk = '[[drive]]\nfile = "/{0}.qcow2"\nif = "virtio"\niothread = "{1}"\n'
    found = from_profile(disk.format("a", "io1") + disk.format("b", "io2") + disk.format("c", "io2"))
    assert found.left_out == ()
    check(found, strict)
    assert domain(found)["ioThreadsPolicy"] == "shared"
    threads = [one.get("dedicatedIOThread") for one in domain(found)["devices"]["disks"]]
    assert threads == [None, True, None, None]
    found = from_profile(disk.format("a", "io1") + disk.format("b", "io2"))
    assert "ioThreadsPolicy" not in domain(found)
    check(found, strict)


def test_the_first_disk_comes_from_a_containerdisk() -> None:
    reference = "registry.example.org/disks/web:1"
    found = from_profile("", registry=reference, storage_class="fast", name="Web 1")
    (volume,) = of_kind(found, "DataVolume")
    assert volume["metadata"] == {"name": "web-1-disk0"}
    assert volume["spec"] == {
        "source": {"registry": {"url": f"docker://{reference}"}},
        "storage": {"resources": {"requests": {"storage": "10Gi"}}, "storageClassName": "fast"},
    }
    assert found.uploads == {}


def test_a_disk_whose_writes_are_thrown_away_is_the_containerdisk_itself(strict: Schemas) -> None:
    found = from_profile("ephemeral = true", registry="registry.example.org/web:1")
    assert instance(found)["volumes"] == [{"name": "disk0", "containerDisk": {"image": "registry.example.org/web:1"}}]
    assert of_kind(found, "DataVolume") == []
    check(found, strict)


def test_boot_indexes_count_over_disks_and_cards() -> None:
    found = from_profile(PROFILES["orders"])
    devices = domain(found)["devices"]
    assert devices["disks"][1] == {
        "name": "disk1",
        "disk": {"bus": "virtio", "pciAddress": "0000:00:07.0"},
        "bootOrder": 2,
    }
    assert devices["interfaces"][0]["bootOrder"] == 1
    assert devices["interfaces"][0]["pciAddress"] == "0000:00:08.0"


def test_a_cloud_init_seed_goes_along(tmp_path: Path, strict: Schemas) -> None:
    data = tmp_path / "user-data"
    data.write_text("#cloud-config\npackages: [nginx]\n")
    text = f'cloud-init = {{ user-data = "{data}" }}'
    found = from_profile(text)
    assert instance(found)["volumes"][-1]["cloudInitNoCloud"] == {"userData": data.read_text()}
    check(found, strict)
    found = from_profile('cloud-init = { hostname = "Web_1", user = "me" }')
    assert '"name": "me"' in instance(found)["volumes"][-1]["cloudInitNoCloud"]["userData"]
    assert instance(found)["hostname"] == "web-1"
    check(found, strict)
    data.write_text("#cloud-config\n# " + "x" * 3000 + "\n")
    found = from_profile(text)
    assert instance(found)["volumes"][-1]["cloudInitNoCloud"] == {"secretRef": {"name": "web-userdata"}}
    (secret,) = of_kind(found, "Secret")
    assert "xxxx" in secret["stringData"]["userdata"]
    check(found, strict)
    data.write_bytes(gzip.compress(b"#cloud-config\n"))
    found = from_profile(text)
    (told,) = instance(found)["volumes"][-1]["cloudInitNoCloud"].items()
    assert (told[0], base64.b64decode(told[1])) == ("userDataBase64", data.read_bytes())
    check(found, strict)
    data.write_bytes(os.urandom(3000) + b"\xff")
    found = from_profile(text)
    (secret,) = of_kind(found, "Secret")
    assert base64.b64decode(secret["data"]["userdata"]) == data.read_bytes()
    check(found, strict)


LOST = {
    'accel = "tcg"': "accel",
    'cpu = { model = "max" }': "cpu",
    "cpu = { properties = { phys-bits = 40 } }": "cpu.properties.phys-bits",
    "smp = { cpus = 8, dies = 2, cores = 4 }": "smp.dies",
    "smp = { cpus = 3, maxcpus = 8, cores = 2, threads = 1, sockets = 4 }": "smp.cpus",
    'memory = { size = "1G", slots = 4, maxmem = "2G" }': "memory.slots",
    'hugepages = { page-size = "4M" }': "hugepages.page-size",
    'hugepages = { page-size = "2M", share = true }': "hugepages.share",
    'smp = 2\nnuma = { node = [{ cpus = ["0"] }, { cpus = ["1"] }] }': "numa.node",
    'machine = "pc"': "machine",
    'machine = { type = "q35", properties = { hpet = "off" } }': "machine.properties",
    'firmware = { bios = "/b.bin" }': "firmware.bios",
    'firmware = { uefi = true, vars = "/v.fd" }': "firmware.vars",
    'kernel = "/vmlinuz"\nappend = "x"': "kernel",
    'fda = "/floppy.img"': "fda",
    '[[drive]]\nfile = "/a.qcow2"\nif = "nvme"': "drive[1].if",
    '[[drive]]\nif = "ide"\nmedia = "cdrom"': "drive[1]",
    '[[drive]]\nfile = "/a.qcow2"\nthrottling = { bps = 1000 }': "drive[1].throttling",
    '[[drive]]\nfile = "/a.qcow2"\ncache = "unsafe"': "drive[1].cache",
    '[[drive]]\nfile = "/a.qcow2"\nif = "scsi"\niothread = "io1"': "drive[1].iothread",
    '[[drive]]\nfile = "/a.qcow2"\nif = "virtio"\niothread = "io1"\n' * 2
    + '[[drive]]\nfile = "/a.qcow2"\nif = "virtio"\niothread = "io2"\n' * 2: "iothread io2",
    '[[drive]]\nfile = "/a.qcow2"\nwerror = "stop"\nrerror = "report"': "drive[1].werror",
    '[[network]]\ntype = "socket"\nlisten = ":1234"': "network[0]",
    '[[network]]\ntype = "user"\nrestrict = true': "network[0].restrict",
    '[[network]]\ntype = "user"\nhostfwd = ["tcp:10.0.0.1:80-:80"]': "network[0].hostfwd",
    '[[network]]\ntype = "user"\nmodel = "vmxnet3"': "network[0].model",
    '[[network]]\ntype = "user"\n[[network]]\ntype = "user"': "network[1]",
    'display = { type = "spice", password = true }': "display.type",
    'vga = "qxl"': "vga",
    'keymap = "de"': "keymap",
    'tpm = { model = "tpm-tis" }': "tpm.model",
    'serial = [{ type = "file", path = "/log" }]': "serial[0]",
    'parallel = [{ type = "null" }]': "parallel[0]",
    'watchdog = { model = "ib700" }': "watchdog.model",
    'watchdog = { action = "inject-nmi" }': "watchdog.action",
    '[[share]]\npath = "/srv"': "share[0]",
    'rtc = { base = "localtime" }': "rtc.base",
    'audio = { driver = "pa", model = "sb16" }': "audio.model",
    "vsock = { cid = 3 }": "vsock.cid",
    "agent = false": "agent",
    'boot = { once = "d" }': "boot.once",
    "safety = { sandbox = false }": "safety.sandbox",
    'arguments = ["-device", "edu"]': "arguments[0]",
}


@pytest.mark.parametrize("text", LOST)
def test_what_kubevirt_cannot_have_is_an_error_that_names_it(text: str, strict: Schemas) -> None:
    with pytest.raises(RefusedError) as caught:
        from_profile(text)
    assert f"{LOST[text]}:" in caught.value.message
    assert "--partial" in (caught.value.hint or "")
    found = from_profile(text, partial=True)
    assert LOST[text] in [one.setting for one in found.left_out]
    check(found, strict)


def sample(kind: Any) -> Any:
    """Some value of a type, not None."""
    return _value(msgspec.inspect.type_info(kind))


def _value(info: msgspec.inspect.Type) -> Any:
    known = msgspec.inspect
    if isinstance(info, known.UnionType):
        return _value(next(one for one in info.types if not isinstance(one, known.NoneType)))
    if isinstance(info, known.Metadata):
        return _value(info.type)
    if isinstance(info, known.LiteralType):
        return info.values[-1]
    if isinstance(info, known.BoolType):
        return True
    if isinstance(info, known.IntType):
        return max(info.ge or 0, 4)
    if isinstance(info, known.StrType):
        return "x"
    if isinstance(info, known.VarTupleType):
        return (_value(info.item_type),)
    if isinstance(info, known.DictType):
        return {"x": "y"}
    assert isinstance(info, known.StructType), info
    return info.cls(**{field.name: _value(field.type) for field in info.fields if field.required})


SILENT = {
    "agent": "KubeVirt always has the channel that it asks for",
    "drives.format": "CDI finds it out",
    "drives.id": "the names of disks are their places",
    "drives.media": "a disk, as it is anyway",
    "display.type": "vnc, as KubeVirt has it anyway",
    "networks.Nat.net": "the sample is the default",
}

EXCEPT = {
    "drives.discard": "ignore",
    "drives.interface": "usb",
    "accel": "tcg",
    "networks": (),
    "networks.Nat.net": "default",
}
"""Settings whose sample has to be a certain one."""

READ = ("cloud_init.user_data", "cloud_init.meta_data", "cloud_init.network_config", "cloud_init.ssh_keys")
"""Settings that name files which are read."""


def inner(part: msgspec.Struct, place: str) -> Iterator[tuple[str, Any]]:
    """(`place.setting`, `part` with that setting and some value) for each setting of `part`."""
    for field in msgspec.structs.fields(part):
        name = f"{place}.{field.name}"
        yield name, replace(part, **{field.name: EXCEPT.get(name, sample(field.type))})


def alone() -> Iterator[tuple[str, Machine, Machine]]:
    """(its name, a machine with only this setting, the machine without it), for each setting there is."""
    plain = Machine(drives=(DISK,))
    for field in msgspec.structs.fields(Machine):
        value = EXCEPT.get(field.name, sample(field.type))
        if field.name == "drives":
            for name, drive in inner(DISK, "drives"):
                yield name, replace(plain, drives=(drive,)), plain
        elif isinstance(value, msgspec.Struct):
            yield from (
                (name, replace(plain, **{field.name: part}), plain) for name, part in inner(value, field.name)
            )
        else:
            yield field.name, replace(plain, **{field.name: value}), plain
    for kind in get_args(Network):
        card = replace(sample(kind), br="lab") if kind is Tap else sample(kind)
        before = replace(plain, networks=(card,))
        for name, network in inner(card, f"networks.{kind.__name__}"):
            yield name, replace(plain, networks=(network,)), before


def test_nothing_is_dropped_in_silence() -> None:
    dropped, seen = [], 0
    for name, machine, before in alone():
        if name in READ:
            with pytest.raises(ConfigError):  # it is read, and is not there
                export(machine, partial=True)
            continue
        plain = export(before, partial=True)
        if name.split(".")[:2] in [["networks", kind] for kind in UNKNOWN_NETWORKS]:
            assert any(one.setting == "network[0]" for one in plain.left_out), "the whole network is left out"
            continue
        found = export(machine, partial=True)
        seen += 1
        if (found.manifests, found.left_out) == (plain.manifests, plain.left_out) and name not in SILENT:
            dropped.append(name)
    assert dropped == []
    assert seen > 150


UNKNOWN_NETWORKS = ("Socket", "Stream", "Dgram", "VhostUser")


def test_sizes_are_written_exactly() -> None:
    assert [quantity(size) for size in (GIB, 3 << 19, 1 << 10, 1000, 0)] == ["1Gi", "1536Ki", "1Ki", "1000", "0"]


def test_names_are_made_fit_for_kubernetes() -> None:
    assert object_name("Web_Server 1.2") == "web-server-1-2"
    assert object_name("--") == "vm"
    assert len(object_name("a" * 100)) == 63


def test_sizes_are_read_from_the_images(images: Images) -> None:
    images.base("web.qcow2", "3M")
    images.overlay("top.qcow2", "web.qcow2", size="5M")
    found = manifests(Machine(drives=(Drive(file=str(images / "top.qcow2"), interface="virtio"),)))
    (volume,) = of_kind(found, "DataVolume")
    assert volume["spec"]["storage"]["resources"]["requests"]["storage"] == "5Mi"
    assert found.name == "top"
