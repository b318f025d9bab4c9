"""What can be suspicious about an image before anyone opens it: one table of stable codes.

A code keeps its meaning for ever, since scripts match on it. The severity belongs to the code: an `error` is what no
honest image has a reason for, or that reads or writes something else on the host; a `warning` deserves a
look; `info` is good to know. Some codes decide the verdict.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import msgspec

Severity = Literal["error", "warning", "info"]
Verdict = Literal["safe", "refers-to-host", "refers-to-network", "bomb", "malformed", "unknown"]

_WORST_FIRST: tuple[Verdict, ...] = ("refers-to-host", "refers-to-network", "bomb", "malformed", "unknown")


class Finding(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", omit_defaults=True):
    """One thing found in an image."""

    code: str
    """A key of `imgtool.image.findings.KINDS`, which says what it means; it stays the same in later versions."""
    severity: Severity
    """error: QEMU should not see it. warning: look before use. info: good to know."""
    message: str
    """What was found, in words."""
    cve: str | None = None
    """The best known hole of this kind."""


class Kind(NamedTuple):
    severity: Severity
    verdict: Verdict | None
    """What the image is, when this is found; None where it stays safe."""
    meaning: str
    cve: str | None = None


KINDS: dict[str, Kind] = {
    "backing-file": Kind("warning", "refers-to-host", "it reads another file in or below its own directory"),
    "backing-outside": Kind("error", "refers-to-host", "it reads a file outside its directory", "CVE-2015-5163"),
    "backing-device": Kind("error", "refers-to-host", "it reads a device or socket of the host", "CVE-2015-5163"),
    "backing-directory": Kind(
        "error", "refers-to-host", "it reads a directory of the host as a disk", "CVE-2015-5163"
    ),
    "backing-network": Kind("error", "refers-to-network", "opening it connects to a server"),
    "backing-protocol": Kind("error", "unknown", "it is read by a protocol that is not known here"),
    "backing-tree": Kind("warning", None, "its backing file is a tree of block nodes, written out as options"),
    "backing-format-missing": Kind(
        "warning", None, "the backing file's format is guessed by whoever opens it", "CVE-2008-2004"
    ),
    "backing-format-driver": Kind("error", "refers-to-host", "its backing format is a driver that is no format"),
    "backing-name-cut": Kind(
        "error", None, "the backing file's name goes on after a NUL: programs disagree about it"
    ),
    "depends-on-cwd": Kind(
        "warning",
        None,
        "which file a relative name means depends on the current directory of whoever opens the image",
    ),
    "reference-malformed": Kind("error", "malformed", "the name of another image makes no sense"),
    "control-characters": Kind("warning", None, "a name holds characters that a terminal obeys"),
    "data-file": Kind("error", "refers-to-host", "its data lies in another file", "CVE-2024-32498"),
    "data-file-protocol": Kind(
        "error",
        "refers-to-network",
        "its data file's name is a protocol's, which older QEMU follows",
        "CVE-2024-4467",
    ),
    "data-file-missing": Kind("error", "malformed", "its data lies in another file, whose name is missing"),
    "extent": Kind("error", "refers-to-host", "parts of its disk lie in other files", "CVE-2022-47951"),
    "descriptor-odd": Kind(
        "error", "malformed", "its embedded descriptor says what a disk in one file has no use for"
    ),
    "footer-differs": Kind("error", "malformed", "its first and its last header contradict each other"),
    "malformed": Kind("error", "malformed", "its header says something impossible"),
    "two-formats": Kind("error", "malformed", "it is an image in two formats at once: programs disagree about it"),
    "unknown-features": Kind("error", "unknown", "it needs features that are not known here, nor to QEMU"),
    "extension-twice": Kind("error", "malformed", "a header extension is there twice: programs disagree about it"),
    "no-crypto-header": Kind(
        "error", "malformed", "it is encrypted by LUKS, but has no LUKS header: qemu-img crashes"
    ),
    "tables-outside": Kind("error", "malformed", "a table that describes the disk lies past the end of the file"),
    "shared-clusters": Kind("error", "bomb", "different places of the disk lie at one place in the file"),
    "inflated": Kind("error", "bomb", "the disk's contents are out of all proportion to the file"),
    "many-snapshots": Kind("error", "bomb", "so many internal snapshots that opening it takes seconds"),
    "many-bitmaps": Kind("error", "bomb", "so many bitmaps that opening it takes seconds"),
    "huge-disk": Kind("error", "bomb", "a disk larger than any real one: its tables alone fill memory or disk"),
    "marked-corrupt": Kind("warning", None, "QEMU found it corrupt and marked it"),
    "not-closed": Kind("info", None, "it was not closed properly"),
    "log-pending": Kind("warning", None, "its log has to be replayed, which needs a writable copy"),
    "encrypted": Kind("info", None, "its contents are encrypted"),
    "luks2": Kind("warning", "unknown", "it is encrypted in a way QEMU cannot read: to QEMU it is a raw disk"),
    "obsolete-format": Kind("warning", "unknown", "a format that nobody has written for years"),
    "size-doubtful": Kind("warning", None, "QEMU's versions do not agree how large the disk is"),
    "fixed-vhd": Kind("info", None, "a raw disk with a VHD footer: QEMU takes the footer for a part of the disk"),
    "partition-table-odd": Kind("warning", "malformed", "its partition table contradicts itself"),
    "cut-short": Kind("warning", "unknown", "not all of the image was there to be looked at"),
    "not-an-image": Kind("error", "unknown", "no regular file, block device or pipe"),
}


def finding(code: str, message: str) -> Finding:
    """A finding of a kind that the table knows; severity and CVE are the table's."""
    kind = KINDS[code]
    return Finding(code=code, severity=kind.severity, message=message, cve=kind.cve)


def verdict_of(findings: Iterable[Finding]) -> Verdict:
    """The worst verdict of the findings; `safe` when there is none."""
    said = {KINDS[found.code].verdict for found in findings}
    return next((verdict for verdict in _WORST_FIRST if verdict in said), "safe")
