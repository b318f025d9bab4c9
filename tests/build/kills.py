"""kill -9 of imgtool, of QEMU, or of both, at random moments of a real build in Alpine: `python -m tests.build.kills
--count 50`, or `make kills`.

After each kill every layer in the store is whole, and the next run ends with the right image: its file system is
clean and holds what every layer put there. Exits with 1 at the first that is not so.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fixtures.alpine import SHELL, Alpine, alpine
from imgtool.build.lint import Files
from imgtool.machine.process import ProcessId
from imgtool.qemu.qemu_img import QemuImg

SEED = 6
SECONDS = 900.0
"""A bound for what hangs."""
WORDS = b"every byte of it\n" * 20_000
RECIPE = f"""\
[image]
name = "kills"
from = "base.qcow2"

[machine]
memory = "256M"
accel = "tcg"
kernel = "vmlinuz"
initrd = "initrd"
append = "{SHELL}"
network = ["none"]
executor = "serial"

[[layer]]
name = "one"
run = ["echo one > /etc/one"]

[[layer]]
name = "two"
copy = [{{ from = "words", to = "/srv/" }}]

[[layer]]
name = "three"
run = ["adduser -D -H three", "head -c 5000000 /dev/urandom > /srv/noise", "sha256sum /srv/noise > /srv/sum"]

[[layer]]
name = "four"
run = ["cp /etc/one /etc/four"]
seal = ["machine-id", "logs", "history", "trim"]

[output]
path = "out.qcow2"
compression = "none"
"""
EVENTS = 14
"""What a build tells from its first layer to its image, at least: one of them is waited for before a kill."""
VICTIMS = ("imgtool", "QEMU", "both")


class LostError(Exception):
    """Something that a kill must not do."""


class Kill(NamedTuple):
    """What is killed, and when: some time after a build began, or after so many events."""

    victim: str
    events: int
    delay: float


class Site:
    """A folder with the recipe, its store, and a runtime directory of its own."""

    def __init__(self, folder: Path, guest: Alpine) -> None:
        self.folder = folder
        self.runtime = Path(tempfile.mkdtemp(prefix="it-", dir="/tmp"))  # short: sockets' paths have 107 bytes
        self.env = {
            **os.environ,
            "IMGTOOL_LAYERS": str(folder / "layers"),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "XDG_STATE_HOME": str(folder / "state"),
        }
        (folder / "kills.toml").write_text(RECIPE)
        (folder / "words").write_bytes(WORDS)
        for name, source in (("base.qcow2", guest.disk), ("vmlinuz", guest.kernel), ("initrd", guest.initrd)):
            os.symlink(source, folder / name)

    def close(self) -> None:
        shutil.rmtree(self.runtime)

    def imgtool(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "imgtool", *words],
            env=self.env,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def forget(self) -> None:
        """As before the first build."""
        shutil.rmtree(self.folder / "layers", ignore_errors=True)
        for path in self.folder.glob("out.qcow2*"):
            path.unlink()

    def killed(self, kill: Kill) -> str:
        """A build that is killed, or has ended before; returns how."""
        build = Build(self)
        try:
            build.wait_for(kill)
            names = build.kill(kill.victim)
            build.wait()
        finally:
            build.close()
        return names

    def qemus(self) -> list[int]:
        """The processes of QEMU that this site's builds started."""
        found = []
        for place in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                argv = place.read_bytes()
            except OSError:
                continue
            if b"qemu-system" in argv and os.fsencode(self.runtime) in argv:
                found.append(int(place.parent.name))
        return [pid for pid in found if ProcessId.of(pid) is not None]

    def require_whole(self) -> int:
        """The number of layers in the store. LostError when one is not whole."""
        done = self.imgtool("layers", "verify", "--output", "json")
        if done.returncode != 0:
            raise LostError(f"a layer is not whole: {done.stdout}{done.stderr}")
        return len(list((self.folder / "layers").glob("*/manifest.json")))

    def require_right(self) -> Any:
        """Builds to the end; the answer. LostError when what comes out is not right."""
        done = self.imgtool("build", "kills.toml", "--output", "json")
        if done.returncode != 0:
            raise LostError(f"the next run failed: {done.stderr}")
        answer = json.loads(done.stdout)
        self.require_whole()
        self._require_image()
        left = [path.name for path in (self.folder / "layers").iterdir() if path.name.startswith(".imgtool-")]
        if left or self.qemus():
            raise LostError(f"it left {left} and the processes {self.qemus()}")
        return answer

    def _require_image(self) -> None:
        image, raw = self.folder / "out.qcow2", self.folder / "out.raw"
        manifest = json.loads((self.folder / "out.qcow2.manifest.json").read_text())
        if hashlib.sha256(image.read_bytes()).hexdigest() != manifest["sha256"]:
            raise LostError("the image is not the one that its manifest is about")
        QemuImg().convert(str(image), str(raw), format="qcow2", output_format="raw", overwrite=True)
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        fsck = ["e2fsck", "-f", "-n", str(raw)]
        checked = subprocess.run(fsck, capture_output=True, text=True, check=False, env={**self.env, "PATH": path})
        if checked.returncode != 0:
            raise LostError(f"the image's file system is damaged: {checked.stdout}")
        files = Files(str(raw), 0)
        noise = hashlib.sha256(files.read("/srv/noise")).hexdigest()
        found = [files.read(name) for name in ("/etc/one", "/srv/words", "/etc/four", "/srv/sum")]
        if found != [b"one\n", WORDS, b"one\n", f"{noise}  /srv/noise\n".encode()]:
            raise LostError(f"the image holds {[content[:80] for content in found]}")
        if b"\nthree:" not in files.read("/etc/passwd"):
            raise LostError("the image has no user three")
        raw.unlink()


