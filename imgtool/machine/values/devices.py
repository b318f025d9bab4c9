"""Boot, display, firmware, and the devices that are neither disk nor network."""

from typing import Annotated, Literal

import msgspec

from imgtool.machine.values.base import Config, Count, Index, Path, Port, PropertyValue, Size


class MachineType(Config, frozen=True, kw_only=True):
    """`--machine TYPE,prop=value`."""

    type: str | None = None
    """None is QEMU's default for the target."""
    properties: dict[str, PropertyValue] = msgspec.field(default_factory=dict)
    """Of the board, by QEMU's names: `smm`, `hpet`, …"""


class Boot(Config, frozen=True, kw_only=True):
    """`--boot`. QAPI: BootConfiguration."""

    order: str | None = None
    """Letters: a floppy, c hard disk, d CD-ROM, n network."""
    once: str | None = None
    """Letters, for the first start alone."""
    menu: bool | None = None
    """Whether the firmware offers a menu."""
    splash: Path | None = None
    """The picture beside that menu: a JPEG or BMP file."""
    splash_time: Index | None = None
    """Milliseconds."""
    reboot_timeout: Annotated[int, msgspec.Meta(ge=-1)] | None = None
    """Milliseconds; -1 never."""
    strict: bool | None = None
    """Whether devices that are not in the order are never tried."""


DisplayType = Literal["none", "gtk", "sdl", "curses", "vnc", "spice", "egl-headless", "dbus"]


class Display(Config, frozen=True, kw_only=True):
    """`--display TYPE,…`. VNC and SPICE listen on the loopback address and ask a password unless told otherwise."""

    type: DisplayType | None = None
    """None is decided by where imgtool runs."""
    gl: Literal["on", "off", "core", "es"] | None = None
    """OpenGL for the guest's screen, and with `vga = "virtio"` for its programs; None is QEMU's default."""
    full_screen: bool | None = None
    """gtk and sdl: start over the whole screen."""
    show_cursor: bool | None = None
    """gtk and sdl: show the host's pointer as well."""
    window_close: bool | None = None
    """gtk and sdl: closing the window ends QEMU; None is yes."""
    grab_on_hover: bool | None = None
    """gtk: the keyboard belongs to the guest while the pointer is over the window."""
    zoom_to_fit: bool | None = None
    """gtk: the guest's screen is drawn as large as the window is."""
    rendernode: str | None = None
    """egl-headless, spice and dbus: the host's GPU, such as /dev/dri/renderD128."""
    address: str | None = None
    """VNC and SPICE: where to listen; None is 127.0.0.1."""
    display: int | None = None
    """VNC: display N is TCP port 5900 + N; None takes the first free one."""
    path: Path | None = None
    """VNC and SPICE: a unix socket instead of a port."""
    port: Port | None = None
    """SPICE."""
    password: bool | None = None
    """VNC and SPICE: whether one is asked for; None is yes."""
    password_file: Path | None = None
    """A file that holds the password; None has imgtool make one up."""
    websocket: bool | Port | None = None
    """VNC: for browsers (noVNC), too, on this port; true is port 5700 + N."""
    tls_creds: Path | None = None
    """VNC and SPICE: TLS, with the certificates in this folder: ca-cert.pem, server-cert.pem, server-key.pem."""
    verify_peer: bool | None = None
    """VNC by TLS: whether a viewer must have a certificate of that CA; None is no."""
    tls_port: Port | None = None
    """SPICE: where it speaks TLS."""
    usb_redir: Count | None = None
    """SPICE: how many USB devices of its own a viewer can hand to the guest at a time; None is none."""


_WINDOWS = ("gtk", "sdl")
_REMOTE = ("vnc", "spice")
DISPLAY_KEYS: dict[str, tuple[str, ...]] = {
    "full-screen": _WINDOWS,
    "show-cursor": _WINDOWS,
    "window-close": _WINDOWS,
    "grab-on-hover": ("gtk",),
    "zoom-to-fit": ("gtk",),
    "gl": ("gtk", "sdl", "spice", "egl-headless", "dbus"),
    "rendernode": ("egl-headless", "dbus", "spice"),
    "display": ("vnc",),
    "websocket": ("vnc",),
    "verify-peer": ("vnc",),
    "port": ("spice",),
    "tls-port": ("spice",),
    "usb-redir": ("spice",),
    "address": _REMOTE,
    "path": _REMOTE,
    "password": _REMOTE,
    "password-file": _REMOTE,
    "tls-creds": _REMOTE,
}
"""The displays that have each of the keys of Display."""

VgaModel = Literal["std", "cirrus", "vmware", "qxl", "virtio", "none"]


class Firmware(Config, frozen=True, kw_only=True):
    """What the guest starts from. SeaBIOS (or the machine's own) unless something else is said."""

    bios: Path | None = None
    """`--bios FILE`."""
    uefi: bool | None = None
    """UEFI firmware (OVMF) in place of a BIOS."""
    secure_boot: bool | None = None
    """UEFI with Secure Boot; implies `uefi`."""
    vars: Path | None = None
    """The file that keeps the UEFI variables, raw or qcow2, made where there is none; None is one of the VM's own."""


