"""What somebody who knows `qemu-system-x86_64` types for `imgtool boot`, and what it is called here."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from itertools import zip_longest

import click

from imgtool.errors import UsageError

_NETWORK = "write --network user, or --network user,hostfwd=tcp::2222-:22 where a port of the guest is wanted"
_DISK = "the first disk is IMAGE alone, a further one --drive file=IMAGE"
_SHARE = "write --share PATH,tag=NAME"

_HERE = {
    "m": "write --memory {}",
    "mem": "write --memory {}",
    "ram": "write --memory {}",
    "M": "write --machine {}",
    "k": "write --keymap {}",
    "cpus": "write --smp {}",
    "vcpus": "write --smp {}",
    "enable-kvm": "leave it out, KVM is taken where it works; --accel kvm takes nothing else",
    "no-kvm": "write --accel tcg",
    "nographic": "leave it out: a terminal is the serial console anyway; without one --display none opens no window",
    "curses": "write --display curses",
    "sdl": "write --display sdl",
    "vnc": "write --display vnc={}",
    "spice": "write --display spice,{}",
    "graphics": "write --display {}",
    "daemonize": "write --detach",
    "background": "write --detach",
    "snapshot": "write --ephemeral",
    "disk": _DISK,
    "blockdev": _DISK,
    "sd": "write --drive if=sd,file={}",
    "mtdblock": "write --drive if=mtd,file={}",
    "pflash": "write --uefi, or --drive if=pflash,file={}",
    "net": _NETWORK,
    "netdev": _NETWORK,
    "nic": _NETWORK,
    "redir": _NETWORK,
    "port": _NETWORK,
    "p": _NETWORK,
    "bridge": "write --network bridge,br={}",
    "usb": "leave it out: --tablet and if=usb bring it along; a device of the host is "
    "imgtool boot … -- -usb -device usb-host,vendorid=…,productid=…",
    "usbdevice": "write --tablet",
    "soundhw": "write --audio DRIVER,model={}",
    "audiodev": "write --audio {}",
    "virtfs": _SHARE,
    "fsdev": _SHARE,
    "v": _SHARE,
    "mem-path": "write --hugepages {}",
    "no-acpi": "write --machine acpi=off",
    "no-hpet": "write --machine hpet=off",
    "nodefaults": "leave it out: every machine has only what it was given",
    "no-user-config": "leave it out: QEMU reads no configuration of its own",
    "full-screen": "write --display gtk,full-screen=on",
    "tpmdev": "write --tpm",
    "localtime": "write --rtc localtime",
    "runas": "write --run-as {}",
    "monitor": "leave it out: Ctrl-A C on the serial console is QEMU's monitor, and `imgtool vm monitor NAME` that "
    "of a VM in the background",
    "qmp": "leave it out: `imgtool vm qmp NAME COMMAND` speaks to every VM; -- -qmp {} makes one more",
    "pidfile": "leave it out: `imgtool vm show NAME` says the process",
}
"""Words of QEMU and of other launchers that no option of `boot` is made of by a second dash: what does the same."""

_DEVICES = {
    "virtio-rng": "--rng",
    "virtio-balloon": "--balloon",
    "vhost-vsock": "--vsock CID",
    "usb-tablet": "--tablet",
    "i6300esb": "--watchdog=i6300esb",
    "ib700": "--watchdog=ib700",
    "tpm-": "--tpm={}",
    "virtio-9p": _SHARE.removeprefix("write "),
    "vhost-user-fs": "--share PATH,type=virtiofs,tag=NAME",
    "virtio-net": "--network user, or another network, whose card is virtio",
    "e1000": "--network user,model={}",
    "rtl8139": "--network user,model={}",
    "virtio-blk": "--drive file=IMAGE,if=virtio",
    "virtio-scsi": "--drive file=IMAGE,if=scsi",
    "scsi-": "--drive file=IMAGE,if=scsi",
    "ide-": "--drive file=IMAGE,if=ide",
    "nvme": "--drive file=IMAGE,if=nvme",
    "usb-storage": "--drive file=IMAGE,if=usb",
    "virtio-vga": "--vga virtio",
    "qxl": "--vga qxl",
    "intel-hda": "--audio DRIVER",
    "AC97": "--audio DRIVER,model=ac97",
}
"""Beginnings of the names of devices that an option of `boot` makes, with all that they hang on."""

_QEMU = frozenset(("device", "object", "chardev", "global", "smbios", "fw_cfg", "incoming", "loadvm", "qmp", "gdb"))
"""Words of QEMU that are taken for QEMU's with two dashes too."""

