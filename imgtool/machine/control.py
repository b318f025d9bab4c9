"""What can be done to a running VM over its monitor, and what it says of itself."""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from imgtool.errors import MachineError, RefusedError
from imgtool.image.names import printable
from imgtool.machine.lost import LostFile, lost_files
from imgtool.machine.vm import State, Vm
from imgtool.qemu.qmp import COMMAND_SECONDS, Monitor, QmpCommandError, QmpUnreachable

Steering = Literal["stop", "cont", "system_reset"]
"""QMP commands that have no arguments and no answer."""


class BlockDevice(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """A drive as the guest has it now. QAPI: BlockInfo."""

    device: str
    """The id of the device."""
    file: str | None
    """The image's file, as QEMU names it; None for an empty drive."""
    format: str | None = None
    """QEMU's driver: `qcow2`, `raw`, …"""
    read_only: bool = False
    """The guest cannot write to it."""
    ephemeral: bool = False
    """What the guest writes is thrown away."""


class Status(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """A running VM."""

    name: str
    """The VM's, for `imgtool vm`."""
    status: str
    """QAPI RunState (running, paused, shutdown…); `starting`, or `unreachable` when its monitor does not answer."""
    pid: int | None
    """QEMU's process id; None before it runs."""
    created: float
    """Seconds since the epoch."""
    detached: bool
    """It was started with --detach, and outlives the imgtool that did."""
    directory: str
    """Where its sockets and logs are."""
    accelerator: str | None = None
    """What runs the guest: kvm, tcg, …; None when its monitor does not answer."""
    cpus: int | None = None
    """How many the guest has now, those plugged in included. QAPI: CpuInfoFast, counted."""
    memory: int | None = None
    """Bytes, what is plugged in included."""
    drives: tuple[BlockDevice, ...] = ()
    """What the guest has now, in QEMU's order."""
    display: str | None = None
    """Where VNC listens."""
    password_file: str | None = None
    """Holds the password that VNC or SPICE asks for."""
    lost: tuple[LostFile, ...] = ()
    """Images that were deleted, replaced or moved while the VM has them open."""
    command: tuple[str, ...] = ()
    """QEMU's argv."""


class Steered(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What `vm pause`, `resume` and `reset` did."""

    name: str
    """The VM's."""
    status: str
    """As in Status, afterwards."""


class Said(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What QEMU's monitor said."""

    name: str
    """The VM's."""
    command: str
    """What it was told."""
    said: str
    """Its answer in words, errors included: this monitor is for people."""


class Answered(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What QEMU returned for a QMP command."""

    name: str
    """The VM's."""
    command: str
    """QAPI's."""
    answer: Any
    """Of the type that QAPI has for the command."""


class Screenshot(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What `vm screenshot` wrote."""

    name: str
    """The VM's."""
    file: str
    """The picture's absolute path."""
    format: Literal["png", "ppm"]
    """What the file is, by the end of its name."""


def steer(vm: Vm, command: Steering) -> Steered:
    with Monitor.connect(vm.qmp_socket) as monitor:
        monitor.execute(command)
        return Steered(name=vm.name, status=monitor.execute("query-status")["status"])


def status(vm: Vm, state: State) -> Status:
    """Never raises for a VM that does not answer: that is its status then."""
    qemu = vm.qemu()
    bare = Status(
        name=vm.name,
        status="starting",
        pid=qemu.pid if qemu else None,
        created=state.created,
        detached=state.detached,
        directory=vm.path,
        password_file=_password_file(vm, state),
        lost=lost_files(vm.name, qemu.pid, state) if qemu else (),
        command=state.argv,
    )
    if state.phase == "starting":
        return bare
    try:
        with Monitor.connect(vm.qmp_socket, seconds=5) as monitor:
            return _ask(monitor, bare)
    except (QmpUnreachable, QmpCommandError):
        return msgspec.structs.replace(bare, status="unreachable")


def _password_file(vm: Vm, state: State) -> str | None:
    made = [vm.file(f"{protocol}.secret") for protocol in ("vnc", "spice")]
    return state.machine.display.password_file or next((path for path in made if os.path.exists(path)), None)


def _ask(monitor: Monitor, bare: Status) -> Status:
    size = monitor.execute("query-memory-size-summary")
    nodes = {node["node-name"]: node for node in monitor.execute("query-named-block-nodes", {"flat": True})}
    return msgspec.structs.replace(
        bare,
        status=monitor.execute("query-status")["status"],
        accelerator="kvm" if monitor.execute("query-kvm")["enabled"] else _accelerator(bare.command),
        cpus=len(monitor.execute("query-cpus-fast")),
        memory=size["base-memory"] + size.get("plugged-memory", 0),
        drives=tuple(_drive(item, nodes) for item in monitor.execute("query-block")),
        display=_vnc(monitor),
    )


def _accelerator(argv: tuple[str, ...]) -> str | None:
    return argv[argv.index("-accel") + 1].partition(",")[0] if "-accel" in argv[:-1] else None


def _drive(item: dict[str, Any], nodes: dict[str, Any]) -> BlockDevice:
    """Node names are those of `imgtool.machine.compile.blocks`: under the filters the image, and under a scratch
    overlay, which has no name in the file system any more, the image that was asked for."""
    inserted = item.get("inserted", {})
    name = inserted.get("node-name", "").removesuffix("-throttle").removesuffix("-cor")
    asked = nodes.get(f"{name}-0")
    node = asked or nodes.get(name, inserted)
    return BlockDevice(
        device=device_id(item.get("qdev") or item.get("device") or "?"),
        file=_file_of(node.get("file")),
        format=node.get("drv"),
        read_only=inserted.get("ro", False),
        ephemeral=asked is not None,
    )


def device_id(path: str) -> str:
    """The id of a device, which is all of `path` or, where a device has parts, in the midst of it."""
    below = path.removeprefix("/machine/peripheral/")
    return below.partition("/")[0] if below != path else path.rpartition("/")[2]


def _file_of(name: str | None) -> str | None:
    """The file under a name that QEMU spells as `json:{…}` because its backing file was given by hand."""
    if name is None or not name.startswith("json:"):
        return name
    import json

    node: Any = json.loads(name.removeprefix("json:"))
    while isinstance(node, dict):
        node = node.get("filename") or node.get("file")
    return node if isinstance(node, str) else name


def _vnc(monitor: Monitor) -> str | None:
    try:
        answer = monitor.execute("query-vnc")
    except QmpCommandError:
        return None  # built without VNC
    if not answer.get("enabled") or "service" not in answer:
        return None
    host, service = answer.get("host", ""), answer["service"]
    if answer.get("family") == "unix":
        return f"unix:{service}"
    return f"{host}:{int(service) - 5900}"


def tell(vm: Vm, command: str, *, seconds: float = COMMAND_SECONDS) -> str:
    """What QEMU's monitor for people says to `command`, such as `info block`. It has no other way to tell that
    something was wrong. RefusedError as `query`."""
    if _SPAWNING.match(command):
        _refuse_spawning(vm)
    with Monitor.connect(vm.qmp_socket) as monitor:
        said: str = monitor.execute("human-monitor-command", {"command-line": command}, seconds=seconds)
        return said.replace("\r\n", "\n")


def query(vm: Vm, command: str, arguments: Mapping[str, Any], *, seconds: float = COMMAND_SECONDS) -> Any:
    """What QEMU returns for a QMP command. QmpCommandError when it refuses; RefusedError for one that would have it
    start a program, which is the end of a QEMU in its sandbox."""
    if _would_spawn(command, arguments):
        _refuse_spawning(vm)
    with Monitor.connect(vm.qmp_socket) as monitor:
        return monitor.execute(command, arguments, seconds=seconds)


_SPAWNING = re.compile(r"\s*migrate(?:_incoming)?\b.*\bexec:")
"""A command of the monitor for people that has QEMU start a program."""


def _would_spawn(command: str, arguments: Mapping[str, Any]) -> bool:
    """Whether the QMP command has QEMU start a program. QAPI: MigrationAddress."""
    if command == "human-monitor-command":
        return _SPAWNING.match(str(arguments.get("command-line", ""))) is not None
    if command not in ("migrate", "migrate-incoming"):
        return False
    channels = arguments.get("channels")
    addresses = [item.get("addr") for item in channels or () if isinstance(item, dict)]
    return str(arguments.get("uri", "")).startswith("exec:") or any(
        isinstance(address, dict) and address.get("transport") == "exec" for address in addresses
    )


def _refuse_spawning(vm: Vm) -> None:
    """RefusedError when QEMU is in its sandbox, which ends it for starting a program."""
    state = vm.state()
    if state is not None and any("spawn=deny" in word for word in state.argv):
        raise RefusedError(
            f"QEMU's sandbox would end {vm.name} for starting a program",
            hint="migrate to unix:PATH, tcp:HOST:PORT, or `savevm NAME`; with --no-sandbox it may start programs",
        )


def screenshot(vm: Vm, target: str) -> Screenshot:
    """Writes what the guest's screen shows to `target`, as PNG, or as PPM where the name ends so. MachineError when
    there is no screen, or no such file can be written."""
    picture = _screendump(vm)
    format: Literal["png", "ppm"] = "ppm" if target.lower().endswith(".ppm") else "png"
    try:
        with open(target, "wb") as file:
            file.write(picture if format == "ppm" else png(picture))
    except OSError as error:
        raise MachineError(f"{printable(target)} cannot be written: {error.strerror}", path=target) from error
    return Screenshot(name=vm.name, file=os.path.abspath(target), format=format)


def _screendump(vm: Vm) -> bytes:
    """The screen as a PPM. QEMU, which may have become another user, is handed the open file to write it to."""
    import tempfile

    with tempfile.NamedTemporaryFile(dir=vm.path) as draft, Monitor.connect(vm.qmp_socket) as monitor:
        fd = os.open(draft.name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            monitor.send_descriptor(fd)
            fdset = monitor.execute("add-fd")["fdset-id"]
        finally:
            os.close(fd)
        try:
            monitor.execute("screendump", {"filename": f"/dev/fdset/{fdset}"})
        except QmpCommandError as error:
            raise MachineError(
                f"{vm.name} has no screen: {error.description}", hint="boot it with --vga std"
            ) from None
        finally:
            monitor.execute("remove-fd", {"fdset-id": fdset})
        return draft.read()


def png(ppm: bytes) -> bytes:
    """The PNG of a binary PPM (P6, 8 bits), which is what every QEMU writes; PNG itself only since 7.1."""
    magic, size, depth, pixels = ppm.split(b"\n", 3)
    if (magic, depth) != (b"P6", b"255"):
        raise MachineError("QEMU wrote a screenshot in a format that imgtool does not know")
    width, height = (int(word) for word in size.split())
    rows = b"".join(b"\0" + pixels[at : at + 3 * width] for at in range(0, 3 * width * height, 3 * width))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def console_is_free(vm: Vm, port: str) -> bool:
    """Whether nobody is joined to the serial port `port` (`serial0`): QEMU lets a second one wait in silence."""
    with Monitor.connect(vm.qmp_socket) as monitor:
        for item in monitor.execute("query-chardev"):
            if item["label"] == port:
                return str(item["filename"]).startswith("disconnected:")
    raise MachineError(f"{vm.name} has no serial port {port} that could be joined")
