"""What this qemu-img can do, according to its own help: its formats, and the options of each."""

from __future__ import annotations

import os
import re
import tempfile

from imgtool.qemu import img_argv
from imgtool.qemu.process import Limits
from imgtool.qemu.programs import Programs

_LIMITS = Limits(seconds=10)
_OPTION = re.compile(r"^  (?P<name>\S+?)=<[^>]*>.*$", re.MULTILINE)


def formats(programs: Programs) -> tuple[str, ...]:
    """The formats and protocols of `qemu-img --help`; empty when it lists none."""
    done = programs.runner([programs.find("qemu-img"), "--help"], limits=_LIMITS)
    text = done.stdout.decode(errors="replace")
    # One long line up to QEMU 9, a paragraph of its own after an empty line from 10 on.
    found = re.search(r"^Supported (?:image )?formats:\s*(?P<names>[^\n]+(?:\n[ \t]+\S[^\n]*)*)", text, re.MULTILINE)
    return tuple(found["names"].split()) if found else ()


def option_help(programs: Programs, format: str, *, amend: bool = False) -> dict[str, str]:
    """Option → the line that explains it, for `create` (and `convert`) or `amend` of an image in `format`; empty
    when it has none, or qemu-img does not know the format."""
    verb = "amend" if amend else "create"
    # with a name, which is not opened, create's answer holds the options of files, too: preallocation, nocow, …
    names = [] if amend else ["./image"]
    argv = [programs.find("qemu-img"), verb, "-f", format, "-o", "help", *names]
    # amend answers and exits with 1 in some versions; what is on stdout is the answer either way
    text = programs.runner(argv, limits=_LIMITS).stdout.decode(errors="replace")
    return {match["name"]: match[0].strip() for match in _OPTION.finditer(text)}


def knows_zstd(programs: Programs) -> bool:
    """Whether it compresses qcow2 by zstd, which it is built with or not. Its help does not say, so it is tried."""
    with tempfile.TemporaryDirectory(prefix="imgtool-") as folder:
        path = os.path.join(folder, "zstd")
        options = {"compression_type": "zstd"}
        argv = img_argv.create(programs.find("qemu-img"), path, 1 << 20, format="qcow2", options=options)
        return programs.runner(argv, limits=_LIMITS).status == 0
