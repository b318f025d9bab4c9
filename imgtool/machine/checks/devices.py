"""Display, ports, and the small devices."""

from __future__ import annotations

import re
from collections import Counter
from datetime import datetime

from imgtool.errors import ConfigError
from imgtool.image.names import printable
from imgtool.machine.checks.context import Context, Problems, check_socket
from imgtool.machine.compile.devices import share_tag, sound_card
from imgtool.machine.compile.display import display_type
from imgtool.machine.options.text import suggestion
from imgtool.machine.values.devices import DISPLAY_KEYS, CharDevice, Display

KEYMAPS = (
    "ar bepo cz da de de-ch en-gb en-us es et fi fo fr fr-be fr-ca fr-ch hr hu is it ja lt lv mk nl no pl pt pt-br "
    "ru sl sv th tr"
)
"""What QEMU's pc-bios/keymaps holds."""

_FIRST_AUDIO_DRIVERS = "none alsa coreaudio dsound jack oss pa sdl spice wav"
"""Of a QEMU that cannot list its own. QAPI of 5.2: AudiodevDriver."""

_WINDOWS = ("gtk", "sdl")
_LAST_VNC = 65535 - 5900
_SERIAL_PORTS = {"pc": 4, "q35": 4, "isapc": 4, "microvm": 1, "virt": 2, "other": 4}
_PARALLEL_PORTS = 3
_LONGEST_TAG = 31
_PCI_VGA = ("cirrus", "vmware", "qxl", "virtio")


def check_display(context: Context) -> Problems:
    display, kind = context.machine.display, display_type(context.machine, context.host)
    known = context.host.capabilities.displays
    if kind not in ("none", "vnc", "spice") and known and kind not in known:
        yield ConfigError(
            f"this QEMU has no {kind} display", hint="apt-get install qemu-system-gui; --display vnc needs no window"
        )
    if kind in _WINDOWS and context.host.desktop is False:
        yield ConfigError(
            f"--display {kind} opens a window, and this is not a graphical session",
            hint="neither DISPLAY nor WAYLAND_DISPLAY is set; --display vnc can be looked at from elsewhere",
        )
    if kind == "spice" and not _has_spice(context):
        yield ConfigError(
            "this QEMU has no SPICE", hint="apt-get install qemu-system-modules-spice; --display vnc is another"
        )
    if kind == "egl-headless" and display.rendernode is None and context.host.render_nodes == ():
        yield ConfigError(
            "--display egl-headless draws with a GPU, and this host has none (no /dev/dri/renderD*)",
            hint="--display vnc needs none",
        )
    if kind == "vnc" and "vnc" not in context.host.capabilities.options:
        yield ConfigError("this QEMU was built without VNC")
    if display.display is not None and not 0 <= display.display <= _LAST_VNC:
        yield ConfigError(
            f"VNC display {display.display} would be TCP port {5900 + display.display}",
            hint=f"a display is 0 to {_LAST_VNC}",
        )
    for key, where in DISPLAY_KEYS.items():
        if getattr(display, key.replace("-", "_")) is not None and kind not in where:
            yield ConfigError(f"--display {kind} has no {key}", hint=f"--display {' and '.join(where)} can have one")
    if display.password is False and display.password_file is not None:
        yield ConfigError("--display: a password file, but no password", hint="leave password=off out")
    if display.path is not None:
        yield from check_socket(f"--display {kind}", display.path)
        if (display.address, display.display, display.port, display.tls_port) != (None, None, None, None):
            yield ConfigError(
                "--display: a unix socket has no address and port", hint="leave path= out, or the others"
            )
    yield from _tls(display, kind)


def _tls(display: Display, kind: str) -> Problems:
    if display.websocket not in (None, False) and display.path is not None:
        yield ConfigError("--display vnc: a browser reaches no unix socket", hint="leave path= or websocket= out")
    if display.verify_peer is not None and display.tls_creds is None:
        yield ConfigError("--display vnc: verify-peer is about TLS", hint="tls-creds=FOLDER holds the certificates")
    if kind == "spice" and display.tls_port is not None and display.tls_creds is None:
        yield ConfigError("--display spice: tls-port without certificates", hint="tls-creds=FOLDER holds them")
    elif kind == "spice" and display.tls_port is None and display.tls_creds is not None:
        yield ConfigError("--display spice: certificates, but no tls-port", hint="tls-port=5901, for example")


def _has_spice(context: Context) -> bool:
    """A module that is not loaded yet shows by what depends on it."""
    known = context.host.capabilities
    return "spice" in known.options or "spicevmc" in known.chardevs or known.device("qxl-vga") is not None


