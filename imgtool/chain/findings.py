"""What can be wrong, or worth knowing, about an image in a chain: one table of stable codes.

A code keeps its meaning for ever, since scripts match on it; a new defect gets a new row. The severity belongs to the
code: an `error` means that QEMU cannot open the image, or reads something else through it than was meant; a `warning`
that it soon may; `info` is good to know.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Severity = Literal["error", "warning", "info"]


class Finding(msgspec.Struct, frozen=True, gc=False, rename="kebab"):
    """One thing found, on the image that carries it or, in `Graph.findings`, about the store as a whole."""

    code: str
    """A key of `imgtool.chain.findings.KINDS`, which says what it means; it stays the same in later versions."""
    severity: Severity
    """error: reading it fails or gives something wrong. warning: it may. info: good to know."""
    message: str
    """What was found, in words, with the names concerned."""


class Kind(msgspec.Struct, frozen=True):
    severity: Severity
    meaning: str


KINDS: dict[str, Kind] = {
    "missing": Kind("error", "the file does not exist; something names it"),
    "missing-parent": Kind("error", "the backing file does not exist"),
    "self-reference": Kind("error", "the image names itself as its backing file"),
    "cycle": Kind("error", "following backing files leads back to the image"),
    "broken-chain": Kind("error", "an image further down is missing, unusable or part of a cycle"),
    "unreadable": Kind("error", "the file cannot be opened or read"),
    "not-a-file": Kind("error", "a directory, FIFO, socket or character device where an image should be"),
    "malformed": Kind("error", "the header says something impossible"),
    "reference-malformed": Kind("error", "the name of the backing or data file makes no sense to QEMU"),
    "backing-format-missing": Kind("warning", "no backing format is named, so QEMU guesses it from the bytes"),
    "backing-format-wrong": Kind("error", "the backing file is not of the format that is named"),
    "backing-format-doubtful": Kind("warning", "the backing file is named raw, but its bytes say otherwise"),
    "backing-ambiguous": Kind("warning", "which file the backing name means depends on the name used for the image"),
    "depends-on-cwd": Kind(
        "warning", "which file a name means depends on the current directory of whoever opens the image"
    ),
    "not-trusted": Kind("warning", "it refers to what the policy does not let it refer to, which was not looked at"),
    "overlay-smaller": Kind("warning", "the disk is smaller than the backing file's, whose end it hides"),
    "overlay-larger": Kind("info", "the disk is larger than the backing file's; past that it reads its own zeros"),
    "parent-changed": Kind("error", "the backing file is not the disk that the image was made on"),
    "parent-written": Kind("error", "the backing file was written after the image was made on it"),
    "parent-copied": Kind("info", "the backing file is a copy of the one that the image was made on"),
    "anchor-stale": Kind("warning", "the image was put on another backing file without remembering what that is"),
    "remote-parent": Kind("info", "the backing file is reached by a protocol and was not looked at"),
    "remote-unusable": Kind("error", "the backing file is reached by a protocol, and could not be opened"),
    "options-parent": Kind(
        "info", "the backing file is a json: tree of several files, or named with options, and was not looked at"
    ),
    "data-file-missing": Kind("error", "the external data file, or an extent, does not exist"),
    "data-file-unusable": Kind("error", "the external data file cannot be opened, or is no file"),
    "data-file-shared": Kind("error", "the file is the external data file of more than one image"),
    "data-file-misused": Kind("error", "the file is an external data file and something else besides"),
    "corrupt": Kind("error", "QEMU found the image damaged and marked it: it is not opened for writing any more"),
    "dirty": Kind("warning", "the image was not closed, and its reference counts are to be mended before it is used"),
    "unknown-feature": Kind("error", "the image needs a feature that QEMU does not know, and is not opened"),
    "truncated": Kind("error", "the end of the file is missing, and with it data of the disk"),
    "damaged": Kind("error", "a check of the image's tables found contradictions"),
    "leaks": Kind("warning", "a check found clusters that nothing uses: space is lost, no data"),
    "check-failed": Kind("warning", "the image could not be checked or read to its end"),
    "in-use": Kind("info", "a program has the image open"),
    "snapshots": Kind("info", "internal snapshots keep space that the disk itself may not need any more"),
    "outside-store": Kind("warning", "the backing file lies in none of the directories that were named"),
    "duplicate-name": Kind("warning", "one file has several names, by hard link or symlink"),
    "too-deep": Kind("warning", "the backing chain is longer than libvirt follows, and slow in QEMU"),
    "name-misleads": Kind("warning", "the name promises a format that the bytes do not have"),
    "unfinished-change": Kind("warning", "a change of imgtool was broken off and is still to be finished"),
    "leftover": Kind("warning", "hidden files of a run that was killed"),
    "unreadable-directory": Kind("warning", "a directory cannot be listed; what lies there is unknown"),
    "unreadable-files": Kind("info", "files that cannot be read were left out; whether they are images is unknown"),
}
"""Code → severity and meaning. Those of a store as a whole stand last, and in `Graph.findings`; all others at the
image they concern. `chain show` tells what concerns the graph and the damage that an image shows of itself, `chain
verify` all of it."""


def finding(code: str, message: str) -> Finding:
    """A finding of a kind that the table knows; the severity is the table's."""
    return Finding(code, KINDS[code].severity, message)


MENDED = (
    "unfinished-change",
    "leftover",
    "backing-format-missing",
    "backing-format-wrong",
    "missing-parent",
    "parent-written",
    "parent-copied",
    "leaks",
    "dirty",
)
"""The kinds that `chain repair` can mend, some of them not in every case."""
