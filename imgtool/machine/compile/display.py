"""What the guest shows and where: graphics card, display, keyboard."""

from __future__ import annotations

from typing import Any

from imgtool.machine.board import Board
from imgtool.machine.compile.encode import keyed
from imgtool.machine.compile.parts import Parts
from imgtool.machine.config import Machine
from imgtool.machine.host import SPICE_SOCKET, Host, Secret
from imgtool.machine.values.devices import Display, VgaModel

_LOOPBACK = "127.0.0.1"


def display_type(machine: Machine, host: Host) -> str:
    return machine.display.type or host.display


def vga_model(machine: Machine, kind: Board, host: Host) -> VgaModel:
    """QEMU's std on a PC, for boot loaders that speak to nothing else; elsewhere a card only when it can be seen."""
    if machine.vga is not None:
        return machine.vga
    if kind.vga:
        return "std"
    return "virtio" if kind.pci and display_type(machine, host) not in ("none", "curses") else "none"


def add_display(parts: Parts, machine: Machine, kind: Board, host: Host) -> None:
    model = vga_model(machine, kind, host)
    if model == "virtio":
        _add_virtio(parts, machine, kind, host)
    elif model != "none":
        parts.add("-vga", model)
    display, where = machine.display, display_type(machine, host)
    if where == "vnc":
        _add_vnc(parts, display, host)
    elif where == "spice":
        _add_spice(parts, display, kind, host)
    else:
        parts.add("-display", keyed(where, _window(display)))
    if machine.keymap is not None:
        parts.add("-k", machine.keymap)


def _add_virtio(parts: Parts, machine: Machine, kind: Board, host: Host) -> None:
    """With OpenGL the card that hands the guest's own on to it, which -vga does not know (QEMU 6.1)."""
    accelerated = "virtio-vga-gl" if kind.vga else "virtio-gpu-gl-pci"
    if draws_with_gl(machine, host) and host.capabilities.device(accelerated) is not None:
        parts.add("-vga", "none")
        parts.device({"driver": accelerated, "id": "video0"})
    elif kind.vga:
        parts.add("-vga", "virtio")
    else:
        parts.device({"driver": "virtio-gpu-pci", "id": "video0"})


def draws_with_gl(machine: Machine, host: Host) -> bool:
    """egl-headless has nothing else."""
    gl = machine.display.gl
    return gl != "off" if display_type(machine, host) == "egl-headless" else gl not in (None, "off")


def _window(display: Display) -> dict[str, Any]:
    return {
        "gl": display.gl,
        "full-screen": display.full_screen,
        "show-cursor": display.show_cursor,
        "window-close": display.window_close,
        "grab-on-hover": display.grab_on_hover,
        "zoom-to-fit": display.zoom_to_fit,
        "rendernode": display.rendernode,
    }


def reads_secrets(host: Host) -> bool:
    """Whether VNC and SPICE take their password from a secret object (6.1); before, it has to come over QMP."""
    return "password-secret" in host.capabilities.options.get("vnc", ())


def _password(parts: Parts, display: Display, protocol: Any, host: Host) -> dict[str, Any] | None:
    """The option that asks for a password, None where none was wanted."""
    if display.password is False:
        return None
    name = f"{protocol}-password"
    path = display.password_file or parts.runtime(f"{protocol}.secret")
    if not reads_secrets(host):
        parts.secrets.append(Secret(id=name, path=path, protocol=protocol, by_qmp=True))
        return {"password": True} if protocol == "vnc" else {}
    if display.password_file is None:
        parts.secrets.append(Secret(id=name, path=path, protocol=protocol))
    parts.object({"qom-type": "secret", "id": name, "file": path})
    return {"password-secret": name}


def _add_vnc(parts: Parts, display: Display, host: Host) -> None:
    options = _password(parts, display, "vnc", host) or {}
    if display.path is not None:
        where = f"unix:{display.path}"
    else:
        where = f"{_bracketed(display.address or _LOOPBACK)}:{display.display or 0}"
        if display.display is None:
            options["to"] = 99
    if display.websocket not in (None, False):
        options["websocket"] = display.websocket
    if display.tls_creds is not None:
        creds = {"dir": display.tls_creds, "endpoint": "server", "verify-peer": bool(display.verify_peer)}
        parts.object({"qom-type": "tls-creds-x509", "id": "vnc-tls", **creds})
        options["tls-creds"] = "vnc-tls"
    parts.add("-display", "none", "-vnc", keyed(where, options))


def _add_spice(parts: Parts, display: Display, kind: Board, host: Host) -> None:
    options = _password(parts, display, "spice", host)
    options = {"disable-ticketing": True} if options is None else options
    if display.port is not None or display.tls_port is not None:
        ports = {"port": display.port, "tls-port": display.tls_port, "x509-dir": display.tls_creds}
        where: dict[str, Any] = {**ports, "addr": display.address or _LOOPBACK}
    else:
        where = {"unix": True, "addr": display.path or parts.runtime(SPICE_SOCKET)}
    if display.gl not in (None, "off"):
        where |= {"gl": True, "rendernode": display.rendernode}
    parts.add("-display", "none", "-spice", keyed(None, {**where, **options}))
    if kind.virtio:
        # The agent in the guest: clipboard, and a screen that follows the window's size.
        parts.virtio_serial(kind.virtio)
        parts.chardev("spicevmc", {"id": "vdagent", "name": "vdagent"})
        parts.device(
            {
                "driver": "virtserialport",
                "id": "vdagent-port",
                "bus": "virtio-serial.0",
                "chardev": "vdagent",
                "name": "com.redhat.spice.0",
            }
        )
    for place in range(display.usb_redir or 0):
        parts.usb()
        parts.chardev("spicevmc", {"id": f"usb-redir{place}", "name": "usbredir"})
        parts.device(
            {
                "driver": "usb-redir",
                "id": f"usb-redir{place}-device",
                "bus": "usb.0",
                "chardev": f"usb-redir{place}",
            }
        )


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