def check_vga(context: Context) -> Problems:
    vga, board, keymap = context.machine.vga, context.board, context.machine.keymap
    if vga not in (None, "none"):
        if board.family == "isapc" and vga in _PCI_VGA:
            yield ConfigError(f"--vga {vga} sits on PCI, which an ISA PC has not", hint="--vga std")
        elif not board.vga and not (vga == "virtio" and board.pci):
            yield ConfigError(
                f"machine {board.name} has no VGA card", hint="--vga virtio" if board.pci else "leave --vga out"
            )
    devices = {
        "cirrus": "cirrus-vga",
        "vmware": "vmware-svga",
        "qxl": "qxl-vga",
        "virtio": "virtio-vga",
        "std": "VGA",
    }
    driver = devices.get(vga or "none")
    if board.vga and driver is not None and context.host.capabilities.device(driver) is None:
        yield ConfigError(f"this QEMU was built without --vga {vga}", hint="--vga std is always there")
    if keymap is not None and keymap not in KEYMAPS.split():
        yield ConfigError(f"QEMU has no keymap {printable(keymap)!r}", hint=suggestion(keymap, KEYMAPS.split()))


def check_ports(context: Context) -> Problems:
    machine, board = context.machine, context.board
    serial = machine.serial or ()
    limit = _SERIAL_PORTS[board.family]
    if len(serial) > limit:
        yield ConfigError(f"{len(serial)} serial ports, but machine {board.name} has {limit}")
    if machine.parallel and not board.parallel:
        yield ConfigError(f"machine {board.name} has no parallel ports", hint="pc and q35 have")
    elif len(machine.parallel) > _PARALLEL_PORTS:
        yield ConfigError(f"{len(machine.parallel)} parallel ports, but a PC has {_PARALLEL_PORTS}")
    terminal = [port for port in (*serial, *machine.parallel) if port.type == "stdio"]
    if len(terminal) > 1:
        yield ConfigError(
            "two ports are on the terminal", hint="one can be stdio; pty, unix:PATH and file:PATH are others"
        )
    on_terminal = terminal or (machine.serial is None and context.host.console == "stdio")
    if on_terminal and display_type(machine, context.host) == "curses":
        yield ConfigError(
            "the curses display and a serial port both want the terminal", hint="--serial unix:PATH, or none"
        )
    for name, ports in (("--serial", serial), ("--parallel", machine.parallel)):
        for port in ports:
            yield from _port(name, port)


def _port(name: str, port: CharDevice) -> Problems:
    if port.type in ("file", "host") and port.path is None:
        yield ConfigError(f"{name} {port.type} needs a path", hint=f"write {name} file:/path")
    if port.type == "unix" and port.path is not None:
        yield from check_socket(f"{name} unix", port.path)
    if port.type == "tcp" and not (port.address or "").rpartition(":")[2].isdecimal():
        yield ConfigError(
            f"{name} tcp needs an address and a port", hint=f"write {name} tcp:127.0.0.1:4444,server=on"
        )
    if port.type not in ("unix", "tcp") and (port.server or port.wait or port.telnet):
        yield ConfigError(f"{name} {port.type} is not a socket", hint="server, wait and telnet are for unix and tcp")
    elif port.wait and port.server is False:
        yield ConfigError(f"{name}: only a server waits for the other side", hint="add server=on")


def check_virtio(context: Context) -> Problems:
    """Devices that need a virtio or USB bus."""
    machine, board = context.machine, context.board
    wanted = {
        "--rng": machine.rng is not None,
        "--balloon": machine.balloon is not None,
        "--agent": bool(machine.agent),
        "--vsock": machine.vsock is not None,
        "--share": bool(machine.shares),
    }
    if not board.virtio:
        for option, given in wanted.items():
            if given:
                yield ConfigError(
                    f"{option} is a virtio device, and machine {board.name} has no PCI", hint="--machine pc"
                )
    if machine.vsock is not None and context.host.vsock is False:
        yield ConfigError("--vsock: this host has no /dev/vhost-vsock", hint="modprobe vhost_vsock")
    if machine.tablet and not board.pci:
        yield ConfigError(f"--tablet needs USB, which machine {board.name} has not", hint="--machine q35 has")
    if machine.rng is not None and machine.rng.period is not None and machine.rng.max_bytes is None:
        yield ConfigError("--rng period is the time that max-bytes counts for", hint="add max-bytes=")


def check_watchdog(context: Context) -> Problems:
    watchdog, board = context.machine.watchdog, context.board
    if watchdog is None:
        return
    model = watchdog.model or "i6300esb"
    if context.host.capabilities.device(model) is None:
        yield ConfigError(f"this QEMU has no watchdog {model}", hint="i6300esb is on PCI, ib700 on ISA")
    elif model == "i6300esb" and not board.pci:
        yield ConfigError(
            f"the watchdog {model} sits on PCI, which machine {board.name} has not", hint="--watchdog ib700"
        )
    elif model == "ib700" and not board.parallel:
        yield ConfigError(
            f"the watchdog {model} sits on ISA, which machine {board.name} has not", hint="--watchdog i6300esb"
        )


