"""Profiles: what they may hold, and what is said of what they may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from imgtool.errors import ConfigError
from imgtool.machine.config import Machine
from imgtool.machine.options.words import from_words, merge
from imgtool.machine.profile import find_line, load_profile, parse_profile, read_profile
from imgtool.machine.values.devices import Boot, MachineType
from imgtool.machine.values.network import Tap, User
from imgtool.machine.values.processor import Memory, NumaNode, Smp
from imgtool.machine.values.storage import Drive, Throttle

FULL = """
name = "web"
machine = "q35,smm=on"
memory = "2G"
smp = { cpus = 4, threads = 2 }
tablet = true
rng = true

[boot]
order = "c"

[[drive]]
file = "disk.qcow2"
if = "virtio"
throttling = { bps = "1M" }

[[drive]]
file = "/iso/cd.iso"
if = "ide"
media = "cdrom"

[[network]]
type = "user"
hostfwd = ["tcp::2222-:22"]

[[network]]
type = "tap"
ifname = "tap0"
script = "no"

[[numa.node]]
cpus = ["0-3"]
mem = "2G"
"""


def test_a_profile_holds_tables_and_option_strings() -> None:
    machine = parse_profile(FULL)
    assert machine.name == "web"
    assert machine.machine == MachineType(type="q35", properties={"smm": "on"})
    assert machine.memory == Memory(size=2 << 30)
    assert machine.smp == Smp(cpus=4, threads=2)
    assert machine.rng is not None
    assert machine.boot == Boot(order="c")
    assert machine.drives == (
        Drive(file="disk.qcow2", interface="virtio", throttling=Throttle(bps=1 << 20)),
        Drive(file="/iso/cd.iso", interface="ide", media="cdrom"),
    )
    assert machine.networks == (User(hostfwd=("tcp::2222-:22",)), Tap(ifname="tap0", script="no"))
    assert machine.numa.nodes == (NumaNode(cpus=("0-3",), mem=2 << 30),)


def test_every_setting_may_be_a_string_as_on_the_command_line() -> None:
    words: dict[str, Any] = {
        "smp": "cpus=4,cores=2",
        "cpu": "max,+aes",
        "drive": ["a.qcow2,if=virtio", "b.raw,format=raw"],
        "network": ["user", "tap,ifname=t"],
        "numa": ["node,cpus=0-1", "node,cpus=2-3"],
        "display": "vnc=:1",
        "serial": ["stdio", "file:out.log"],
        "share": ["data,tag=d"],
        "boot": "menu=on",
    }
    document = "\n".join(f"{name} = {msgspec.json.encode(value).decode()}" for name, value in words.items())
    assert parse_profile(document).smp == Smp(cpus=4, cores=2)
    assert from_words(words, "/here") == from_words(msgspec.to_builtins(parse_profile(document)), "/here")


def test_file_names_are_relative_to_the_profile(tmp_path: Path) -> None:
    (tmp_path / "vm.toml").write_text('cdrom = "../cd.iso"\nshare = ["data"]\n[cloud-init]\nssh-key = ["k.pub"]\n')
    machine = load_profile(str(tmp_path / "vm.toml"))
    assert machine.cdrom == str(tmp_path.parent / "cd.iso")
    assert machine.shares[0].path == str(tmp_path / "data")
    assert machine.cloud_init is not None
    assert machine.cloud_init.ssh_keys == (str(tmp_path / "k.pub"),)


@pytest.mark.parametrize(
    ("text", "line", "message", "hint"),
    [
        ('name = "a"\nmemry = "2G"\n', 2, "unknown key 'memry'", "did you mean memory?"),
        ("uefi = true\n", 1, "unknown key 'uefi'", "did you mean firmware.uefi?"),
        ("cpus = 2\n", 1, "unknown key 'cpus'", "did you mean smp?"),
        ("[smp]\nuser = 2\n", 2, "unknown key 'user'", "smp knows: cpus, maxcpus"),
        ('[boot]\n\nordre = "c"\n', 3, "unknown key 'ordre'", "did you mean order?"),
        ('[[drive]]\nfile = "a"\n[[drive]]\nfile = "b"\ncahce = "none"\n', 5, "unknown key 'cahce'", "cache"),
        ('[[network]]\ntype = "user"\nhostfw = []\n', 3, "unknown key 'hostfw'", "hostfwd"),
        ('[[network]]\n\ntype = "usr"\n', 3, "network[0] has no type 'usr'", "did you mean user?"),
        ('\n[[network]]\nmodel = "e1000"\n', 2, "network[0] needs type =", "one of: user"),
        ("\nsmp = { cpus = 4, coers = 2 }\n", 2, "unknown key 'coers'", "cores"),
        ("a.b = 1\n", 1, "unknown key 'a'", "the file knows"),
        ('\n[memory]\nsize = "2X"\n', 3, "memory.size: '2X' is not a size", "write a number"),
        ("[smp]\ncpus = 0\n", 2, "smp.cpus: Expected `int` >= 1", ""),
        ('\nsmp = "cpus=4,coer=2"\n', 2, "--smp has no 'coer'", "cores"),
        (
            '[[drive]]\nfile = "x"\n\nif = "idee"\n',
            4,
            "drive[0].if cannot be 'idee'",
            "did you mean ide? it is one of: ",
        ),
        ('tablet = "yes"\n', 1, "tablet: Expected `bool", ""),
        ('[drive]\nfile = "x"\nid = 5\n', 3, "drive[0].id", ""),
        ('\n[[boot]]\norder = "c"\n', 2, "boot is one table", "write [boot]"),
        ('\n[[tpm]]\nstate = "t"\n', 2, "tpm is one table", "write [tpm]"),
        ('\n[numa.node]\ncpus = "0"\n', 2, "numa.node is a list of tables", "write [[numa.node]]"),
        ('\n[[drive]]\nfile = "a\\u0000b"\n', 3, "drive[0].file holds a NUL character", "\\u0000"),
        ('\nshare = ["a", "b\\u0000"]\n', 2, "share[1] holds a NUL character", "\\u0000"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text: str, line: int, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_profile(text, "vm.toml")
    assert caught.value.message.startswith(f"vm.toml:{line}: ")
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a = " + b"[" * 5000 + b"]" * 5000, "too deep"),
        (b"a" + b".a" * 900 + b" = 1", "unknown key 'a'"),
        (b"a" + b".a" * 3000 + b" = 1", "unknown key 'a'|too deep"),  # the latter since Python 3.14
        (b"a = \n", "at line 1"),
        (b"\xff", "is not UTF-8"),
        (b"#" * (1 << 21), "too large"),
        (None, "No such file"),
    ],
)
def test_what_is_no_profile_at_all(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "vm.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_profile(str(path))


@pytest.mark.parametrize("content", ['memry = "2G"\n', "a = \n", None])
def test_the_file_of_an_error_is_named_once_and_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "vm.toml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_profile("vm.toml")
    assert caught.value.path == str(path)
    assert caught.value.message.startswith(f"{path}:"), "what is printed is then the message alone"


@pytest.mark.parametrize(
    ("place", "line"),
    [
        (("name",), 2),
        (("smp", "threads"), 5),
        (("boot",), 9),
        (("boot", "order"), 10),
        (("drive", 0, "if"), 14),
        (("drive", 0, "throttling", "bps"), 15),
        (("drive", 1), 17),
        (("drive", 1, "if"), 19),
        (("network", 1, "ifname"), 28),
        (("numa", "node", 0, "mem"), 33),
        (("nowhere",), 1),
    ],
)
def test_the_line_of_a_place(place: tuple[str | int, ...], line: int) -> None:
    assert find_line(FULL, place) == line


def test_the_command_line_stands_over_the_profile(tmp_path: Path) -> None:
    (tmp_path / "vm.toml").write_text(
        'name = "p"\nmemory = "2G,slots=2,maxmem=8G"\ndrive = ["a.qcow2"]\nnetwork = ["user", "user"]\n'
        'serial = ["null"]\naccel = "tcg"\n[firmware]\nuefi = true\n'
    )
    over = {
        "name": "c",
        "memory": "4G",
        "drive": ["/b.qcow2"],
        "network": ["none"],
        "accel": "auto",
        "firmware": {"vars": "/vars"},
        "arguments": ["-S"],
    }
    machine = from_words(merge(read_profile(str(tmp_path / "vm.toml")), over))
    assert machine.name == "c"
    assert machine.accel == "auto"
    assert machine.memory == Memory(size=4 << 30, slots=2, maxmem=8 << 30)
    assert [drive.file for drive in machine.drives] == [str(tmp_path / "a.qcow2"), "/b.qcow2"]
    assert machine.networks == ()
    assert machine.serial is not None
    assert [port.type for port in machine.serial] == ["null"]
    assert (machine.firmware.uefi, machine.firmware.vars) == (True, "/vars")
    assert machine.arguments == ("-S",)


def test_the_schema_describes_every_setting() -> None:
    schema = msgspec.json.schema(Machine)
    properties = schema["$defs"]["Machine"]["properties"]
    assert {"drive", "network", "numa", "cloud-init", "hda", "safety"} <= set(properties)
    assert schema["$defs"]["Machine"]["additionalProperties"] is False


def test_a_machine_survives_json() -> None:
    machine = from_words(
        {"drive": ["/a,if=nvme,bps=1M"], "network": "user,queues=1", "hugepages": True, "cpu": "max,+a"}
    )
    assert msgspec.json.decode(msgspec.json.encode(machine), type=Machine) == machine
