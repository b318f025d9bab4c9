"""Finding the QEMU programs and their versions."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from imgtool.errors import ProgramError
from imgtool.image.names import printable
from imgtool.qemu.known_versions import keep, known
from imgtool.qemu.search import which

if TYPE_CHECKING:
    from imgtool.qemu.process import Runner

PACKAGES = {
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-system-aarch64": "qemu-system-arm",
    "qemu-storage-daemon": "qemu-system-common",
    "ssh": "openssh-client",
}
"""The Debian package of each program, for the hint of an error."""


def not_found(name: str) -> ProgramError:
    """The error for a program that is not installed."""
    package = PACKAGES.get(name, "qemu-system" if name.startswith("qemu-") else None)
    return ProgramError(f"{name} was not found on PATH", hint=package and f"on Debian: apt-get install {package}")


class Version(NamedTuple):
    major: int
    minor: int
    micro: int
    text: str
    """As the program says it, the distributor's part included: `7.2.22 (Debian 1:7.2+dfsg-7)`."""


class Programs:
    """Where each QEMU program is: named by the caller, else by the environment (`IMGTOOL_QEMU_IMG`, and
    `IMGTOOL_` with the program's name in capitals for the others), else the first on PATH."""

    def __init__(self, given: Mapping[str, str] | None = None, *, runner: Runner | None = None) -> None:
        """`runner` starts the programs; None is `imgtool.qemu.process.run`."""
        self._given = dict(given or {})
        self._found: dict[str, str] = {}
        self._runner = runner

    @property
    def runner(self) -> Runner:
        """What starts the programs."""
        if self._runner is None:
            from imgtool.qemu.process import run

            self._runner = run
        return self._runner

    def find(self, name: str) -> str:
        """The absolute path of `name`. ProgramError, with the package to install, when there is none."""
        if name not in self._found:
            self._found[name] = self._look(name)
        return self._found[name]

    def _look(self, name: str) -> str:
        variable = "IMGTOOL_" + re.sub(r"[^A-Za-z0-9]", "_", name).upper()
        for source, wanted in ((f"--{name}", self._given.get(name)), (variable, os.environ.get(variable))):
            if wanted:
                found = which(wanted)
                if found is None:
                    raise ProgramError(
                        f"{source} names {printable(wanted)}, which is not a program",
                        hint=f"give the path of an executable {name}",
                    )
                return os.path.abspath(found)
        found = which(name)
        if found is None:
            raise not_found(name)
        return os.path.abspath(found)

    def version(self, name: str) -> Version:
        """What `name --version` says, asked once per binary. ProgramError when it answers something else."""
        program = self.find(name)
        said = known(program)
        if said is not None:
            return parse_version(name, said)
        from imgtool.qemu.process import Limits, failure

        done = self.runner([program, "--version"], limits=Limits(seconds=10))
        if done.status != 0:
            raise failure(done)
        said = done.stdout.decode(errors="replace").partition("\n")[0]
        version = parse_version(name, said)
        keep(program, said)
        return version


def parse_version(name: str, output: str) -> Version:
    """The version in the first line of a QEMU program's `--version`."""
    first = output.partition("\n")[0]
    match = re.search(r"version (?P<text>(\d+)\.(\d+)(?:\.(\d+))?.*)", first)
    if match is None:
        raise ProgramError(f"{name} --version answers {printable(first)!r}, which contains no version")
    return Version(int(match[2]), int(match[3]), int(match[4] or 0), match["text"].strip())
