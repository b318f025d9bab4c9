"""What this host has of all that a machine may want, and how to get the rest. Changes nothing."""

from __future__ import annotations

import contextlib
import grp
import os
import shutil
from collections.abc import Iterator
from typing import Literal

import msgspec

from imgtool.errors import ImgtoolError
from imgtool.machine import outside
from imgtool.machine.accelerator import choose
from imgtool.machine.firmware import find_uefi
from imgtool.machine.nets import helper, needs
from imgtool.qemu.capabilities import Capabilities, capabilities
from imgtool.qemu.process import Limits, Runner, failure, run
from imgtool.qemu.programs import PACKAGES, Programs

State = Literal["ok", "missing"]

_BRIDGE = "br0"


class Check(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """One thing a machine may want."""

    name: str
    """What `--need` calls it."""
    state: State
    """missing: machines that want it cannot have it here."""
    detail: str
    """What was found, or what is missing, in words."""
    fix: str | None = None
    """A command, or a sentence; None where nothing is wrong."""

    @property
    def ok(self) -> bool:
        return self.state == "ok"


NAMES = (
    "qemu-img",
    "qemu-system",
    "kvm",
    "tcg",
    "uefi",
    "secure-boot",
    "tpm",
    "user-network",
    "passt",
    "tun",
    "vhost-net",
    "bridge",
    "nat",
    "hugepages",
    "virtiofs",
    "vsock",
    "cloud-init",
    "ssh",
)
"""Every check, in the order of the report."""


def examine(programs: Programs, *, runner: Runner = run) -> list[Check]:
    """All checks. Never raises for what is missing or broken: that is the answer."""
    system, of_qemu = _system(programs)
    found = [_version(programs, "qemu-img", "qemu-img"), system, *of_qemu, *_of_host(runner)]
    order = {name: place for place, name in enumerate(NAMES)}
    return sorted(found, key=lambda check: order[check.name])


def _yes(name: str, detail: str) -> Check:
    return Check(name=name, state="ok", detail=detail)


def _no(name: str, detail: str, fix: str | None) -> Check:
    return Check(name=name, state="missing", detail=detail, fix=fix)


def _version(programs: Programs, program: str, name: str) -> Check:
    try:
        return _yes(name, f"{programs.version(program).text}  {programs.find(program)}")
    except ImgtoolError as error:
        return _no(name, error.message, error.hint or f"on Debian: apt-get install {PACKAGES[program]}")


def _system(programs: Programs) -> tuple[Check, list[Check]]:
    """Whether there is a QEMU that runs machines, and what it can do."""
    system = _version(programs, outside.QEMU, "qemu-system")
    why = f"there is no {outside.QEMU}"
    if system.ok:
        path = programs.find(outside.QEMU)
        try:
            return system, list(_of_qemu(capabilities(path)))
        except ImgtoolError as error:
            why = f"{path} does not run"
            system = _no("qemu-system", f"{why}: {error.message}", error.hint or "install it again")
    wanted = ("kvm", "tcg", "uefi", "secure-boot", "user-network")
    return system, [_no(name, why, system.fix) for name in wanted]


def _of_qemu(qemu: Capabilities) -> Iterator[Check]:
    yield from _accelerators(qemu)
    yield _firmware(qemu, "uefi", secure_boot=False)
    yield _firmware(qemu, "secure-boot", secure_boot=True)
    if "user" in qemu.netdevs:
        yield _yes("user-network", "built into this QEMU")
    else:
        yield _no("user-network", "this QEMU was built without it", "install a QEMU with libslirp")


def _accelerators(qemu: Capabilities) -> Iterator[Check]:
    try:
        choice = choose(qemu)
    except ImgtoolError as error:
        yield _no("kvm", error.message, None)
        yield _no("tcg", "this QEMU was built without it", "install a QEMU with TCG")
        return
    proofs = {proof.accelerator: proof for proof in choice.proofs}
    kvm = proofs.get("kvm")
    if kvm is not None and kvm.works:
        yield _yes("kvm", kvm.reason)
    else:
        reason = kvm.reason if kvm is not None else "this system has none"
        yield _no("kvm", reason, _kvm_fix(reason))
    tcg = proofs.get("tcg")
    if "tcg" in qemu.accelerators:
        yield _yes("tcg", tcg.reason if tcg is not None else "built into this QEMU")
    else:
        yield _no("tcg", "this QEMU was built without it", "install a QEMU with TCG")


def _kvm_fix(reason: str) -> str:
    if "Permission denied" in reason:
        return access_fix("/dev/kvm")
    if "No such file" in reason:
        return "modprobe kvm_intel or kvm_amd; in a virtual machine: have its host allow nested virtualisation"
    return "guests are emulated (tcg) until then; on your own host, check its BIOS and nested virtualisation"


def access_fix(device: str) -> str:
    """How a user comes to open `device`: through its group, where that may read and write it and is not root's."""
    user = os.environ.get("USER", "you")
    with contextlib.suppress(OSError, KeyError):
        found = os.stat(device)
        group = grp.getgrgid(found.st_gid).gr_name
        if found.st_mode & 0o060 == 0o060 and found.st_gid != 0:
            return f"adduser {user} {group}, then log in again"
    return f"{device} is root's alone here: setfacl -m u:{user}:rw {device}"


def _firmware(qemu: Capabilities, name: str, *, secure_boot: bool) -> Check:
    machine = qemu.machine("q35") or qemu.machine()
    assert machine is not None
    try:
        found = find_uefi(qemu.target, machine.name, secure_boot=secure_boot)
    except ImgtoolError as error:
        return _no(name, error.message, error.hint)
    return _yes(name, f"{found.uefi.code} ({found.description})")


def _of_host(runner: Runner) -> Iterator[Check]:
    yield _program("tpm", "swtpm", "swtpm", runner, version=("--version",))
    yield _program("passt", "passt", "passt", runner, version=None)
    yield _device("tun", needs.tun(), "/dev/net/tun")
    yield _device("vhost-net", needs.vhost(), "/dev/vhost-net")
    yield _bridge()
    yield _nat()
    yield _hugepages()
    yield _virtiofs()
    vsock = "/dev/vhost-vsock"
    if os.path.exists(vsock):
        yield _yes("vsock", vsock)
    else:
        yield _no("vsock", f"{vsock} is not there", "modprobe vhost_vsock")
    yield _yes("cloud-init", "seeds are made by imgtool itself")
    yield _program("ssh", "ssh", "openssh-client", runner, version=None)


def _program(name: str, program: str, package: str, runner: Runner, *, version: tuple[str, ...] | None) -> Check:
    path = shutil.which(program)
    if path is None:
        return _no(name, f"{program} was not found on PATH", f"on Debian: apt-get install {package}")
    if version is None:
        return _yes(name, path)
    try:
        done = runner([path, *version], limits=Limits(seconds=10))
        if done.status != 0:
            raise failure(done)
    except ImgtoolError as error:
        return _no(name, f"{path} does not run: {error.message}", f"install it again: {package} on Debian")
    line = done.stdout.decode(errors="replace").partition("\n")[0].strip()
    return _yes(name, f"{line}  {path}" if line else path)


def _device(name: str, lack: needs.Lack | None, path: str) -> Check:
    return _yes(name, path) if lack is None else _no(name, lack.what, lack.fix)


def _bridge() -> Check:
    """The rootless way onto a bridge: the helper, setuid, and its list of bridges that users may join."""
    found = helper.findings(_BRIDGE)
    if not found:
        return _yes("bridge", f"the bridge helper may join {_BRIDGE}")
    return _no("bridge", "; ".join(one.message for one in found), "; ".join(one.fix for one in found if one.fix))


def _nat() -> Check:
    lacks = needs.lacking(needs.NAT, needs.find_tools())
    device = needs.tun()
    if device is not None and needs.may_administer():  # who has yet to become root will open it then
        lacks.append(device)
    if not lacks:
        return _yes("nat", "nft, dnsmasq, ip, and the right to use them")
    return _no("nat", "; ".join(lack.what for lack in lacks), "; ".join(lack.fix for lack in lacks))


def _hugepages() -> Check:
    mounts = outside.hugepage_mounts() if os.path.exists("/proc/self/mounts") else []
    if not mounts:
        return _no(
            "hugepages",
            "no hugetlbfs is mounted",
            "mkdir -p /dev/hugepages && mount -t hugetlbfs none /dev/hugepages",
        )
    usable = [mount for mount in mounts if mount.free]
    if not usable:
        fix = "sysctl vm.nr_hugepages=512 reserves 1 GiB in pages of 2 MiB"
        return _no("hugepages", f"{mounts[0].path} has no free pages", fix)
    free = ", ".join(f"{mount.path}: {(mount.free or 0) // mount.page_size} of {mount.page_size}" for mount in usable)
    return _yes("hugepages", f"free pages: {free} bytes")


def _virtiofs() -> Check:
    path = outside.find_virtiofsd()
    if path is None:
        fix = "on Debian: apt-get install virtiofsd (qemu-system-common before Debian 13); --share type=9p needs none"
        return _no("virtiofs", "virtiofsd was not found", fix)
    return _yes("virtiofs", path)


def needed(found: list[Check], names: list[str]) -> list[Check]:
    """The checks among `found` that are in `names` and not ok."""
    return [check for check in found if check.name in names and not check.ok]
