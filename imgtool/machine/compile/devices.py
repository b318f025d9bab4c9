"""Serial and parallel ports, and the devices that are neither disk, network nor display."""

from __future__ import annotations

import os.path
from typing import Any

from imgtool.machine.board import Board
from imgtool.machine.compile.display import display_type
from imgtool.machine.compile.encode import compact, keyed
from imgtool.machine.compile.parts import Parts
from imgtool.machine.config import Machine
from imgtool.machine.host import AGENT_SOCKET, TPM_SOCKET, Helper, Host
from imgtool.machine.values.devices import Audio, CharDevice, Share

_SOUND_CARDS = {
    "ac97": "AC97",
    "es1370": "ES1370",
    "sb16": "sb16",
    "usb": "usb-audio",
    "virtio": "virtio-sound-pci",
}


def add_ports(parts: Parts, machine: Machine, host: Host) -> None:
    """Serial and parallel ports; what the guest says on each is also kept in a log."""
    ports = machine.serial
    if ports is None:
        _add_console(parts, machine, host)
        ports = ()
    for place, port in enumerate(ports):
        _add_port(parts, machine, "serial", place, port)
    for place, port in enumerate(machine.parallel):
        _add_port(parts, machine, "parallel", place, port)


def _add_console(parts: Parts, machine: Machine, host: Host) -> None:
    name, log = "serial0", parts.runtime("serial0.log")
    if host.console == "none":
        return
    if host.console == "stdio":
        _add_terminal(parts, machine, name, log)
    else:
        value = {"id": name, "path": parts.runtime("serial0.sock"), "server": True, "wait": False, "logfile": log}
        parts.chardev("socket", value)
    parts.add("-serial", f"chardev:{name}")


def _add_terminal(parts: Parts, machine: Machine, name: str, log: str) -> None:
    """The terminal, shared with the monitor as -nographic does: Ctrl-A X ends the VM, Ctrl-A C is the monitor. Where
    nothing else shows the machine, its firmware speaks there too: that there is no bootable disk, for one."""
    if display_type(machine, parts.host) == "none":
        parts.machine["graphics"] = False
    parts.chardev("stdio", {"id": name, "mux": True, "signal": False, "logfile": log})
    parts.add("-mon", f"chardev={name},mode=readline")


def _add_port(parts: Parts, machine: Machine, kind: str, place: int, port: CharDevice) -> None:
    name = f"{kind}{place}"
    if port.type == "none":
        parts.add(f"-{kind}", "none")
        return
    log = parts.runtime(f"{name}.log")
    if port.type == "stdio":
        _add_terminal(parts, machine, name, log)
    else:
        backend, value = _char_device(kind, port, parts.runtime(f"{name}.sock"))
        parts.chardev(backend, {"id": name, **value, "logfile": log})
    parts.add(f"-{kind}", f"chardev:{name}")


def _char_device(kind: str, port: CharDevice, own_socket: str) -> tuple[str, dict[str, Any]]:
    if port.type == "tcp":
        host, _, number = (port.address or "").rpartition(":")
        end: dict[str, Any] = {"host": host or "127.0.0.1", "port": number}
    elif port.type == "unix":
        end = {"path": port.path or own_socket}
    elif port.type == "host":
        return kind, {"path": port.path}
    elif port.type == "file":
        return "file", {"path": port.path}
    else:
        return port.type, {}
    server = port.server is not False if port.type == "unix" else bool(port.server)
    return "socket", compact(
        {**end, "server": server, "wait": bool(port.wait) if server else None, "telnet": port.telnet}
    )


def add_devices(parts: Parts, machine: Machine, kind: Board, host: Host) -> None:
    """Everything small, in a fixed order, so that the guest finds it in the same slot at every start."""
    if machine.rng is not None:
        source = machine.rng.source
        backend = {"qom-type": "rng-random", "filename": source} if source else {"qom-type": "rng-builtin"}
        parts.object({"qom-type": backend.pop("qom-type"), "id": "rng0", **backend})
        limits = (
            {"max-bytes": machine.rng.max_bytes, "period": machine.rng.period or 1000}
            if machine.rng.max_bytes
            else {}
        )
        parts.device({"driver": f"virtio-rng{kind.virtio}", "id": "rng-device0", "rng": "rng0", **limits})
    if machine.balloon is not None:
        wishes = {
            "deflate-on-oom": machine.balloon.deflate_on_oom,
            "free-page-reporting": machine.balloon.free_page_reporting,
        }
        parts.device(compact({"driver": f"virtio-balloon{kind.virtio}", "id": "balloon0", **wishes}))
    if machine.agent:
        _add_agent(parts, kind)
    if machine.vsock is not None:
        parts.device({"driver": f"vhost-vsock{kind.virtio}", "id": "vsock0", "guest-cid": machine.vsock.cid})
    if machine.tablet:
        parts.usb()
        parts.device({"driver": "usb-tablet", "id": "tablet0", "bus": "usb.0"})
    if machine.watchdog is not None:
        parts.device({"driver": machine.watchdog.model or "i6300esb", "id": "watchdog0"})
        if machine.watchdog.action is not None:
            parts.add("-watchdog-action", machine.watchdog.action)
    for place, share in enumerate(machine.shares):
        _add_share(parts, place, share, kind, host)
    if machine.rtc is not None:
        wishes_ = {"base": machine.rtc.base, "clock": machine.rtc.clock, "driftfix": machine.rtc.driftfix}
        parts.add("-rtc", keyed(None, wishes_))
    if machine.audio is not None:
        _add_audio(parts, machine.audio)
    if machine.tpm is not None:
        _add_tpm(parts, machine, host)