class Build:
    """A build that runs, in a session of its own."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._process = subprocess.Popen(
            [sys.executable, "-m", "imgtool", "build", "kills.toml", "--progress", "json"],
            env=site.env,
            cwd=site.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._lines: list[bytes] = []
        self._told = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._told:
                self._lines.append(line)
                self._told.notify()

    def wait_for(self, kill: Kill) -> None:
        deadline = time.monotonic() + SECONDS
        with self._told:
            while len(self._lines) < kill.events and self._process.poll() is None:
                self._told.wait(0.1)
                if time.monotonic() > deadline:
                    raise LostError("the build hangs")
        # Not a wait for something: the moment of the kill.
        time.sleep(kill.delay)

    def kill(self, victim: str) -> str:
        """Kills it, or QEMU, or both; says which were there."""
        killed = []
        if victim != "imgtool":
            for pid in self._site.qemus():
                os.kill(pid, signal.SIGKILL)
                killed.append("QEMU")
        if (victim != "QEMU" or not killed) and self._process.poll() is None:
            self._process.kill()
            killed.append("imgtool")
        return " and ".join(killed) or "nothing"

    def close(self) -> None:
        self.kill("both")
        self._process.wait()
        self._reader.join()
        assert self._process.stderr is not None
        self._process.stderr.close()

    def wait(self) -> None:
        """Until it has ended, and QEMU with it. LostError when one does not, or when there is a traceback."""
        try:
            self._process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            raise LostError("the build does not end") from None
        self._reader.join()
        deadline = time.monotonic() + 60
        while self._site.qemus():
            if time.monotonic() > deadline:
                raise LostError("QEMU outlives the build")
            time.sleep(0.05)
        said = b"".join(self._lines)
        if b"Traceback" in said:
            raise LostError(said.decode(errors="replace"))


def run_round(site: Site, kill: Kill) -> tuple[bool, str]:
    """One kill, and the next run. Returns whether it came before the build's end, and a line about it; LostError."""
    site.forget()
    names = site.killed(kill)
    kept = site.require_whole() if (site.folder / "layers").exists() else 0
    answer = site.require_right()
    cached = sum(layer["cached"] for layer in answer["layers"])
    if cached != kept:
        raise LostError(f"{kept} layers were sealed, and the next run used {cached} of them")
    said = f"{names} killed after {kill.events} events and {kill.delay:.2f} s; {kept} of 4 layers were kept"
    return names != "nothing", said


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.build.kills", description="Kills builds.")
    parser.add_argument("--count", type=int, default=50, help="kills; 50 without it")
    parser.add_argument("--seed", type=int, default=SEED)
    given = parser.parse_args(arguments)
    moments = random.Random(given.seed)
    with tempfile.TemporaryDirectory(prefix="imgtool-kills-") as folder:
        site = Site(Path(folder), alpine())
        try:
            began = time.monotonic()
            site.require_right()
            whole = time.monotonic() - began
            print(f"a whole build takes {whole:.1f} s", flush=True)
            number = 0
            while number < given.count:
                # By turns anywhere in the time of a build, most of which is boot, and at the seams between its steps.
                victim = VICTIMS[number % 3]
                if number % 2:
                    kill = Kill(victim, 0, moments.uniform(0, whole))
                else:
                    kill = Kill(victim, moments.randint(1, EVENTS), moments.uniform(0, 1))
                try:
                    in_time, said = run_round(site, kill)
                except LostError as error:
                    print(f"LOST at {kill} (seed {given.seed}): {error}", file=sys.stderr)
                    return 1
                number += in_time
                print(f"{number:>3}/{given.count} {said}", flush=True)
        finally:
            site.close()
    print(f"{given.count} kills, {given.count} right images, no sealed layer lost")
    return 0


if __name__ == "__main__":
    sys.exit(main())
