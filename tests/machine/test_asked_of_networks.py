"""Networks and their cards as a user types them, and what QEMU answers about each."""

from __future__ import annotations

import os
import re

import pytest

from imgtool.machine.checks.network import SMBD
from imgtool.machine.compile.networks import NO_CARDS, stable_mac
from imgtool.qemu.capabilities import Capabilities
from tests.machine.paused import Paused, Typed, free_port
from tests.vhost_user import Switch

pytestmark = pytest.mark.matrix


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
