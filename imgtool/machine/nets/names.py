"""The names a network gives to things in the kernel: at most 15 characters for an interface, and always the same."""

from __future__ import annotations

import hashlib
import re

from imgtool.errors import UsageError
from imgtool.image.names import printable

LONGEST_INTERFACE = 15
"""IFNAMSIZ less the final NUL (linux/if.h)."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_INTERFACE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,14}")


def is_network_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def network_name(text: str) -> str:
    """`text`, if it can name a network: it becomes a folder's name and part of a firewall table's."""
    if not is_network_name(text):
        raise UsageError(
            f"'{printable(text)}' is not a name for a network",
            hint="up to 32 letters, digits, - and _, beginning with a letter or digit",
        )
    return text


def interface_name(text: str) -> str:
    """`text`, if an interface may be made with that name. Linux takes more, but a dot would be a path in sysctl."""
    if not _INTERFACE.fullmatch(text) or text in ("all", "default", "lo"):
        raise UsageError(
            f"'{printable(text)}' is not a name for a bridge",
            hint=f"up to {LONGEST_INTERFACE} letters, digits, - and _, beginning with a letter",
        )
    return text


def bridge_name(network: str) -> str:
    """The bridge of `network` unless `--bridge-name` says otherwise: `br-NAME`, its end hashed where it is long."""
    name = f"br-{network}"
    if len(name) <= LONGEST_INTERFACE:
        return name
    return f"{name[:8]}-{_digest(network, 6)}"


def bridge_mac(network: str) -> str:
    """A locally administered address for the bridge of `network`, out of QEMU's 52:54:00."""
    digits = _digest(f"bridge {network}", 6)
    return "52:54:00:" + ":".join(digits[place : place + 2] for place in (0, 2, 4))


def table_name(network: str) -> str:
    """The nftables table of `network`."""
    return f"imgtool_{network}"


def tap_name(owner: str, index: int, attempt: int = 0) -> str:
    """The tap of network number `index` of the machine `owner`: the same at every start. `attempt` counts how often
    the name was found taken, by two machines whose names hash alike."""
    salt = f" {attempt}" if attempt else ""
    return f"it-{_digest(f'tap {owner} {index}{salt}', 10)}"


def _digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:length]
