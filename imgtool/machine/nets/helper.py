"""qemu-bridge-helper: what lets a user without root put a machine into a bridge, and what keeps it from doing so.

The helper is setuid root and asks its ACL; qemu-bridge-helper.c in QEMU's sources. imgtool as root does without it.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import Literal

from msgspec import Struct

from imgtool.image.names import printable
from imgtool.machine.nets import needs
from imgtool.machine.nets.values import Value

PLACES = (
    "/usr/lib/qemu/qemu-bridge-helper",
    "/usr/libexec/qemu-bridge-helper",
    "/usr/lib64/qemu/qemu-bridge-helper",
    "/usr/local/libexec/qemu-bridge-helper",
)
"""Debian's; Fedora's and Arch's; SUSE's; where `make install` puts it."""

ACL = "/etc/qemu/bridge.conf"
_DEPTH = 8


class Finding(Value, frozen=True, kw_only=True):
    """Something that makes the bridge helper refuse, and what to do about it."""

    code: Literal[
        "helper-missing",
        "helper-not-setuid",
        "helper-nosuid-mount",
        "acl-missing",
        "acl-unreadable",
        "acl-invalid",
        "acl-denies",
        "tun",
    ]
    message: str
    fix: str


class _Rule(Struct, frozen=True):
    allow: bool
    bridge: str
    """A name, or `all`."""


def findings(bridge: str, *, helper: str | None = None, acl: str = ACL) -> list[Finding]:
    """Why `-netdev bridge,br=BRIDGE` would be refused for a user without root; empty where nothing is in the way.
    `helper` None looks in the usual places."""
    found = list(_helper_findings(helper or find()))
    found += _acl_findings(bridge, acl)
    lack = needs.tun()
    if lack is not None and "not there" in lack.what:  # the helper opens it as root
        found.append(Finding(code="tun", message=lack.what, fix=lack.fix))
    return found


def find() -> str | None:
    """The bridge helper, None where there is none."""
    return next((place for place in PLACES if os.path.exists(place)), None)


def explain(bridge: str, found: list[Finding]) -> tuple[str, str]:
    """(message, hint) for the error of a machine that the helper refused."""
    reasons = "; ".join(finding.message for finding in found) or "nothing imgtool knows of is in the way"
    fixes = "; ".join(finding.fix for finding in found) or "QEMU's own words say more"
    return f"qemu-bridge-helper does not let this user into {printable(bridge)}: {reasons}", fixes


def _helper_findings(helper: str | None) -> Iterator[Finding]:
    if helper is None or not os.path.exists(helper):
        yield Finding(
            code="helper-missing",
            message="there is no qemu-bridge-helper",
            fix="on Debian: apt-get install qemu-system-common",
        )
        return
    shown = printable(helper)
    status = os.stat(helper)
    if not (status.st_uid == 0 and status.st_mode & stat.S_ISUID) and not _has_capabilities(helper):
        yield Finding(
            code="helper-not-setuid",
            message=f"{shown} is not setuid root",
            # What dpkg is told survives the package's next update.
            fix=f"chown root {shown} && chmod u+s {shown}, or on Debian: "
            f"dpkg-statoverride --update --add root root 4755 {shown}",
        )
    elif os.statvfs(helper).f_flag & os.ST_NOSUID:
        yield Finding(
            code="helper-nosuid-mount",
            message=f"{shown} lies on a file system mounted nosuid",
            fix="mount it without nosuid, or run imgtool as root",
        )


def _acl_findings(bridge: str, acl: str) -> Iterator[Finding]:
    shown = printable(bridge)
    allow = f"mkdir -p {os.path.dirname(acl)} && echo 'allow {shown}' >> {acl}"
    try:
        rules = _read(acl, _DEPTH)
    except FileNotFoundError:
        yield Finding(code="acl-missing", message=f"{acl} is not there, so that no bridge is allowed", fix=allow)
        return
    except OSError as error:
        # The helper keeps CAP_NET_ADMIN alone before it reads its ACL, so that it sees what this user may see.
        yield Finding(
            code="acl-unreadable",
            message=f"{acl} cannot be read by this user ({error.strerror}), as whom the helper reads it",
            fix=f"chmod a+r {acl}, or give it to a group of this user's",
        )
        return
    except ValueError as error:
        yield Finding(code="acl-invalid", message=f"{acl} is refused as a whole: {error}", fix="mend that line")
        return
    denied = [rule.bridge for rule in rules if not rule.allow and rule.bridge in (bridge, "all")]
    if denied:
        yield Finding(
            code="acl-denies",
            message=f"{acl} says `deny {printable(denied[0])}`, which no `allow` overrules",
            fix="take that line out",
        )
    elif not any(rule.allow and rule.bridge in (bridge, "all") for rule in rules):
        yield Finding(code="acl-denies", message=f"{acl} does not allow {shown}", fix=allow)


def _read(path: str, depth: int) -> list[_Rule]:
    """The rules of an ACL file and of those it includes, where one that cannot be read or is invalid has none.
    ValueError for a line that the helper does not take."""
    rules = []
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        lines = [line.strip() for line in file]
    for line in lines:
        if not line or line.startswith("#"):
            continue
        word, _, value = line.partition(" " if " " in line else "\t")
        value = value.strip()
        if word not in ("allow", "deny", "include") or not value:
            raise ValueError(f"`{printable(line)}` is not a rule")
        if word != "include":
            rules.append(_Rule(word == "allow", value))
        elif depth > 0:
            with contextlib.suppress(OSError, ValueError):
                rules += _read(value, depth - 1)
    return rules


def _has_capabilities(path: str) -> bool:
    try:
        return bool(os.getxattr(path, "security.capability"))
    except OSError:
        return False
