"""Hosts for the tests of the launcher's configuration: an invented one for what is pure, the real one for QEMU."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from imgtool.machine.host import Disk, Host, Link
from imgtool.qemu.capabilities import Capabilities, CpuModel, DeviceType, MachineType, capabilities
from imgtool.qemu.programs import Programs, Version
from tests.machine.paused import typed

__all__ = ["typed"]

MakeHost = Callable[..., Host]

_PCI_CARDS = ("virtio-net-pci", "e1000", "e1000e", "rtl8139", "vmxnet3", "ne2k_pci")


def _devices() -> tuple[DeviceType, ...]:
    cards = [DeviceType(name=name, category="Network", bus="PCI") for name in _PCI_CARDS]
    cards.append(DeviceType(name="ne2k_isa", category="Network", bus="ISA"))
    cards.append(DeviceType(name="virtio-net-device", category="Network", bus="virtio-bus"))
    cards.append(DeviceType(name="usb-net", category="Network", bus="usb-bus"))
    others: tuple[str, ...] = (
        "i6300esb",
        "ib700",
        "hda-duplex",
        "AC97",
        "sb16",
        "VGA",
        "cirrus-vga",
        "qxl-vga",
        "virtio-vga",
    )
    others += ("ide-hd", "ide-cd", "floppy", "virtio-blk-pci", "virtio-blk-device")
    return (*cards, *(DeviceType(name=name, category="Misc") for name in others))


def invented(version: tuple[int, int]) -> Capabilities:
    """A PC emulator of this version, with as much of everything as the tests speak of."""
    modern = version >= (6, 2)
    netdevs = ("user", "tap", "bridge", "socket", "vhost-user")
    return Capabilities(
        program="/usr/bin/qemu-system-x86_64",
        version=Version(*version, 0, f"{version[0]}.{version[1]}.0"),
        target="x86_64",
        accelerators=("tcg", "kvm"),
        machines=(
            MachineType(name="pc-i440fx-7.2", alias="pc", is_default=True, cpu_max=255, hotpluggable_cpus=True),
            MachineType(name="pc-q35-7.2", alias="q35", cpu_max=288, hotpluggable_cpus=True),
            MachineType(name="microvm", cpu_max=288),
            MachineType(name="isapc", cpu_max=1, hotpluggable_cpus=True),
            MachineType(name="pc-i440fx-1.4", cpu_max=255, deprecated=True),
        ),
        cpu_models=(
            CpuModel(name="max"),
            CpuModel(name="host"),
            CpuModel(name="Skylake-Server"),
            CpuModel(name="486"),
        ),
        cpu_features=("avx2", "sse4.1", "svm", "vmx", "aes"),
        devices=_devices(),
        objects=("memory-backend-ram", "memory-backend-file", "secret"),
        netdevs=(*netdevs, "stream", "dgram") if version >= (7, 2) else netdevs,
        chardevs=("socket",),
        displays=("none", "gtk", "curses"),
        audiodevs=("none", "wav", "pa"),
        tpmdevs=("emulator",),
        block_drivers=("file", "luks", "qcow2", "raw", "vmdk"),
        options={
            "sandbox": ("enable",),
            "vnc": ("password", "password-secret") if version >= (6, 1) else ("password",),
            **({"run-with": ("user",)} if version >= (9, 1) else {}),
        },
        commands={"device_add": ("json-cli",) if modern else ()},
    )


def disk(path: str, format: str = "qcow2", size: int = 1 << 30) -> Disk:
    return Disk(chain=(Link(path=path, format=format),), size=size)


@pytest.fixture(scope="session")
def make_host() -> MakeHost:
    """A host as the pure tests see it: QEMU 7.2, TCG, three images."""

    def make(version: tuple[int, int] = (7, 2), **changes: Any) -> Host:
        known: dict[str, Any] = {
            "qemu": "/usr/bin/qemu-system-x86_64",
            "capabilities": invented(version),
            "accelerator": "tcg",
            "runtime_dir": "/run/vm",
            "console": "socket",
            "disks": {
                "/d/a.qcow2": disk("/d/a.qcow2"),
                "/d/b.raw": disk("/d/b.raw", "raw"),
                "/d/f.img": disk("/d/f.img", "raw", 1440 << 10),
                "/d/o.qcow2": Disk(
                    chain=(Link(path="/d/o.qcow2", format="qcow2"), Link(path="/d/b.raw", format="raw")), size=1 << 30
                ),
            },
        }
        return Host(**{**known, **changes})

    return make


@pytest.fixture(scope="session")
def real_capabilities() -> Capabilities:
    """What the QEMU that the environment names can do."""
    programs = Programs()
    return capabilities(os.path.abspath(programs.find("qemu-system-x86_64")))