def check_shares(context: Context) -> Problems:
    for share in context.machine.shares:
        tag = share_tag(share)
        if len(tag.encode(errors="surrogateescape")) > _LONGEST_TAG:
            yield ConfigError(
                f"--share: the tag {printable(tag)} has more than {_LONGEST_TAG} bytes", hint="add tag="
            )
        if share.type == "virtiofs" and share.security_model is not None:
            yield ConfigError("--share: security_model is 9p's; virtiofs maps users by itself")
        if share.type == "virtiofs" and share.multidevs is not None:
            yield ConfigError("--share: multidevs is 9p's; virtiofs tells file systems apart by itself")
        if share.type == "virtiofs" and context.host.virtiofsd is None:
            yield ConfigError(
                "--share type=virtiofs: virtiofsd was not found", hint="apt-get install virtiofsd; type=9p needs none"
            )
        if share.type == "virtiofs" and share.readonly and context.host.virtiofsd_of_qemu:
            yield ConfigError(
                "--share: QEMU's own virtiofsd knows no readonly=on", hint="type=9p does, and the newer virtiofsd"
            )
    for tag, times in Counter(share_tag(share) for share in context.machine.shares).items():
        if times > 1:
            yield ConfigError(
                f"two shares have the tag {printable(tag)}", hint="the guest mounts them by it: add tag="
            )


def check_rtc_audio(context: Context) -> Problems:
    rtc, audio = context.machine.rtc, context.machine.audio
    if rtc is not None and rtc.base not in (None, "utc", "localtime"):
        try:
            datetime.fromisoformat(rtc.base or "")
        except ValueError:
            yield ConfigError(
                f"--rtc base={printable(rtc.base or '')} is not a date", hint="utc, localtime, or 2026-01-31T12:00:00"
            )
    if audio is None:
        return
    capabilities = context.host.capabilities
    drivers = capabilities.audiodevs or tuple(_FIRST_AUDIO_DRIVERS.split())
    if audio.driver not in drivers:
        yield ConfigError(
            f"this QEMU has no audio driver {printable(audio.driver)!r}",
            hint=suggestion(audio.driver, drivers),
        )
    models = ("hda", "ac97", "es1370", "sb16", "virtio", "usb")
    if audio.model not in (None, *models):
        yield ConfigError(f"--audio has no sound card {printable(audio.model or '')!r}", hint=", ".join(models))
    elif capabilities.device(sound_card(audio)) is None:
        yield ConfigError(
            f"this QEMU has no {audio.model} sound card", hint="model=ac97 and model=hda are everywhere"
        )
    elif not context.board.pci and audio.model != "sb16":
        yield ConfigError(f"machine {context.board.name} has no PCI for a sound card", hint="model=sb16 sits on ISA")
    if audio.path is not None and audio.driver != "wav":
        yield ConfigError(f"--audio {printable(audio.driver)} writes no file", hint="--audio wav,path=FILE does")


def check_cloud_init(context: Context) -> Problems:
    found = context.machine.cloud_init
    if found is None:
        return
    made = [name for name, value in (("user", found.user), ("ssh-key", found.ssh_keys)) if value]
    if found.user_data is not None and made:
        yield ConfigError(
            f"--cloud-init has user-data and {' and '.join(made)}, which would be in user-data too",
            hint="write them into the user-data file, or leave that out",
        )
    elif not any((found.user_data, found.hostname, found.network_config, found.meta_data, *made)):
        yield ConfigError("--cloud-init says nothing", hint="give user-data, or ssh-key, user, hostname")
    if found.meta_data is not None and found.hostname is not None:
        yield ConfigError("--cloud-init: hostname is in the meta-data file already", hint="leave one out")
    if found.hostname is not None and not re.fullmatch(
        r"[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?", found.hostname
    ):
        yield ConfigError(
            f"--hostname {printable(found.hostname)} is not a host name", hint="letters, digits and dashes"
        )
    if found.user is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", found.user):
        yield ConfigError(
            f"--user {printable(found.user)} is not a user name",
            hint="letters, digits and `_.-` after a letter, at most 32",
        )


def check_safety(context: Context) -> Problems:
    machine = context.machine
    if machine.safety.sandbox and "sandbox" not in context.host.capabilities.options:
        yield ConfigError("this QEMU was built without seccomp, so --sandbox cannot be", hint="leave --sandbox out")
    run_as = machine.safety.run_as
    if run_as is not None and not re.fullmatch(r"[a-z_][a-z0-9_.-]*\$?|[0-9]+:[0-9]+", run_as):
        yield ConfigError(f"--run-as {printable(run_as)} is not a user", hint="a name, or uid:gid in numbers")
    elif run_as is not None and not context.host.root:
        yield ConfigError("--run-as: only root can become another user", hint="leave it out: QEMU runs as you")
