"""The devices of a domain that are neither disk nor network, as settings of a machine."""

from __future__ import annotations

from typing import Any
from xml.etree.ElementTree import Element

from imgtool.machine.values.devices import (
    Audio,
    Balloon,
    CharDevice,
    Display,
    Rng,
    Share,
    Tpm,
    Vsock,
    Watchdog,
)
from imgtool.publish.libvirt.devices import AGENT, AUDIO, PORTS, SECURITY, SOUND, VIDEO
from imgtool.publish.libvirt.reading_words import Found, attribute, number, text_at

_PORTS = {theirs: ours for ours, theirs in PORTS.items()}
_VIDEO = {theirs: ours for ours, theirs in VIDEO.items()}
_SOUND = {**{theirs: ours for ours, theirs in SOUND.items()}, "ich9": "hda"}
_AUDIO = {theirs: ours for ours, theirs in AUDIO.items()}
_SECURITY = {theirs: ours for ours, theirs in SECURITY.items()}
_DOGS = ("i6300esb", "ib700", "diag288")
_ACTIONS = ("reset", "shutdown", "poweroff", "inject-nmi", "pause", "none")
_PASSED = ("hostdev", "smartcard", "panic", "shmem", "memory", "iommu", "nvram", "crypto")
_OURS = (AGENT, "com.redhat.spice.0")


def read_devices(found: Found) -> dict[str, Any]:
    """Fields of Machine."""
    devices = found.root.find("devices")
    if devices is None:
        devices = Element("devices")
    display, keymap = _display(devices, found)
    video = attribute(devices, "video/model", "type")
    vga = "none" if video is None else _VIDEO.get(video)
    if vga is None:
        found.notes.add("video", f"a {video} card")
    for tag in _PASSED:
        for place, _ in enumerate(devices.findall(tag)):
            found.notes.add(f"{tag}[{place}]", f"imgtool has no setting for a {tag}")
    return {
        "display": display,
        "keymap": keymap,
        "vga": vga,
        "serial": tuple(_ports(devices, "serial", found)),
        "parallel": tuple(_ports(devices, "parallel", found)),
        "agent": _agent(devices, found),
        "tablet": True if devices.find("input[@type='tablet']") is not None else None,
        "tpm": _tpm(devices, found),
        "rng": _rng(devices),
        "balloon": _balloon(devices),
        "vsock": _vsock(devices),
        "watchdog": _watchdog(devices, found),
        "audio": _audio(devices, found),
        "shares": tuple(_share(one) for one in devices.findall("filesystem")),
    }


def _agent(devices: Element, found: Found) -> bool | None:
    names = [attribute(channel, "target", "name") or "" for channel in devices.findall("channel")]
    for name in names:
        if name not in _OURS:
            found.notes.add("channel", f"a channel {name}")
    return True if AGENT in names else None


def _display(devices: Element, found: Found) -> tuple[Display, str | None]:
    for place, _ in enumerate(devices.findall("graphics")[1:], 1):
        found.notes.add(f"graphics[{place}]", "a machine has one display")
    graphics = devices.find("graphics")
    if devices.find("redirdev") is not None and (graphics is None or graphics.get("type") != "spice"):
        found.notes.add("redirdev", "only SPICE hands USB devices to the guest")
    if graphics is None:
        return Display(type="none"), None
    kind: Any = graphics.get("type")
    settings: dict[str, Any] = {"type": kind}
    gl = graphics.find("gl")
    if kind in ("vnc", "spice"):
        settings["password"] = bool(graphics.get("passwd"))
        settings |= _listening(graphics, kind)
    if kind == "vnc" and graphics.get("websocket") is not None:
        browsers = number(graphics, "websocket")
        settings["websocket"] = True if browsers == -1 else browsers
    if (number(graphics, "tlsPort") or -1) > 0:
        found.notes.add(
            "graphics/tlsPort", "its certificates are in libvirt's qemu.conf; `tls-creds` names them here"
        )
    if kind == "spice":
        settings["usb_redir"] = len(devices.findall("redirdev")) or None
    if kind == "sdl" and graphics.get("fullscreen"):
        settings["full_screen"] = graphics.get("fullscreen") == "yes"
    if gl is not None:
        if gl.get("enable") is not None:
            settings["gl"] = "on" if gl.get("enable") == "yes" else "off"
        settings["rendernode"] = gl.get("rendernode")
    return Display(**settings), graphics.get("keymap")


