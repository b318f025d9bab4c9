"""The host's forwarding switch, which all networks share: what it was before the first of them, and putting it back.

Turning `ip_forward` changes other settings with it: `all.accept_redirects`, and `forwarding` of every interface
(Linux, Documentation/networking/ip-sysctl.rst; inet_forward_change in net/ipv4/devinet.c). They are kept, too.
"""

from __future__ import annotations

import contextlib
import os

import msgspec

from imgtool.machine.nets import store
from imgtool.machine.nets.values import Config
from imgtool.machine.process import boot_identity

FILE = ".forwarding"
IPV4 = "net/ipv4/ip_forward"
IPV6 = "net/ipv6/conf/all/forwarding"
_PREFIXES = {IPV4: "net/ipv4/", IPV6: "net/ipv6/"}
_PROC = "/proc/sys"


class Saved(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """Settings as they were before imgtool changed any."""

    boot: str | None
    """The host's boot: after another one nothing of this is true any more."""
    namespace: int
    settings: dict[str, str]
    """Key, with slashes as sysctl takes them, → value; in the order in which they have to be put back."""


def wanted(config: Config) -> dict[str, str]:
    """What the network needs."""
    if not config.forwards_packets:
        return {}
    return {IPV4: "1", IPV6: "1"} if config.ipv6_subnet else {IPV4: "1"}


def set_argv(sysctl: str, settings: dict[str, str]) -> list[str]:
    return [sysctl, "-q", "-w", *(f"{key}={value}" for key, value in settings.items())]


def remember(config: Config) -> None:
    """Keeps what the switches that `config` needs are now, where no other network did. To be called before they are
    turned, under the lock."""
    saved = _load()
    settings = dict(saved.settings) if saved else {}
    for switch in wanted(config):
        if switch not in settings and read(switch) == "0":
            settings |= _snapshot(switch)
    if settings:
        _store(Saved(boot=boot_identity(), namespace=store.namespace(), settings=settings))


def restoration(leaving: str) -> dict[str, str]:
    """What has to be set when the network `leaving` goes: nothing while another one needs the switches, or where they
    were on before."""
    saved = _load()
    if saved is None:
        return {}
    others = [other.meta.config for other in store.entries() if other.meta is not None and other.name != leaving]
    needed = {switch for config in others for switch in wanted(config)}
    settings: dict[str, str] = {}
    for switch, prefix in _PREFIXES.items():
        if switch not in needed:
            settings |= {key: value for key, value in saved.settings.items() if key.startswith(prefix)}
    # An interface may have gone since.
    return {key: value for key, value in settings.items() if read(key) is not None}


def forget(settings: dict[str, str]) -> None:
    """To be called when `settings` are as they were."""
    saved = _load()
    if saved is None:
        _drop()
        return
    done = tuple(prefix for switch, prefix in _PREFIXES.items() if switch in settings)
    left = {key: value for key, value in saved.settings.items() if not key.startswith(done)}
    if left:
        _store(msgspec.structs.replace(saved, settings=left))
    else:
        _drop()


def read(key: str) -> str | None:
    """A sysctl's value, None where there is none of that name."""
    try:
        with open(os.path.join(_PROC, key)) as file:
            return file.read().strip()
    except OSError:
        return None


def _snapshot(switch: str) -> dict[str, str]:
    """The switch itself, and what turning it back changes besides: that comes after it."""
    family = "ipv4" if switch == IPV4 else "ipv6"
    settings = {switch: "0"}
    if switch == IPV4:
        _note(settings, "net/ipv4/conf/all/accept_redirects")
    folder = f"net/{family}/conf"
    for interface in sorted(os.listdir(os.path.join(_PROC, folder))):
        key = f"{folder}/{interface}/forwarding"
        if interface != "all" and read(key) not in (None, "0"):
            _note(settings, key)
    return settings


def _note(settings: dict[str, str], key: str) -> None:
    value = read(key)
    if value is not None:
        settings[key] = value


def _path() -> str:
    return os.path.join(store.root(), FILE)


def _load() -> Saved | None:
    """What was kept, unless it is of another boot or another network namespace."""
    try:
        with open(_path(), "rb") as file:
            saved = msgspec.json.decode(file.read(), type=Saved)
    except (OSError, msgspec.MsgspecError):
        return None
    return saved if (saved.boot, saved.namespace) == (boot_identity(), store.namespace()) else None


def _store(saved: Saved) -> None:
    new = f"{_path()}.new"
    with open(new, "wb") as file:
        file.write(msgspec.json.encode(saved))
        file.flush()
        os.fsync(file.fileno())
    os.rename(new, _path())


def _drop() -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_path())