class Tpm(Config, frozen=True, kw_only=True):
    """`--tpm`: a TPM 2.0 emulated by swtpm."""

    model: Literal["tpm-crb", "tpm-tis"] | None = None
    """The guest's device; None is tpm-crb."""
    state: Path | None = None
    """Its folder; None is one of the VM's own."""


class CharDevice(Config, frozen=True, kw_only=True):
    """The host's end of a serial or parallel port."""

    type: Literal["stdio", "pty", "file", "unix", "tcp", "null", "none", "vc", "host"]
    """What the port leads to on the host."""
    path: Path | None = None
    """file and unix: a path; host: a device such as /dev/ttyUSB0."""
    address: str | None = None
    """tcp: host:port."""
    server: bool | None = None
    """unix and tcp: QEMU listens, rather than connects; None is yes for unix, no for tcp."""
    telnet: bool | None = None
    """tcp: speak telnet."""
    wait: bool | None = None
    """A server's: the guest starts only once somebody has connected; None is no."""


class Rng(Config, frozen=True, kw_only=True):
    """`--rng`: entropy from the host."""

    source: Path | None = None
    """A file such as /dev/urandom; None is QEMU's rng-builtin."""
    max_bytes: Size | None = None
    """In each `period` milliseconds."""
    period: Count | None = None
    """Milliseconds."""


class Balloon(Config, frozen=True, kw_only=True):
    """`--balloon`."""

    deflate_on_oom: bool | None = None
    """Whether the guest may take memory back before it runs out of it."""
    free_page_reporting: bool | None = None
    """Whether the guest gives pages it does not use back to the host by itself."""


class Vsock(Config, frozen=True, kw_only=True):
    """`--vsock CID`."""

    cid: Annotated[int, msgspec.Meta(ge=3, le=0xFFFFFFFE)]
    """The guest's context id, which no other guest of this host may have."""


class Watchdog(Config, frozen=True, kw_only=True):
    """`--watchdog MODEL,action=…`."""

    model: Literal["i6300esb", "ib700", "diag288"] | None = None
    """The guest's device; None is i6300esb."""
    action: Literal["reset", "shutdown", "poweroff", "inject-nmi", "pause", "debug", "none"] | None = None
    """What happens when the guest stops feeding it; None is reset."""


SecurityModel = Literal["mapped-xattr", "mapped", "mapped-file", "passthrough", "none"]


class Share(Config, frozen=True, kw_only=True):
    """`--share PATH,tag=…`: a host folder in the guest, by 9p or virtiofs."""

    path: Path
    """The folder on the host."""
    tag: str | None = None
    """What the guest mounts; None is the folder's name."""
    type: Literal["9p", "virtiofs"] | None = None
    """None is 9p, which needs no second program."""
    readonly: bool | None = None
    """Whether the guest cannot write to it."""
    security_model: SecurityModel | None = None
    """9p: how owners and modes are kept on the host; None is mapped-xattr, which QEMU also calls mapped."""
    multidevs: Literal["remap", "forbid", "warn"] | None = None
    """9p: what is done about file systems that are mounted below the folder, whose files could be taken for one
    another; None is QEMU's default."""


class Rtc(Config, frozen=True, kw_only=True):
    """`--rtc`."""

    base: str | None = None
    """utc, localtime, or a date: 2026-01-31T12:00:00."""
    clock: Literal["host", "rt", "vm"] | None = None
    """What it follows: the host's clock, one that never jumps (rt), or the guest's own time (vm)."""
    driftfix: Literal["none", "slew"] | None = None
    """slew: interrupts that the guest missed are given to it later."""


class Audio(Config, frozen=True, kw_only=True):
    """`--audio DRIVER,model=…`."""

    driver: str
    """none, pa, pipewire, alsa, wav…: `-audiodev help`."""
    model: str | None = None
    """The sound card: hda, ac97, es1370, sb16, virtio, usb; None is hda."""
    path: Path | None = None
    """wav: the file."""


class CloudInit(Config, frozen=True, kw_only=True):
    """`--cloud-init`: a NoCloud seed for the guest's first boot."""

    user_data: Path | None = None
    """A file."""
    meta_data: Path | None = None
    """A file; None is made from `hostname`."""
    network_config: Path | None = None
    """A file; None leaves it to cloud-init."""
    hostname: str | None = None
    """The guest's name; None is the VM's."""
    user: str | None = None
    """The user to create, who may use sudo; None is your name."""
    ssh_keys: tuple[Path, ...] = msgspec.field(name="ssh-key", default=())
    """Public key files."""


class Safety(Config, frozen=True, kw_only=True):
    """What QEMU may do on the host."""

    sandbox: bool | None = None
    """QEMU's seccomp filter; None is on where this QEMU has it."""
    run_as: str | None = None
    """The user QEMU becomes once it has opened everything: a name or uid:gid."""