def _listening(graphics: Element, kind: str) -> dict[str, Any]:
    listen = graphics.find("listen")
    if listen is not None and listen.get("type") == "socket":
        return {"path": listen.get("socket")}
    settings: dict[str, Any] = {}
    address = graphics.get("listen") if listen is None else listen.get("address")
    if address not in (None, "127.0.0.1"):
        settings["address"] = address
    port = number(graphics, "port")
    if graphics.get("autoport") != "yes" and port is not None and port >= 0:
        if kind == "vnc" and port >= 5900:
            settings["display"] = port - 5900
        else:
            settings["port"] = port
    return settings


def _ports(devices: Element, kind: str, found: Found) -> list[CharDevice]:
    ports = []
    for place, element in enumerate(devices.findall(kind)):
        type_: Any = _PORTS.get(element.get("type", ""))
        if type_ is None:
            found.notes.add(f"{kind}[{place}]", f"a port on {element.get('type')}")
            continue
        source = element.find("source")
        server = None if source is None else {"bind": True, "connect": False}.get(source.get("mode", ""))
        settings: dict[str, Any] = {}
        if source is not None and type_ in ("file", "unix", "host"):
            settings["path"] = source.get("path")
        if type_ == "unix":
            settings["server"] = server is not False
        elif type_ == "tcp" and source is not None:
            settings["address"] = f"{source.get('host', '')}:{source.get('service', '')}"
            settings["server"] = server or None
            settings["telnet"] = True if attribute(element, "protocol", "type") == "telnet" else None
        ports.append(CharDevice(type=type_, **settings))
    return ports


def _tpm(devices: Element, found: Found) -> Tpm | None:
    tpm = devices.find("tpm")
    if tpm is None:
        return None
    model: Any = tpm.get("model", "tpm-tis")
    if attribute(tpm, "backend", "type") != "emulator" or model not in ("tpm-crb", "tpm-tis"):
        found.notes.add("tpm", "a TPM that is not emulated, or of another model")
        return None
    return Tpm(model=model)


def _rng(devices: Element) -> Rng | None:
    rng = devices.find("rng")
    if rng is None:
        return None
    rate = rng.find("rate")
    return Rng(
        source=text_at(rng, "backend") if attribute(rng, "backend", "model") == "random" else None,
        max_bytes=None if rate is None else number(rate, "bytes"),
        period=None if rate is None else number(rate, "period"),
    )


def _balloon(devices: Element) -> Balloon | None:
    balloon = devices.find("memballoon")
    if balloon is None or balloon.get("model") == "none":
        return None
    switches = {"on": True, "off": False}
    return Balloon(
        deflate_on_oom=switches.get(balloon.get("autodeflate", "")),
        free_page_reporting=switches.get(balloon.get("freePageReporting", "")),
    )


def _vsock(devices: Element) -> Vsock | None:
    cid = devices.find("vsock/cid")
    address = None if cid is None else number(cid, "address")
    return None if address is None else Vsock(cid=address)


def _watchdog(devices: Element, found: Found) -> Watchdog | None:
    """The first one of a model that can be asked for; `itco` is on every q35 board, and libvirt names it."""
    for dog in devices.findall("watchdog"):
        model: Any = dog.get("model")
        action: Any = dog.get("action", "reset")
        if model in _DOGS and action in _ACTIONS:
            return Watchdog(model=model, action=action)
        if model != "itco":
            found.notes.add("watchdog", f"a {model} that does {action}")
    return None


def _audio(devices: Element, found: Found) -> Audio | None:
    sound = devices.find("sound")
    if sound is None:
        return None
    model = _SOUND.get(sound.get("model", ""))
    if model is None:
        found.notes.add("sound", f"a sound card {sound.get('model')}")
        return None
    audio = devices.find("audio")
    driver = "none" if audio is None else audio.get("type", "none")
    return Audio(driver=_AUDIO.get(driver, driver), model=model, path=None if audio is None else audio.get("path"))


def _share(system: Element) -> Share:
    virtiofs = attribute(system, "driver", "type") == "virtiofs"
    mode: Any = None if virtiofs else _SECURITY.get(system.get("accessmode", "passthrough"), "passthrough")
    several: Any = system.get("multidevs", "default")
    return Share(
        path=attribute(system, "source", "dir") or "/",
        tag=attribute(system, "target", "dir"),
        type="virtiofs" if virtiofs else "9p",
        security_model=mode,
        readonly=True if system.find("readonly") is not None else None,
        multidevs=None if several == "default" else several,
    )