MISTAKEN = frozenset(("-fda", "-fdb", "-fsdev", "-full-screen", "-fw_cfg", "-hdd"))
"""Words of QEMU that are options of `boot` with one letter, and the value of the last of them."""


def refuse_qemu_word(command: click.Command, args: Sequence[str], option: str) -> None:
    """Raises UsageError with imgtool's word where `option`, which `command` does not know, came of one of `args` that
    is QEMU's or another launcher's. Of a word with one dash click knows a letter only."""
    long = option.startswith("--")
    for at, word in enumerate(args):
        if word.split("=")[0] == option if long else _has_letter(word, option[1:]):
            following = args[at + 1] if at + 1 < len(args) else ""
            name, _, value = word.lstrip("-").partition("=")
            hint = _hint(command, name, value or following, double=long)
            if hint is not None:
                raise UsageError(f"there is no option {word!r} in `imgtool boot`", hint=hint)
            return


def refuse_mistaken_word(command: click.Command, args: Sequence[str]) -> None:
    """The same for `-fda` and its like, which click takes for other options: for `-f` with the format `da`. And for
    options that have a value for QEMU only."""
    _refuse_log_items(args)
    _refuse_sandbox_value(args)
    for at, word in enumerate(args):
        if word in MISTAKEN:
            refuse_qemu_word(command, args[at:], word[:2])


_LOG_ITEMS = frozenset(
    ("in_asm", "out_asm", "op", "op_opt", "op_ind", "int", "exec", "cpu", "fpu", "mmu", "pcall", "cpu_reset")
) | {"guest_errors", "page", "nochain", "unimp", "strace", "plugin", "tid"}
"""What `-d help` of QEMU lists."""


def _refuse_log_items(args: Sequence[str]) -> None:
    """UsageError for `-d int`: that is --detach here, and what QEMU would log is no image."""
    for word, following in zip_longest(args, args[1:], fillvalue=""):
        if word == "-d" and set(following.split(",")) <= _LOG_ITEMS and not os.path.lexists(following):
            raise UsageError(
                f"-d is --detach, and {following} is no image",
                hint=f"what QEMU logs is told to it after `--`: imgtool boot … -- -d {following} -D qemu-debug.log",
            )


def _refuse_sandbox_value(args: Sequence[str]) -> None:
    """UsageError for `-sandbox on` and its like: the option is there, but has no value here."""
    for word, following in zip_longest(args, args[1:], fillvalue=""):
        name, equals, value = word.partition("=")
        value = value if equals else following
        if name in ("-sandbox", "--sandbox") and re.match(r"(on|off)(,|$)", value):
            raise UsageError(
                "--sandbox takes no value",
                hint="write --no-sandbox"
                if value == "off"
                else "leave it out, it is on unless --no-sandbox is given"
                + (f"; --no-sandbox -- -sandbox {value} goes to QEMU as it is" if value != "on" else ""),
            )


def _has_letter(word: str, letter: str) -> bool:
    return word[:1] == "-" and word[1:2] != "-" and letter in word[1:]


def _hint(command: click.Command, name: str, value: str, *, double: bool) -> str | None:
    """What to write for the option `name`, which `value` stands behind; `double` where it has two dashes already."""
    if value.startswith("-"):
        value = ""
    if name in _HERE:
        return _HERE[name].format(shlex.quote(value) if value else "…")
    if name == "device":
        driver = value.partition(",")[0]
        for beginning, words in _DEVICES.items():
            if driver.startswith(beginning):
                return f"write {words.format(driver)}; any other device goes to QEMU itself, after `--`"
    option = _named(command, name)
    if option is not None:
        takes_value = not option.is_flag and option.flag_value != ""
        words = f"--{name} {shlex.quote(value)}" if value and takes_value else f"--{name}"
        return f"write {words}, with two dashes"
    if name not in _QEMU and (double or (len(name) == 1 and name not in "sSDL")):
        return None
    words = f"-{name} {shlex.quote(value)}" if value and name not in "sS" else f"-{name}"
    return f"what imgtool has no option for goes to QEMU itself, after `--` at the end: imgtool boot … -- {words}"


def _named(command: click.Command, name: str) -> click.Option | None:
    options = (param for param in command.params if isinstance(param, click.Option))
    return next((option for option in options if f"--{name}" in option.opts), None)
