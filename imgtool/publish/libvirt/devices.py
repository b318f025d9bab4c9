"""The devices that are neither disk nor network."""

from __future__ import annotations

from xml.etree.ElementTree import Element

from imgtool.machine.config import Machine
from imgtool.machine.values.devices import CharDevice, Share
from imgtool.publish.libvirt.words import Notes, put, switch

VIDEO = {"std": "vga", "cirrus": "cirrus", "vmware": "vmvga", "qxl": "qxl", "virtio": "virtio", "none": "none"}
SOUND = {"hda": "ich6", "ac97": "ac97", "es1370": "es1370", "sb16": "sb16", "usb": "usb", "virtio": "virtio"}
AUDIO = {"pa": "pulseaudio", "wav": "file"}
PORTS = {"pty": "pty", "file": "file", "unix": "unix", "tcp": "tcp", "null": "null", "vc": "vc", "host": "dev"}
SECURITY = {"mapped-xattr": "mapped", "passthrough": "passthrough", "none": "squash"}
AGENT = "org.qemu.guest_agent.0"
_FIRST_VNC = 5900


def add_devices(devices: Element, machine: Machine, notes: Notes) -> None:
    _add_ports(devices, machine, notes)
    if machine.agent:
        channel = put(devices, "channel", type="unix")
        put(channel, "target", type="virtio", name=AGENT)
    if machine.tablet:
        put(devices, "input", type="tablet", bus="usb")
    _add_tpm(devices, machine, notes)
    _add_display(devices, machine, notes)
    _add_audio(devices, machine, notes)
    if machine.watchdog is not None:
        action = machine.watchdog.action
        if action == "debug":
            notes.add("watchdog.action", "libvirt has no debug")
            action = "none"
        put(devices, "watchdog", model=machine.watchdog.model, action=action)
    _add_balloon(devices, machine)
    _add_rng(devices, machine)
    if machine.vsock is not None:
        put(put(devices, "vsock", model="virtio"), "cid", auto=False, address=machine.vsock.cid)
    for place, share in enumerate(machine.shares):
        _add_share(devices, share, f"share[{place}]", notes)
    if machine.cloud_init is not None:
        notes.add("cloud-init", "libvirt makes no seed: --seed FILE writes one, and gives it to the domain as a disk")


def _add_ports(devices: Element, machine: Machine, notes: Notes) -> None:
    for kind, ports in (("serial", machine.serial or ()), ("parallel", machine.parallel)):
        for place, port in enumerate(ports):
            setting = f"{kind}[{place}]"
            if port.type not in PORTS:
                notes.add(setting, f"libvirt has no {kind} port on {port.type}")
                continue
            _add_port(devices, kind, place, port, setting, notes)


def _add_port(devices: Element, kind: str, place: int, port: CharDevice, setting: str, notes: Notes) -> None:
    element = put(devices, kind, type=PORTS[port.type])
    mode = "bind" if port.server else "connect"
    if port.type in ("file", "host"):
        put(element, "source", path=port.path)
    elif port.type == "unix":
        put(element, "source", mode=mode, path=port.path)
    elif port.type == "tcp":
        address, _, service = (port.address or "").rpartition(":")
        put(element, "source", mode=mode, host=address or "127.0.0.1", service=service)
        put(element, "protocol", type="telnet" if port.telnet else "raw")
    if port.wait:
        notes.add(f"{setting}.wait", "libvirt never has a guest wait for who connects")
    if port.telnet and port.type != "tcp":
        notes.add(f"{setting}.telnet", "libvirt has telnet over TCP only")
    put(element, "target", port=place)


def _add_tpm(devices: Element, machine: Machine, notes: Notes) -> None:
    if machine.tpm is None:
        return
    put(put(devices, "tpm", model=machine.tpm.model), "backend", type="emulator", version="2.0")
    if machine.tpm.state is not None:
        notes.add("tpm.state", "libvirt keeps it in a folder of its own, where it begins empty")


def _add_display(devices: Element, machine: Machine, notes: Notes) -> None:
    display, kind = machine.display, machine.display.type
    known = ["type"]
    if kind in ("vnc", "spice"):
        known += _add_remote(devices, machine, notes)
    elif kind == "sdl":
        graphics = put(devices, "graphics", type="sdl", fullscreen=display.full_screen)
        if display.gl is not None:
            put(graphics, "gl", enable=display.gl != "off")
        known += ["full_screen", "gl"]
    elif kind in ("egl-headless", "dbus"):
        graphics = put(devices, "graphics", type=kind)
        if kind == "egl-headless" and display.rendernode is not None:
            put(graphics, "gl", rendernode=display.rendernode)
            known.append("rendernode")
    elif kind not in (None, "none"):
        notes.add("display.type", f"libvirt has no {kind}")
    notes.rest(display, "display", known)
    if machine.keymap is not None and kind not in ("vnc", "spice"):
        notes.add("keymap", "libvirt has one for VNC and SPICE only")
    video = put(put(devices, "video"), "model", type=VIDEO[machine.vga or "none"])
    if machine.vga not in (None, "none"):
        video.set("heads", "1")
    if machine.vga == "virtio" and (display.gl not in (None, "off") or (kind, display.gl) == ("egl-headless", None)):
        put(video, "acceleration", accel3d=True)


