"""Finding the QEMU programs and asking what version they are."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from imgtool.errors import ProgramError
from imgtool.image.names import printable
from imgtool.qemu.process import Limits, Runner, failure, run

PACKAGES = {
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-system-aarch64": "qemu-system-arm",
}
"""The Debian package of each program, for the hint of an error."""


class Version(NamedTuple):
    major: int
    minor: int
    micro: int
    text: str
    """As the program says it, the distributor's part included: `7.2.22 (Debian 1:7.2+dfsg-7)`."""


class Programs:
    """Where each QEMU program is: named by the caller, else by the environment (`IMGTOOL_QEMU_IMG`, and
    `IMGTOOL_` with the program's name in capitals for the others), else the first on PATH."""

    def __init__(self, given: Mapping[str, str] | None = None, *, runner: Runner = run) -> None:
        self._given = dict(given or {})
        self._found: dict[str, str] = {}
        self.runner = runner

    def find(self, name: str) -> str:
        """The absolute path of `name`. ProgramError, with the package to install, when there is none."""
        if name not in self._found:
            self._found[name] = self._look(name)
        return self._found[name]

    def _look(self, name: str) -> str:
        variable = "IMGTOOL_" + re.sub(r"[^A-Za-z0-9]", "_", name).upper()
        for source, wanted in ((f"--{name}", self._given.get(name)), (variable, os.environ.get(variable))):
            if wanted:
                found = _which(wanted)
                if found is None:
                    raise ProgramError(
                        f"{source} names {printable(wanted)}, which is no program",
                        hint=f"give the path of an executable {name}",
                    )
                return os.path.abspath(found)
        found = _which(name)
        if found is None:
            package = PACKAGES.get(name, "qemu")
            raise ProgramError(f"{name} was not found on PATH", hint=f"on Debian: apt-get install {package}")
        return os.path.abspath(found)

    def version(self, name: str) -> Version:
        """What `name --version` says. ProgramError when it answers something else."""
        done = self.runner([self.find(name), "--version"], limits=Limits(seconds=10))
        if done.status != 0:
            raise failure(done)
        return parse_version(name, done.stdout.decode(errors="replace"))


def _which(name: str) -> str | None:
    """The executable `name`, looked for on PATH unless it is a path. As shutil.which, whose module costs a tenth of
    what `imgtool info` takes."""
    places = [name] if "/" in name else [os.path.join(folder, name) for folder in os.get_exec_path()]
    return next((place for place in places if os.path.isfile(place) and os.access(place, os.X_OK)), None)


def parse_version(name: str, output: str) -> Version:
    """The version in the first line of a QEMU program's `--version`."""
    first = output.partition("\n")[0]
    match = re.search(r"version (?P<text>(\d+)\.(\d+)(?:\.(\d+))?.*)", first)
    if match is None:
        raise ProgramError(f"{name} --version answers {printable(first)!r}, which names no version")
    return Version(int(match[2]), int(match[3]), int(match[4] or 0), match["text"].strip())
