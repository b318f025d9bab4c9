"""The other host: where it is, and the shell scripts that run there."""

from __future__ import annotations

import os
import re
import shlex
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec

from imgtool.errors import ImgtoolError, UsageError
from imgtool.image.names import printable
from imgtool.publish.oci.blob import PIECE, Blob
from imgtool.qemu.process import Completed, Runner, failure, run

_PLACE = re.compile(r"(?P<host>(?:[^@:/]+@)?(?:\[[0-9A-Fa-f:.]+\]|[^:/\[\]]+)):(?P<folder>.*)", re.DOTALL)
_EXISTS, _OTHER = 71, 72
_SSH_FAILED = 255

_LOOK = """
command -v sha256sum >/dev/null || { echo 'sha256sum is not installed there' >&2; exit 69; }
cd -- "$1" 2>/dev/null || exit 0
shift
while [ $# -gt 0 ]; do
    size=$(stat -L -c %s -- "./$1" 2>/dev/null) || size=-
    part=$(stat -c %s -- "./$2" 2>/dev/null) || part=-
    sum=-
    if [ "$size" = "$3" ]; then sum=$(sha256sum < "./$1") && sum=${sum%% *}; fi
    echo "$size $sum $part"
    shift 3
done
"""
"""(folder, then for each image: name, part, size): a line for each of size, digest where the size is right, and the
size of the part; nothing where there is no such folder. Changes nothing."""

_TAKE = """
set -e
mkdir -p -- "$1"
cd -- "$1"
name=./$2 part=./$3 size=$4 sum=$5 mode=$6 time=$7
shift 7
mkdir -p -- "$(dirname -- "$name")"
[ -e "$part" ] || (umask 077; : > "$part")
while [ $# -gt 0 ]; do
    dd of="$part" bs=1048576 iflag=fullblock,count_bytes oflag=seek_bytes conv=notrunc status=none \
        seek="$1" count="$2"
    # the connection may have ended: what came so far stays for the next time
    [ "$(stat -c %s -- "$part")" -ge $(($1 + $2)) ] || exit 73
    shift 2
done
truncate -s "$size" -- "$part"
found=$(sha256sum < "$part")
if [ "${found%% *}" != "$sum" ]; then rm -f -- "$part"; exit 72; fi
chmod "$mode" -- "$part"
touch -d "$time" -- "$part"
sync -- "$part"
if ! ln -- "$part" "$name" 2>/dev/null; then
    if [ -e "$name" ]; then exit 71; fi
    mv -- "$part" "$name"
fi
rm -f -- "$part"
sync -- "$(dirname -- "$name")"
"""
"""(folder, name, part, size, digest, mode, time, then offset and length of each stretch of data), that on stdin."""


class Place(NamedTuple):
    host: str
    """As ssh takes it."""
    folder: str


class Seen(NamedTuple):
    """What is at an image's place there."""

    size: int | None
    sha256: str | None
    """None where the size is another."""
    part: int
    """Bytes of it that were sent before."""


class Ssh(msgspec.Struct, frozen=True, kw_only=True):
    """How ssh reaches the other host, where its configuration does not say. Nothing is asked: keys come from files or
    an agent."""

    port: int | None = None
    """`-p` of ssh."""
    identity: str | None = None
    """`-i` of ssh: the file of a private key."""
    config: str | None = None
    """`-F` of ssh: a configuration in place of the user's."""
    options: tuple[str, ...] = ()
    """`-o` of ssh."""

    def argv(self, host: str, command: str) -> list[str]:
        """ssh's command line for `command`, a shell's words, on `host`."""
        words = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=15"]
        if self.config is not None:
            words += ["-F", self.config]
        if self.port is not None:
            words += ["-p", str(self.port)]
        if self.identity is not None:
            words += ["-i", self.identity]
        for option in self.options:
            words += ["-o", option]
        return [*words, "--", host, command]


