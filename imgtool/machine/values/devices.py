"""Boot, display, firmware, and the devices that are neither disk nor network."""

from typing import Annotated, Literal

import msgspec

from imgtool.machine.values.base import Config, Count, Index, Path, Port, PropertyValue, Size


class MachineType(Config, frozen=True, kw_only=True):
    """`--machine TYPE,prop=value`."""

    type: str | None = None
    """None is QEMU's default for the target."""
    properties: dict[str, PropertyValue] = msgspec.field(default_factory=dict)


class Boot(Config, frozen=True, kw_only=True):
    """`--boot`. QAPI: BootConfiguration."""

    order: str | None = None
    """Letters: a floppy, c hard disk, d CD-ROM, n network."""
    once: str | None = None
    menu: bool | None = None
    splash: Path | None = None
    splash_time: Index | None = None
    """Milliseconds."""
    reboot_timeout: Annotated[int, msgspec.Meta(ge=-1)] | None = None
    """Milliseconds; -1 never."""
    strict: bool | None = None


DisplayType = Literal["none", "gtk", "sdl", "curses", "vnc", "spice", "egl-headless", "dbus"]


class Display(Config, frozen=True, kw_only=True):
    """`--display TYPE,…`. VNC and SPICE listen on the loopback address and ask a password unless told otherwise."""

    type: DisplayType | None = None
    """None is decided by where imgtool runs."""
    gl: Literal["on", "off", "core", "es"] | None = None
    full_screen: bool | None = None
    show_cursor: bool | None = None
    window_close: bool | None = None
    grab_on_hover: bool | None = None
    rendernode: str | None = None
    address: str | None = None
    """VNC and SPICE: where to listen; None is 127.0.0.1."""
    display: int | None = None
    """VNC: display N is TCP port 5900 + N; None takes the first free one."""
    path: Path | None = None
    """VNC and SPICE: a unix socket instead of a port."""
    port: Port | None = None
    """SPICE."""
    password: bool | None = None
    password_file: Path | None = None


VgaModel = Literal["std", "cirrus", "vmware", "qxl", "virtio", "none"]


class Firmware(Config, frozen=True, kw_only=True):
    """What the guest starts from. SeaBIOS (or the machine's own) unless something else is said."""

    bios: Path | None = None
    """`--bios FILE`."""
    uefi: bool | None = None
    secure_boot: bool | None = None
    vars: Path | None = None
    """The file that keeps the UEFI variables; None is one of the VM's own."""


class Tpm(Config, frozen=True, kw_only=True):
    """`--tpm`: a TPM 2.0 emulated by swtpm."""

    model: Literal["tpm-crb", "tpm-tis"] | None = None
    state: Path | None = None
    """Its folder; None is one of the VM's own."""


class CharDevice(Config, frozen=True, kw_only=True):
    """The host's end of a serial or parallel port."""

    type: Literal["stdio", "pty", "file", "unix", "tcp", "null", "none", "vc", "host"]
    path: Path | None = None
    """file and unix: a path; host: a device such as /dev/ttyUSB0."""
    address: str | None = None
    """tcp: host:port."""
    server: bool | None = None
    telnet: bool | None = None
    wait: bool | None = None


class Rng(Config, frozen=True, kw_only=True):
    """`--rng`: entropy from the host."""

    source: Path | None = None
    """A file such as /dev/urandom; None is QEMU's rng-builtin."""
    max_bytes: Size | None = None
    """In each `period` milliseconds."""
    period: Count | None = None


class Balloon(Config, frozen=True, kw_only=True):
    """`--balloon`."""

    deflate_on_oom: bool | None = None
    free_page_reporting: bool | None = None


class Vsock(Config, frozen=True, kw_only=True):
    """`--vsock CID`."""

    cid: Annotated[int, msgspec.Meta(ge=3, le=0xFFFFFFFE)]


class Watchdog(Config, frozen=True, kw_only=True):
    """`--watchdog MODEL,action=…`."""

    model: Literal["i6300esb", "ib700", "diag288"] | None = None
    action: Literal["reset", "shutdown", "poweroff", "inject-nmi", "pause", "debug", "none"] | None = None


class Share(Config, frozen=True, kw_only=True):
    """`--share PATH,tag=…`: a host folder in the guest, by 9p or virtiofs."""

    path: Path
    tag: str | None = None
    """What the guest mounts; None is the folder's name."""
    type: Literal["9p", "virtiofs"] | None = None
    """None is 9p, which needs no second program."""
    readonly: bool | None = None
    security_model: Literal["mapped-xattr", "mapped-file", "passthrough", "none"] | None = None


class Rtc(Config, frozen=True, kw_only=True):
    """`--rtc`."""

    base: str | None = None
    """utc, localtime, or a date: 2026-01-31T12:00:00."""
    clock: Literal["host", "rt", "vm"] | None = None
    driftfix: Literal["none", "slew"] | None = None


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
    network_config: Path | None = None
    hostname: str | None = None
    user: str | None = None
    ssh_keys: tuple[Path, ...] = msgspec.field(name="ssh-key", default=())
    """Public key files."""


class Safety(Config, frozen=True, kw_only=True):
    """What QEMU may do on the host."""

    sandbox: bool | None = None
    """QEMU's seccomp filter; None is on where this QEMU has it."""
    run_as: str | None = None
    """The user QEMU becomes once it has opened everything: a name or uid:gid."""
