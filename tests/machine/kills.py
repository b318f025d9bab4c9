"""Boots, and kill -9 of imgtool, of QEMU, or of both, at random moments: `python -m tests.machine.kills [--count N]`.

Each round boots a VM in one of the ways there are (in the foreground or not, with or without a TPM, a shared folder,
scratch overlays, a tap in a bridge), kills, and looks at what is left once the next command has run: no process, no
socket, no tap, no lock. It all happens in a network namespace of its own.
"""

from __future__ import annotations

import argparse
import collections
import glob
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from imgtool.image.locks import holders
from imgtool.machine.process import ProcessId
from imgtool.machine.vm import Vm

SECONDS = 60
"""A bound for what hangs."""

WAYS = (
    ("-d",),
    ("--ephemeral",),
    ("--tpm",),
    ("--network", "tap,br=br0"),
    ("--share", "{share},type=virtiofs,tag=data"),
)


class LeftError(AssertionError):
    """Something was left."""


class Killing:
    """Rounds in one runtime directory, around one image."""

    def __init__(self, folder: str, seed: int) -> None:
        self.folder = folder
        self.chance = random.Random(seed)
        self.root = os.path.join(folder, "imgtool", "vm")
        self.env = {**os.environ, "XDG_RUNTIME_DIR": folder, "XDG_DATA_HOME": folder, "TMPDIR": folder}
        self.image = os.path.join(folder, "disk.qcow2")
        self.seen: collections.Counter[str] = collections.Counter()
        os.makedirs(os.path.join(folder, "share"))
        self.imgtool("create", "-q", "-f", "qcow2", self.image, "1M")
        for words in ("link add br0 type bridge", "link set br0 up", "link set lo up"):
            subprocess.run(["ip", *words.split()], check=True)

    def imgtool(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "imgtool", *words], env=self.env, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise LeftError(f"imgtool {' '.join(words)}: {done.stderr}")
        return done.stdout

    def round(self) -> None:
        whom = self.chance.choice(("imgtool", "QEMU", "both"))
        chosen = [way for way in WAYS if self.chance.random() < 0.4]
        words = [word.format(share=os.path.join(self.folder, "share")) for way in chosen for word in way]
        words += [] if "--network" in words else ["--network", "none"]
        argv = ["boot", self.image, "--name", "victim", "--accel", "tcg", "--memory", "16M", *words, "--", "-S"]
        log = os.path.join(self.folder, "said")
        with open(log, "wb") as said:
            child = subprocess.Popen(
                [sys.executable, "-m", "imgtool", *argv],
                env=self.env, stdin=subprocess.PIPE, stdout=said, stderr=said,
            )  # fmt: skip
        time.sleep(self.chance.uniform(0.1, 1.4))
        found = Vm(self.root, "victim")
        state, qemu = found.state(), found.qemu()
        self.seen[f"kill of {whom}"] += 1
        self.seen["before there was a VM" if state is None else f"while it was {state.phase}"] += 1
        for way in chosen:
            self.seen[f"with {way[0]} {way[-1].partition(',')[2]}".strip()] += 1
        if qemu is not None and whom != "imgtool":
            qemu.send(signal.SIGKILL)
        if whom != "QEMU":
            child.kill()
        assert child.stdin is not None
        child.stdin.close()
        if whom == "QEMU" and "-d" not in words:
            child.terminate()  # killed before there was a QEMU: then there is one now, and it is asked to end
        child.wait(SECONDS)
        try:
            self.look()
        except LeftError as error:
            raise LeftError(f"{whom} of {' '.join(argv)}: {error}; it said {Path(log).read_text()}") from None

    def look(self) -> None:
        """What there is after the next command. A VM in the background that nobody killed is alive, and ends now."""
        for vm in json.loads(self.imgtool("vm", "list", "--output", "json")):
            self.imgtool("vm", "kill", vm["name"])
            self.seen["lived on in the background"] += 1
        deadline = time.monotonic() + SECONDS
        while (left := self.left()) and time.monotonic() < deadline:
            time.sleep(0.02)
        if left:
            raise LeftError(left)

    def left(self) -> str:
        """What should not be there; empty when there is nothing."""
        found = [f"process {pid}" for pid in self.processes()]
        found += [f"lock of {holder}" for holder in holders(self.image)]
        for place, folders, names in os.walk(self.root):
            found += [os.path.join(place, name) for name in names if not name.endswith(".log") and name != ".lock"]
            found += [os.path.join(place, name) for name in folders if place != self.root]
        found += glob.glob(os.path.join(self.folder, "imgtool-*"))
        shown = subprocess.run(["ip", "-json", "link", "show", "type", "tun"], stdout=subprocess.PIPE, check=True)
        found += [f"tap {link['ifname']}" for link in json.loads(shown.stdout or b"[]")]
        return ", ".join(found)

    def processes(self) -> list[int]:
        """The living processes that name the runtime directory on their command line: QEMU and its helpers."""
        found = []
        for place in glob.glob("/proc/[0-9]*/cmdline"):
            try:
                with open(place, "rb") as file:
                    named = self.folder.encode() in file.read()
            except OSError:
                continue
            pid = int(place.split("/")[2])
            if named and pid != os.getpid() and ProcessId.of(pid) is not None:
                found.append(pid)
        return found

    def end(self) -> None:
        """The same name and image serve again, and the image is whole."""
        words = ("--name", "victim", "--accel", "tcg", "--memory", "16M", "--network", "tap,br=br0", "--", "-S")
        if self.imgtool("boot", "-d", self.image, *words) != "victim\n":
            raise LeftError("the name is taken")
        self.imgtool("vm", "kill", "victim")
        self.imgtool("check", self.image)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="how many rounds  [default: 100]")
    parser.add_argument("--seed", type=int, default=20240)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if not chosen.inside:
        unshare = ["unshare", "--net"] if os.getuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
        again = [sys.executable, "-m", "tests.machine.kills", "--inside", *arguments]
        return subprocess.run([*unshare, *again], check=False).returncode
    folder = tempfile.mkdtemp(prefix="it-", dir="/tmp")  # short: paths of sockets have room for 107 bytes
    try:
        killing = Killing(folder, chosen.seed)
        began = time.monotonic()
        for number in range(chosen.count):
            try:
                killing.round()
            except LeftError as error:
                print(f"round {number} of seed {chosen.seed}: {error}", file=sys.stderr)
                return 1
        killing.end()
    finally:
        shutil.rmtree(folder)
    print(f"{chosen.count} boots and kills in {time.monotonic() - began:.0f} s; nothing was left")
    for what, times in sorted(killing.seen.items()):
        print(f"{times:5} {what}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
