"""Learning from the outside world what compiling a machine needs: `Host`."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Mapping
from typing import Literal

from imgtool.errors import ConfigError, MachineError, ProgramError
from imgtool.image.names import pasted, printable
from imgtool.machine.accelerator import Choice, choose
from imgtool.machine.checks.network import SMBD
from imgtool.machine.compile.memory import host_nodes
from imgtool.machine.config import Machine
from imgtool.machine.host import Disk, Host, HugepageMount, HugepagePool, Uefi
from imgtool.machine.values.devices import DisplayType
from imgtool.machine.values.network import Bridge, Nat, Tap
from imgtool.qemu.capabilities import Capabilities, capabilities
from imgtool.qemu.process import Limits, Runner, run
from imgtool.qemu.programs import Programs
from imgtool.qemu.search import which

QEMU = "qemu-system-x86_64"

_LINUX = sys.platform.startswith("linux")

_VIRTIOFSD = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/lib/virtiofsd")


def learn_accelerator(machine: Machine, found: Capabilities) -> Choice:
    """The accelerator `machine` gets: the one it names, unproven, or what `auto` stands for here. ProgramError when
    this QEMU was built without the named one."""
    if machine.accel in (None, "auto"):
        return choose(found)
    assert machine.accel is not None
    if machine.accel not in found.accelerators:
        raise ProgramError(
            f"{found.program} was built without {machine.accel}",
            hint=f"it has: {', '.join(found.accelerators)}; --accel auto takes what works",
        )
    return Choice(accelerator=machine.accel, host_cpu=machine.accel != "tcg", proofs=())


def learn_host(
    machine: Machine,
    programs: Programs,
    *,
    runtime_dir: str,
    scratch_dir: str | None,
    console: Literal["stdio", "socket", "none"],
    disks: Mapping[str, Disk],
    seed: str | None = None,
    uefi: Uefi | None = None,
    qemu: str = QEMU,
) -> tuple[Host, Choice]:
    """`Host` for `machine` here, and how its accelerator was chosen."""
    found = capabilities(programs.find(qemu))
    choice = learn_accelerator(machine, found)
    total, free = memory()
    virtiofsd = find_virtiofsd()
    host = Host(
        qemu=found.program,
        capabilities=found,
        accelerator=choice.accelerator,  # type: ignore[arg-type]
        runtime_dir=runtime_dir,
        scratch_dir=scratch_dir,
        console=console,
        disks=dict(disks),
        seed=seed,
        uefi=uefi,
        hugepages=hugepages(machine),
        hugepage_mounts=tuple(hugepage_mounts()) if machine.hugepages and _LINUX else (),
        hugepage_pools=tuple(hugepage_pools()) if machine.hugepages else (),
        machine_properties=machine_properties(machine, found),
        cpu_properties=cpu_properties(machine, found, choice.accelerator),
        vsock=os.path.exists("/dev/vhost-vsock"),
        desktop=desktop(),
        display=usual_display(machine, found, foreground=console == "stdio"),
        render_nodes=_render_nodes(),
        memory_total=total,
        memory_free=free,
        bridges=_bridges(machine),
        bridge_helper=_bridge_helper(machine),
        passt=which("passt"),
        smbd=_first((SMBD,)),
        swtpm=which("swtpm"),
        virtiofsd=virtiofsd,
        virtiofsd_of_qemu=wants_virtiofs(machine) and virtiofsd is not None and is_virtiofsd_of_qemu(virtiofsd),
        root=os.getuid() == 0,
    )
    return host, choice


def _bridges(machine: Machine) -> dict[str, str]:
    networks = machine.networks or ()
    if not any(isinstance(network, Nat) for network in networks):
        return {}
    from imgtool.machine.nets.join import bridges

    return bridges(networks)


def _bridge_helper(machine: Machine) -> str | None:
    if not any(isinstance(network, (Bridge, Tap, Nat)) for network in machine.networks or ()):
        return None
    from imgtool.machine.nets import helper

    return helper.find()


def _render_nodes() -> tuple[str, ...]:
    with contextlib.suppress(OSError):
        return tuple(sorted(f"/dev/dri/{name}" for name in os.listdir("/dev/dri") if name.startswith("renderD")))
    return ()


def desktop() -> bool:
    """Whether this is a graphical session. On macOS a program always has one."""
    return sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def usual_display(machine: Machine, found: Capabilities, *, foreground: bool) -> DisplayType:
    """What shows the machine that does not say: a window where there is a desktop and the VM has no terminal (it was
    started by a click, or `--serial` sends the console elsewhere); else nothing: its console is on the terminal."""
    on_terminal = sys.stdin is not None and sys.stdin.isatty()
    if machine.serial is not None:
        on_terminal = any(port.type == "stdio" for port in machine.serial)
    if not foreground or on_terminal or not desktop():
        return "none"
    windows: tuple[DisplayType, ...] = ("gtk", "sdl")
    return next((kind for kind in windows if kind in found.displays), "none")


def check_files(machine: Machine) -> None:
    """Raises ConfigError for the first file or folder that the machine is to read and that is not there, or the
    folder that a port's file or socket is to be made in; and for a user that QEMU is to become and that there is not.
    """
    named: list[tuple[str, str | None]] = [
        ("--kernel", machine.kernel),
        ("--initrd", machine.initrd),
        ("--dtb", machine.dtb),
        ("--bios", machine.firmware.bios),
        ("--boot splash", machine.boot.splash),
        ("--rng", machine.rng.source if machine.rng else None),
        ("--display password-file", machine.display.password_file),
        ("--display rendernode", machine.display.rendernode),
    ]
    if machine.display.tls_creds is not None:
        folder = machine.display.tls_creds
        certificates = [os.path.join(folder, f"{name}.pem") for name in ("ca-cert", "server-cert", "server-key")]
        named += [("--display tls-creds", path) for path in (folder, *certificates)]
    named += [("--share", share.path) for share in machine.shares]
    for network in machine.networks or ():
        option = f"--network {network.__struct_config__.tag}"
        keys = ("tftp", "smb", "helper", "script", "downscript")
        named += [(f"{option} {key}", getattr(network, key, None)) for key in keys]
    for option, path in named:
        if path is not None and path != "no" and not os.path.exists(path):
            raise ConfigError(f"{option}: {printable(path)} does not exist", path=path)
    for option, ports in (("--serial", machine.serial or ()), ("--parallel", machine.parallel)):
        for port in ports:
            if port.type in ("file", "unix") and port.path is not None:
                _check_folder(f"{option} {port.type}", port.path)
    for number in {number for node in machine.numa.nodes for number in host_nodes(node)} if _LINUX else ():
        if not os.path.exists(f"/sys/devices/system/node/node{number}"):
            raise ConfigError(
                f"--numa host-nodes: this host has no NUMA node {number}", hint="`numactl --hardware` lists them"
            )
    if machine.safety.run_as is not None:
        _check_user(machine.safety.run_as)


def _check_folder(option: str, path: str) -> None:
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        what = "is not a folder" if os.path.lexists(folder) else "does not exist"
        raise ConfigError(
            f"{option}: {printable(path)} cannot be made: {printable(folder)} {what}",
            hint=f"mkdir -p {pasted(folder)}",
            path=path,
        )


def _check_user(name: str) -> None:
    import pwd

    if ":" in name:
        return  # numbers, which need no entry
    try:
        pwd.getpwnam(name)
    except KeyError:
        raise ConfigError(
            f"--run-as {printable(name)}: this host has no such user",
            hint="`getent passwd` lists them; uid:gid in numbers is taken as it is",
        ) from None


def machine_properties(machine: Machine, found: Capabilities) -> tuple[str, ...] | None:
    """The properties of its type, asked only when the machine sets some; None when there is no such type."""
    kind = found.machine(machine.machine.type)
    if not machine.machine.properties or kind is None:
        return None
    return _property_names(found.program, f"{kind.name}-machine")


def cpu_properties(machine: Machine, found: Capabilities, accelerator: str) -> tuple[str, ...] | None:
    """The same for its CPU; a feature that is none of those that `-cpu help` lists may be one of them, too."""
    unlisted = {name[1:] for name in machine.cpu.features}.difference(found.cpu_features)
    if not machine.cpu.properties and not unlisted:
        return None
    model = machine.cpu.model or ("max" if accelerator == "tcg" else "host")
    return _property_names(found.program, f"{model}-{found.target}-cpu")


def _property_names(program: str, type_name: str) -> tuple[str, ...] | None:
    from imgtool.qemu.interview import properties

    try:
        return tuple(item.name for item in properties(program, type_name))
    except MachineError:
        return None


def find_virtiofsd() -> str | None:
    """It lies outside of PATH where it came from a package."""
    return which("virtiofsd") or _first(_VIRTIOFSD)


def wants_virtiofs(machine: Machine) -> bool:
    return any(share.type == "virtiofs" for share in machine.shares)


def is_virtiofsd_of_qemu(program: str, *, runner: Runner = run) -> bool:
    """Whether it is QEMU's own virtiofsd in C (`virtiofsd version 7.2.0`) rather than the one in Rust (`virtiofsd
    1.13.2`)."""
    return b"virtiofsd version" in runner([program, "--version"], limits=Limits(seconds=10)).stdout


def memory() -> tuple[int | None, int | None]:
    """The host's memory in bytes: all of it, and what programs can still get. None where that is not known."""
    if not sys.platform.startswith("linux"):
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), None
        except (ValueError, OSError):
            return None, None
    with open("/proc/meminfo") as file:
        return parse_meminfo(file.read())


def parse_meminfo(text: str) -> tuple[int | None, int | None]:
    """MemTotal and MemAvailable of /proc/meminfo, in bytes."""
    values = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words:
            values[name] = int(words[0]) * 1024
    return values.get("MemTotal"), values.get("MemAvailable")


def hugepages(machine: Machine) -> HugepageMount | None:
    """The hugetlbfs mount for `machine`: the one at the path it names, or the one with the page size it names, else
    the first. None when it wants no hugepages, or there is no such mount."""
    wanted = machine.hugepages
    if wanted is None or not _LINUX:
        return None
    for mount in hugepage_mounts():
        if wanted.path is not None and os.path.realpath(wanted.path) != os.path.realpath(mount.path):
            continue
        if wanted.page_size in (None, mount.page_size):
            return mount
    return None


def hugepage_mounts() -> list[HugepageMount]:
    """Those that this process can see."""
    with open("/proc/self/mounts", "rb") as file:
        paths = parse_hugetlbfs(file.read())
    free = {pool.page_size: pool.free for pool in hugepage_pools()}
    found = []
    for path in paths:
        with contextlib.suppress(OSError):
            size = os.statvfs(path).f_bsize
            found.append(HugepageMount(path=path, page_size=size, free=free.get(size)))
    return found


def parse_hugetlbfs(mounts: bytes) -> list[str]:
    """Where /proc/PID/mounts has file systems of huge pages. It writes blanks in names as octal numbers."""
    rows = [line.split(b" ") for line in mounts.splitlines()]
    paths = [row[1] for row in rows if row[2] == b"hugetlbfs"]
    return [os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), path)) for path in paths]


def hugepage_pools() -> list[HugepagePool]:
    """What the host has reserved of each size; empty where that cannot be told."""
    import glob

    found = []
    for folder in sorted(glob.glob("/sys/kernel/mm/hugepages/hugepages-*kB")):
        with contextlib.suppress(OSError, ValueError):
            size = int(folder.rpartition("-")[2].removesuffix("kB")) * 1024
            free, total = (_number(f"{folder}/{name}_hugepages") * size for name in ("free", "nr"))
            found.append(HugepagePool(page_size=size, free=free, total=total))
    return found


def _number(path: str) -> int:
    with open(path) as file:
        return int(file.read())


def _first(paths: tuple[str, ...]) -> str | None:
    return next((path for path in paths if os.access(path, os.X_OK)), None)
