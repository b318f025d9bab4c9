"""What is put together while a machine is compiled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imgtool.machine.compile.encode import encode, keyed
from imgtool.machine.host import Helper, Host, Scratch, Secret, TapNeed


class Parts:
    """The growing command line. Lives for the length of one `compile_argv`."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.argv: list[str] = []
        self.machine: dict[str, Any] = {}
        """Properties of -machine that other parts ask for."""
        self.scratch: list[Scratch] = []
        self.secrets: list[Secret] = []
        self.taps: list[TapNeed] = []
        self.helpers: list[Helper] = []
        self.spawns = False
        """QEMU itself has to start a program."""
        self._front: int | None = None
        """Where the first -device stands."""
        self._has_usb = False
        self._has_virtio_serial = False

    def add(self, *arguments: str) -> None:
        self.argv += arguments

    def device(self, value: Mapping[str, Any]) -> None:
        """One that names its PCI slot goes before all others, which take the first free slot: it may be that one."""
        words = ["-device", encode(value, json=self.host.capabilities.device_json, head="driver")]
        if self._front is None:
            self._front = len(self.argv)
        if value.get("addr") is None:
            self.add(*words)
        else:
            self.argv[self._front : self._front] = words
            self._front += len(words)

    def object(self, value: Mapping[str, Any]) -> None:
        """-object takes JSON since 6.0, -device since 6.2; one question serves for both."""
        self.add("-object", encode(value, json=self.host.capabilities.device_json, head="qom-type"))

    def netdev(self, value: Mapping[str, Any]) -> None:
        """-netdev takes JSON since 7.2, the release that brought `stream` and `dgram`."""
        self.add("-netdev", encode(value, json="stream" in self.host.capabilities.netdevs, head="type"))

    def chardev(self, backend: str, value: Mapping[str, Any]) -> None:
        self.add("-chardev", keyed(backend, value))

    def usb(self) -> None:
        """The USB controller, once; its bus is `usb.0`."""
        if not self._has_usb:
            self._has_usb = True
            self.device({"driver": "qemu-xhci", "id": "usb"})

    def virtio_serial(self, suffix: str) -> None:
        """The controller of guest agent and SPICE channels, once; its bus is `virtio-serial.0`."""
        if not self._has_virtio_serial:
            self._has_virtio_serial = True
            self.device({"driver": f"virtio-serial{suffix}", "id": "virtio-serial"})

    def runtime(self, name: str) -> str:
        return f"{self.host.runtime_dir}/{name}"
