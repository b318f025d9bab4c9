"""`--boot`, `--display`, `--serial`, and the small devices."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from imgtool.errors import UsageError
from imgtool.image.names import printable
from imgtool.machine.options.fields import build, kinds, read, scalars
from imgtool.machine.options.text import boolean, once, pairs, split, suggestion
from imgtool.machine.values.devices import (
    DISPLAY_KEYS,
    Audio,
    Balloon,
    Boot,
    CharDevice,
    CloudInit,
    Display,
    Rng,
    Rtc,
    Share,
    Tpm,
    Vsock,
    Watchdog,
)

T = TypeVar("T", bound=msgspec.Struct)


def _simple(option: str, kind: type[T], text: str, *, first: str | None) -> T:
    return build(option, kind, once(option, pairs(option, text, first=first, keys=scalars(kind))))


def parse_boot(text: str) -> Boot:
    """`dc`, or `order=,once=,menu=,splash=,splash-time=,reboot-timeout=,strict=`."""
    return _simple("--boot", Boot, text, first="order")


def parse_rng(text: str) -> Rng:
    """`` (QEMU's own), `/dev/urandom`, `source=,max-bytes=,period=`."""
    return _simple("--rng", Rng, text, first="source")


def parse_balloon(text: str) -> Balloon:
    return _simple("--balloon", Balloon, text, first=None)


def parse_vsock(text: str) -> Vsock:
    """`42`, `cid=42`."""
    return _simple("--vsock", Vsock, text, first="cid")


def parse_watchdog(text: str) -> Watchdog:
    """`i6300esb,action=pause`."""
    return _simple("--watchdog", Watchdog, text, first="model")


def parse_share(text: str) -> Share:
    """`PATH,tag=data,type=virtiofs,readonly=on`; of QEMU's -virtfs the keys `mount_tag` and `security_model`, too."""
    keys = [*scalars(Share), *_SHARE_ALIASES]
    found = pairs("--share", text.removeprefix("local,"), first="path", keys=keys)
    return build("--share", Share, once("--share", [(_SHARE_ALIASES.get(key, key), value) for key, value in found]))


_SHARE_ALIASES = {"mount_tag": "tag", "security_model": "security-model"}


def parse_rtc(text: str) -> Rtc:
    """`localtime`, `base=utc,clock=host,driftfix=slew`."""
    return _simple("--rtc", Rtc, text, first="base")


def parse_audio(text: str) -> Audio:
    """`pa,model=ac97`."""
    return _simple("--audio", Audio, text, first="driver")


def parse_tpm(text: str) -> Tpm:
    """``, `tpm-tis,state=FOLDER`."""
    return _simple("--tpm", Tpm, text, first="model")


def parse_cloud_init(text: str) -> CloudInit:
    """`FILE,meta-data=FILE,network-config=FILE,hostname=NAME,user=NAME,ssh-key=FILE`."""
    option = "--cloud-init"
    found = pairs(option, text, first="user-data", keys=[*scalars(CloudInit), "ssh-key"])
    words = once(option, found, repeated=("ssh-key",))
    return build(option, CloudInit, words, ssh_keys=tuple(value for key, value in found if key == "ssh-key"))


def parse_display(text: str) -> Display:
    """`gtk,gl=on`, `vnc=127.0.0.1:1`, `vnc=unix:/path`, `vnc`, `spice,port=5930`."""
    first, *rest = split(text)
    name, equals, where = first.removeprefix("type=").partition("=")
    option = f"--display {printable(name)}"
    kind = read("--display", "type", name, kinds(Display)["type"])
    if equals and kind != "vnc":
        raise UsageError(f"--display {printable(name)} takes no {printable(where)!r}", hint="only vnc=ADDRESS:N does")
    again = ",".join(part.replace(",", ",,") for part in rest)
    keys = [key for key in DISPLAY_KEYS if kind in DISPLAY_KEYS[key]]
    others = [*DISPLAY_KEYS, *_DISPLAY_ALIASES, *(_SPICE_ONLY if kind == "spice" else ())]
    found = pairs(option, again, first=None, keys=[*keys, *others], listed=keys)
    words = once(option, [(_DISPLAY_ALIASES.get(key, key), value) for key, value in found])
    words |= _vnc_words(where) if where else {}
    _as_spice_has_it(option, words)
    ready: dict[str, Any] = {"type": kind}
    socket = words.pop("websocket", None)
    if socket is not None:
        ready["websocket"] = int(socket) if socket.isdecimal() else boolean(option, "websocket", socket)
    return build(option, Display, words, **ready)


def _vnc_words(where: str) -> dict[str, str]:
    """What stands behind `vnc=`: `[ADDRESS]:N` or `unix:PATH`."""
    if where.startswith("unix:"):
        return {"path": where.removeprefix("unix:")}
    address, colon, number = where.rpartition(":")
    if not colon or not number.isdecimal():
        raise UsageError(
            f"--display vnc: {printable(where)!r} is not an address", hint="write vnc=:1 or vnc=unix:/path"
        )
    found = {"display": number}
    if address:
        found["address"] = address.removeprefix("[").removesuffix("]")
    return found


def _as_spice_has_it(option: str, words: dict[str, str]) -> None:
    """`disable-ticketing=on` is no password, and with `unix=on` the address is a path."""
    free = words.pop("disable-ticketing", None)
    if free is not None:
        words.setdefault("password", "off" if boolean(option, "disable-ticketing", free) else "on")
    if boolean(option, "unix", words.pop("unix", "off")) and "address" in words:
        words["path"] = words.pop("address")


_DISPLAY_ALIASES = {"addr": "address", "x509-dir": "tls-creds"}
_SPICE_ONLY = ("disable-ticketing", "unix")
_SERIAL_KEYS = ("server", "wait", "telnet")
_PLACES = {
    "file": "file:PATH",
    "tcp": "tcp:127.0.0.1:4444,server=on,wait=off",
    "telnet": "telnet:127.0.0.1:4444,server=on,wait=off",
}


def parse_port(option: str, text: str) -> CharDevice:
    """QEMU's -serial and -parallel: stdio, pty, null, none, vc, file:PATH, unix:PATH,server=on, tcp:HOST:PORT,
    telnet:HOST:PORT, /dev/ttyUSB0."""
    first, *rest = split(text)
    again = ",".join(rest)
    kind, _, where = first.removeprefix("mon:").partition(":")
    if rest and not where and kind in _PLACES:
        raise UsageError(f"{option} {kind} does not say where", hint=f"write {_PLACES[kind]}")
    words = once(option, pairs(option, again, first=None, keys=_SERIAL_KEYS))
    if first.startswith("/dev/"):
        return build(option, CharDevice, words, type="host", path=first)
    if kind in ("stdio", "pty", "null", "none", "vc") and not where:
        return build(option, CharDevice, words, type=kind)
    if kind in ("file", "unix"):
        return build(option, CharDevice, words, type=kind, path=where or None)
    if kind in ("tcp", "telnet"):
        if not where.rpartition(":")[2].isdecimal():
            raise UsageError(f"{option}: {printable(where)!r} has no port", hint=f"write {kind}:127.0.0.1:4444")
        if kind == "telnet":
            words["telnet"] = "on"
        return build(option, CharDevice, words, type="tcp", address=where)
    choices = ["stdio", "pty", "null", "none", "vc", "file:PATH", "unix:PATH", "tcp:HOST:PORT", "telnet:HOST:PORT"]
    raise UsageError(f"{option} has no {printable(first)!r}", hint=suggestion(first, choices))