def _add_remote(devices: Element, machine: Machine, notes: Notes) -> list[str]:
    display, kind = machine.display, str(machine.display.type)
    port = display.port
    if kind == "vnc" and display.display is not None:
        port = _FIRST_VNC + display.display
    graphics = put(devices, "graphics", type=kind, keymap=machine.keymap)
    if display.websocket not in (None, False):
        graphics.set("websocket", "-1" if display.websocket is True else str(display.websocket))
    if display.path is not None:
        put(graphics, "listen", type="socket", socket=display.path)
    else:
        graphics.set("autoport", "yes" if port is None and display.tls_port is None else "no")
        if port is not None:
            graphics.set("port", str(port))
        put(graphics, "listen", type="address", address=display.address or "127.0.0.1")
    if kind == "spice" and display.gl is not None:
        put(graphics, "gl", enable=display.gl != "off", rendernode=display.rendernode)
    if kind == "spice":
        put(put(devices, "channel", type="spicevmc"), "target", type="virtio", name="com.redhat.spice.0")
    for _ in range(display.usb_redir or 0):
        put(devices, "redirdev", bus="usb", type="spicevmc")
    if display.tls_port is not None:
        graphics.set("tlsPort", str(display.tls_port))
    for key, word in (("tls_creds", "x509_cert_dir"), ("verify_peer", "x509_verify")):
        if getattr(display, key) is not None:
            where = (
                f"`{kind}_tls = 1` and `{kind}_tls_{word}` in libvirt's qemu.conf say it for all of a host's domains"
            )
            notes.add(f"display.{key.replace('_', '-')}", where)
    if display.password is not False:
        notes.add(
            "display.password",
            "imgtool makes a new one at each start; libvirt keeps one in its XML: `virsh edit`, or password = false",
        )
    known = ["password", "path", "address", "port", "display", "websocket", "usb_redir"]
    known += ["tls_creds", "tls_port", "verify_peer"]
    return [*known, *(["gl", "rendernode"] if kind == "spice" else [])]


def _add_audio(devices: Element, machine: Machine, notes: Notes) -> None:
    wanted = machine.audio
    if wanted is None:
        return
    model = SOUND.get(wanted.model or "hda")
    if model is None:
        notes.add("audio.model", f"libvirt has no sound card {wanted.model}")
    else:
        sound = put(devices, "sound", model=model)
        if model == "ich6":
            put(sound, "codec", type="duplex")
        put(sound, "audio", id=1)
    put(devices, "audio", id=1, type=AUDIO.get(wanted.driver, wanted.driver), path=wanted.path)


def _add_balloon(devices: Element, machine: Machine) -> None:
    wanted = machine.balloon
    if wanted is None:
        put(devices, "memballoon", model="none")
        return
    put(
        devices,
        "memballoon",
        model="virtio",
        autodeflate=switch(wanted.deflate_on_oom),
        freePageReporting=switch(wanted.free_page_reporting),
    )


def _add_rng(devices: Element, machine: Machine) -> None:
    wanted = machine.rng
    if wanted is None:
        return
    rng = put(devices, "rng", model="virtio")
    if wanted.max_bytes is not None:
        put(rng, "rate", bytes=wanted.max_bytes, period=wanted.period)
    put(rng, "backend", wanted.source, model="builtin" if wanted.source is None else "random")


def _add_share(devices: Element, share: Share, setting: str, notes: Notes) -> None:
    mode: str | None = "passthrough"
    if share.type != "virtiofs":
        mode = SECURITY.get(share.security_model or "mapped-xattr")
        if mode is None:
            notes.add(f"{setting}.security-model", f"libvirt has no {share.security_model}")
            mode = "mapped"
    system = put(devices, "filesystem", type="mount", accessmode=mode, multidevs=share.multidevs)
    put(system, "driver", type="virtiofs" if share.type == "virtiofs" else "path")
    put(system, "source", dir=share.path)
    put(system, "target", dir=share.tag)
    if share.readonly:
        put(system, "readonly")
