"""What the guest starts from, and its clock."""

from __future__ import annotations

import calendar
import time
from xml.etree.ElementTree import Element

from imgtool.machine.config import Machine
from imgtool.machine.firmware import Found
from imgtool.publish.libvirt.words import Notes, put

ORDER = {"a": "fd", "c": "hd", "d": "cdrom", "n": "network"}
_TRACKS = {"host": "wall", "vm": "guest"}


def add_os(
    root: Element, features: Element, machine: Machine, found: Found | None, architecture: str, notes: Notes
) -> None:
    """`<os>`; without a firmware that was `found` here, libvirt looks for one."""
    uefi = bool(machine.firmware.uefi)
    selected = uefi and found is None
    os_ = put(root, "os", firmware="efi" if selected else None)
    put(os_, "type", "hvm", arch=architecture, machine=machine.machine.type)
    _add_firmware(os_, features, machine, found, notes)
    for tag, value in (
        ("kernel", machine.kernel),
        ("initrd", machine.initrd),
        ("cmdline", machine.append),
        ("dtb", machine.dtb),
    ):
        if value is not None:
            put(os_, tag, value)
    _add_boot(os_, machine, notes)


def _add_firmware(os_: Element, features: Element, machine: Machine, found: Found | None, notes: Notes) -> None:
    wanted = machine.firmware
    if wanted.bios is not None:
        put(os_, "loader", wanted.bios, type="rom")
    if not wanted.uefi:
        notes.rest(wanted, "firmware", ["bios", "uefi"])
        return
    if found is None:
        chosen = put(os_, "firmware")
        put(chosen, "feature", enabled=bool(wanted.secure_boot), name="enrolled-keys")
        put(chosen, "feature", enabled=bool(wanted.secure_boot), name="secure-boot")
        if wanted.vars is not None:
            notes.add("firmware.vars", "the variables begin as libvirt's firmware has them")
        return
    secure = True if found.uefi.requires_smm else None
    raw = found.uefi.code_format == "raw"
    put(
        os_,
        "loader",
        found.uefi.code,
        readonly=True,
        secure=secure,
        type="pflash",
        format=None if raw else found.uefi.code_format,
    )
    if secure:
        put(features, "smm", state="on")
    if found.template is not None:
        form = "qcow2" if wanted.vars is not None and _is_qcow2(wanted.vars) else None
        put(os_, "nvram", wanted.vars, template=found.template, format=form)


def _is_qcow2(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"QFI\xfb"
    except OSError:
        return False


def _add_boot(os_: Element, machine: Machine, notes: Notes) -> None:
    boot = machine.boot
    for letter in boot.order or "":
        if letter in ORDER:
            put(os_, "boot", dev=ORDER[letter])
        else:
            notes.add("boot.order", f"libvirt has nothing for {letter}")
    if boot.menu is not None or boot.splash_time is not None:
        put(os_, "bootmenu", enable=bool(boot.menu), timeout=boot.splash_time)
    if boot.reboot_timeout is not None:
        put(os_, "bios", rebootTimeout=boot.reboot_timeout)
    if boot.strict is False:
        notes.add("boot.strict", "libvirt always has a guest start from what was named only")
    notes.rest(boot, "boot", ["order", "menu", "splash_time", "reboot_timeout", "strict"])


def add_clock(root: Element, machine: Machine, notes: Notes) -> None:
    wanted = machine.rtc
    if wanted is None:
        put(root, "clock", offset="utc")
        return
    if wanted.base in ("utc", "localtime"):
        clock = put(root, "clock", offset=wanted.base)
    else:
        clock = put(root, "clock", offset="absolute", start=_seconds(wanted.base or "", notes))
    policy = {None: None, "slew": "catchup", "none": "delay"}[wanted.driftfix]
    track = _TRACKS.get(wanted.clock or "")
    if wanted.clock is not None and track is None:
        notes.add("rtc.clock", f"libvirt's clock does not follow {wanted.clock}")
    if policy is not None or track is not None:
        put(clock, "timer", name="rtc", tickpolicy=policy, track=track)


def _seconds(base: str, notes: Notes) -> int:
    """A date and time, which QEMU takes as UTC, since the epoch."""
    for form in ("%Y-%m-%dT%H:%M:%S", "%Y-%m-%d"):
        try:
            return calendar.timegm(time.strptime(base, form))
        except ValueError:
            continue
    notes.add("rtc.base", "it is not a date")
    return 0