def parse_place(text: str) -> Place:
    """`[user@]host:folder`; a folder that is not absolute, or none, is below the user's home there. UsageError for
    anything else."""
    match = _PLACE.fullmatch(text)
    if match is None or match["host"].startswith("-"):
        raise UsageError(f"{printable(text)} is not HOST:DIR", hint="such as root@host:/var/lib/images")
    folder = match["folder"]
    if folder == "~" or folder.startswith("~/"):
        folder = folder[2:]
    folder = folder or "."
    return Place(match["host"].replace("[", "").replace("]", ""), f"./{folder}" if folder[0] == "-" else folder)


def command_of(script: str, arguments: Iterable[str]) -> str:
    """One command line for whatever shell the user has there."""
    return "exec " + shlex.join(["sh", "-c", script.strip(), "sh", *arguments])


class Far:
    """A folder of another host."""

    def __init__(self, place: Place, ssh: Ssh, runner: Runner = run) -> None:
        self.place = place
        self.ssh = ssh
        self.runner = runner

    def look(self, wanted: Sequence[tuple[str, str, int]]) -> list[Seen]:
        """What there is of the images `wanted` (name, part, size)."""
        words = [str(word) for one in wanted for word in one]
        done = self._checked(
            self.runner(self.ssh.argv(self.place.host, command_of(_LOOK, [self.place.folder, *words])))
        )
        lines = done.stdout.decode(errors="replace").splitlines()
        seen = [Seen(None, None, 0) for _ in wanted]
        for place, line in enumerate(lines[: len(wanted)]):
            size, digest, part = [*line.split(), "-", "-", "-"][:3]
            seen[place] = Seen(
                int(size) if size.isdecimal() else None,
                digest if len(digest) == 64 else None,
                int(part) if part.isdecimal() else 0,
            )
        return seen

    def send(
        self,
        blob: Blob,
        stretches: Sequence[tuple[int, int]],
        *,
        name: str,
        part: str,
        sha256: str,
        mode: int,
        time: str,
        progress: Callable[[int], None],
    ) -> None:
        """Has the file `name` there be `blob`, whose `stretches` (offset, length) are missing in `part`. All or
        nothing of it gets the name."""
        words = [self.place.folder, name, part, str(blob.size), sha256, f"{mode:o}", time]
        words += [str(number) for stretch in stretches for number in stretch]
        argv = self.ssh.argv(self.place.host, command_of(_TAKE, words))
        end, source = os.pipe()
        pump = threading.Thread(target=_pump, args=(blob, stretches, source, progress), daemon=True)
        pump.start()
        try:
            done = _run_with(self.runner, argv, end)
        finally:
            os.close(end)
            pump.join()
        if done.status == _EXISTS:
            raise ImgtoolError(f"{printable(name)} was created there by another program in the meantime")
        if done.status == _OTHER:
            raise ImgtoolError(
                f"{printable(name)} arrived with other bytes than were sent, and was thrown away", hint="try again"
            )
        self._checked(done)

    def _checked(self, done: Completed) -> Completed:
        if done.status == 0:
            return done
        hint = "nothing half sent has a name there; run it again, and it resumes where it stopped"
        if done.status == _SSH_FAILED:
            hint = f"does the ssh command below let you in, without asking for anything? {hint}"
        # The script says nothing to a person, and ssh without it shows whether the host lets one in.
        plain = msgspec.structs.replace(done, argv=done.argv[:-1], stderr=done.stderr.replace(b"\r\n", b"\n"))
        raise failure(plain, hint=hint)


def _run_with(runner: Runner, argv: Sequence[str], stdin: int) -> Completed:
    return runner(argv, stdin=stdin)  # type: ignore[call-arg]


def _pump(blob: Blob, stretches: Sequence[tuple[int, int]], target: int, progress: Callable[[int], None]) -> None:
    """Writes the stretches into the pipe `target`, and closes it; stops when nobody reads any more."""
    try:
        for offset, length in stretches:
            at, end = offset, offset + length
            while at < end:
                piece = blob.read(at, min(PIECE, end - at))
                if not piece:
                    return
                left = memoryview(piece)
                while left:
                    left = left[os.write(target, left) :]
                progress(len(piece))
                at += len(piece)
    except OSError:
        return  # what ssh says counts
    finally:
        os.close(target)