def _add_agent(parts: Parts, kind: Board) -> None:
    parts.virtio_serial(kind.virtio)
    parts.chardev("socket", {"id": "agent", "path": parts.runtime(AGENT_SOCKET), "server": True, "wait": False})
    parts.device(
        {
            "driver": "virtserialport",
            "id": "agent-port",
            "bus": "virtio-serial.0",
            "chardev": "agent",
            "name": "org.qemu.guest_agent.0",
        }
    )


def share_tag(share: Share) -> str:
    return share.tag or os.path.basename(share.path.rstrip("/")) or "root"


def _add_share(parts: Parts, place: int, share: Share, kind: Board, host: Host) -> None:
    name, tag = f"share{place}", share_tag(share)
    if share.type != "virtiofs":
        value = {
            "id": name,
            "path": share.path,
            "security_model": share.security_model or "mapped-xattr",
            "readonly": share.readonly,
            "multidevs": share.multidevs,
        }
        parts.add("-fsdev", keyed("local", value))
        parts.device({"driver": f"virtio-9p{kind.virtio}", "id": f"{name}-device", "fsdev": name, "mount_tag": tag})
        return
    socket = parts.runtime(f"{name}.sock")
    argv = [host.virtiofsd or "virtiofsd", f"--socket-path={socket}"]
    if host.virtiofsd_of_qemu:
        # FUSE's option syntax: a comma ends the value unless a backslash stands before it
        argv += ["-f", "-o", "source=" + share.path.replace("\\", "\\\\").replace(",", "\\,")]
    else:
        argv.append(f"--shared-dir={share.path}")
        if share.readonly:
            argv.append("--readonly")
    parts.helpers.append(Helper(name=f"virtiofsd-{name}", argv=tuple(argv), socket=socket))
    parts.chardev("socket", {"id": name, "path": socket})
    driver = "vhost-user-fs-pci" if kind.virtio == "-pci" else "vhost-user-fs-device"
    parts.device({"driver": driver, "id": f"{name}-device", "chardev": name, "tag": tag})


def sound_card(audio: Audio) -> str:
    """The -device driver of the card."""
    return _SOUND_CARDS.get(audio.model or "hda", "hda-duplex")


def _add_audio(parts: Parts, audio: Audio) -> None:
    parts.add("-audiodev", keyed(audio.driver, {"id": "audio0", "path": audio.path}))
    card = sound_card(audio)
    if card == "hda-duplex":
        parts.device({"driver": "intel-hda", "id": "sound0"})
        parts.device({"driver": card, "id": "sound0-codec", "bus": "sound0.0", "audiodev": "audio0"})
        return
    if card == "usb-audio":
        parts.usb()
    parts.device({"driver": card, "id": "sound0", "audiodev": "audio0"})


def _add_tpm(parts: Parts, machine: Machine, host: Host) -> None:
    assert machine.tpm is not None
    socket = parts.runtime(TPM_SOCKET)
    state = machine.tpm.state or parts.runtime("tpm")
    link = parts.runtime("tpm-state") if "," in state else None  # swtpm takes what follows a comma for an option
    argv = [
        host.swtpm or "swtpm",
        "socket",
        "--tpm2",
        *("--tpmstate", f"dir={link or state}"),
        *("--ctrl", f"type=unixio,path={socket}"),
        "--terminate",
    ]
    parts.helpers.append(Helper(name="swtpm", argv=tuple(argv), socket=socket, directory=state, link=link))
    parts.chardev("socket", {"id": "tpm-socket", "path": socket})
    parts.add("-tpmdev", "emulator,id=tpm0,chardev=tpm-socket")
    parts.device({"driver": machine.tpm.model or "tpm-crb", "tpmdev": "tpm0"})
