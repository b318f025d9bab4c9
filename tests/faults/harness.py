"""Letting one call of imgtool, or of a qemu-img below it, fail or kill everything; and looking at what is left.

`shim.c` counts what a process tree does to the files of a store. A command is run once undisturbed, which says how
many such points there are and how the store looks afterwards. Then, for each point and each kind of fault, it is run
on a fresh copy with the fault at that point. Whatever happens, every image must read as before or as after; the same
command, run again, must end right; and nothing hidden may be left.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import PIPE
from typing import Literal, NamedTuple, Self

from imgtool.chain.hidden import KEPT
from imgtool.errors import ImgtoolError
from imgtool.qemu.qemu_img import QemuImg
from tests.faults.disks import digest
from tests.faults.server import STATE

SOURCE = Path(__file__).with_name("shim.c")
ROOT = Path(__file__).parents[2]

Kind = Literal["kill", "ENOSPC", "EIO"]
KINDS: tuple[Kind, ...] = ("kill", "ENOSPC", "EIO")


class Operation(NamedTuple):
    """A command that is to survive faults."""

    name: str
    build: Callable[[Path], None]
    """Makes the store in an empty directory."""
    words: Callable[[Path], Sequence[str | Path]]
    """imgtool's arguments."""
    done: str | None = None
    """What a run says (and exits with 1) when there is nothing left to do; None when it ends well again."""


class Outcome(NamedTuple):
    status: int
    stderr: str
    points: int
    """Counted calls."""
    tripped: bool


class LostError(AssertionError):
    """Something did not survive."""


class Shim:
    """imgtool under the compiled shim. A context manager: it is a process, see `tests.faults.server`."""

    def __init__(self, folder: Path) -> None:
        library = folder / "shim.so"
        compiler = os.environ.get("CC", "cc")
        subprocess.run(
            [compiler, "-O2", "-Wall", "-Werror", "-fPIC", "-shared", "-o", library, SOURCE, "-ldl"], check=True
        )
        self.file = folder / "state"
        self.file.write_bytes(bytes(STATE.size))
        self.folder = folder
        env = {
            **os.environ,
            "LD_PRELOAD": str(library),
            "FAULT_STATE": str(self.file),
            "FAULT_DIR": str(folder / "stores"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        argv = [sys.executable, "-m", "tests.faults.server", str(self.file)]
        self._server = subprocess.Popen(argv, env=env, cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True)
        assert self._answer() == "ready"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()

    def store(self, name: str) -> Path:
        """A path for a store whose files count."""
        path = self.folder / "stores" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def run(self, words: Sequence[str | Path], cwd: Path, *, kind: Kind | None = None, at: int = 0) -> Outcome:
        """Runs imgtool; with `kind` the counted call number `at` is a fault."""
        request = {
            "words": [str(word) for word in words],
            "cwd": str(cwd),
            "at": at,
            "error": 0 if kind in (None, "kill") else getattr(errno, str(kind)),
            "sticky": int(kind == "ENOSPC"),
        }
        assert self._server.stdin is not None
        print(json.dumps(request), file=self._server.stdin, flush=True)
        answer = json.loads(self._answer())
        self._wait_for_others()
        count, _, _, _, _, tripped = STATE.unpack(self.file.read_bytes())
        return Outcome(answer["status"], answer["stderr"], count, bool(tripped))

    def _answer(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()

    def _wait_for_others(self) -> None:
        """LostError when a process that the shim is loaded into is still there after two seconds."""
        mark = f"FAULT_STATE={self.file}".encode()
        deadline = time.monotonic() + 2
        while True:
            known = str(self._server.pid)
            running = (pid for pid in os.listdir("/proc") if pid.isdigit() and pid != known)
            left = [pid for pid in running if mark in _environment(pid)]
            if not left:
                return
            if time.monotonic() > deadline:
                raise LostError(f"processes are left behind: {', '.join(left)}")
            time.sleep(0.01)


def _environment(pid: str) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


Contents = dict[str, str]


def contents(store: Path) -> Contents:
    """Name → the digest of what a guest reads, of every image. One that `chain collect` put away is named after the
    quarantine, where it may be without its parent: of that the digest of the file. A chain that does not hold
    together is lost."""
    found = {}
    for path in sorted(store.rglob("*")):
        if not path.is_file() or path.suffix not in (".qcow2", ".raw") or path.name.startswith("."):
            continue
        name = os.path.relpath(path, store)
        if KEPT in path.parts:
            found[f"{KEPT}/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
            continue
        try:
            found[name] = digest(path)
        except (ImgtoolError, OSError, AssertionError) as error:
            raise LostError(f"{name} cannot be read: {error!r}") from error
    return found


class Trial:
    """One operation, tried at its points."""

    def __init__(self, operation: Operation, folder: Path, shim: Shim) -> None:
        self.operation = operation
        self.shim = shim
        self.template = folder / "template"
        self.store = shim.store(folder.name)
        self.template.mkdir(parents=True)
        operation.build(self.template)
        self.before = contents(self.template)
        self._fresh()
        outcome = self._run()
        assert outcome.status == 0, outcome.stderr
        self.points = outcome.points
        self.after = contents(self.store)
        self._expect_tidy()
        self._check()

    @property
    def _collects(self) -> bool:
        """Whether a quarantine is what the operation leaves behind."""
        return any(name.startswith(KEPT) for name in self.after)

    def _fresh(self) -> None:
        """The store as it was built. Times stay: anchors remember them."""
        if self.store.exists():
            shutil.rmtree(self.store)
        shutil.copytree(self.template, self.store, symlinks=True)

    def _run(self, kind: Kind | None = None, at: int = 0) -> Outcome:
        return self.shim.run(self.operation.words(self.store), self.store, kind=kind, at=at)

    def at(self, kind: Kind, point: int) -> bool:
        """Tries one fault. Whether it came to it: the command may be done before. LostError when it did harm."""
        self._fresh()
        outcome = self._run(kind, point)
        where = f"{self.operation.name}, {kind} at point {point} (exit {outcome.status}): "
        try:
            self._expect_words(outcome, kind)
            self._expect_before_or_after(must_be_after=outcome.status == 0)
            again = self._run()
            self._expect_end(again)
        except LostError as error:
            raise LostError(f"{where}{error}\n{outcome.stderr}") from error
        return outcome.tripped

    def _expect_words(self, outcome: Outcome, kind: Kind) -> None:
        if outcome.tripped and kind == "kill" and outcome.status != -9:
            raise LostError("it was not killed")
        if "Traceback" in outcome.stderr or "imgtool itself failed" in outcome.stderr:
            raise LostError("it fell over")
        if outcome.status == 1 and "imgtool: error: " not in outcome.stderr:
            raise LostError("it failed without a word")

    def _expect_before_or_after(self, *, must_be_after: bool) -> None:
        found = contents(self.store)
        if must_be_after and found != self.after:
            raise LostError(f"it ended well, but {_differences(found, self.after)}")
        for name in sorted({*self.before, *self.after, *found}):
            if found.get(name) not in (self.before.get(name), self.after.get(name)):
                raise LostError(f"{name} reads neither as before nor as after")
        for name in _files(self.before) & _files(self.after) - _files(found):
            raise LostError(f"{name} is nowhere any more")

    def _expect_end(self, again: Outcome) -> None:
        """The same command, run again."""
        done = self.operation.done
        finished = again.status == 1 and done is not None and done in again.stderr
        if again.status != 0 and not finished:
            raise LostError(f"the next run failed: {again.stderr}")
        found = contents(self.store)
        if found != self.after:
            raise LostError(f"after the next run {_differences(found, self.after)}")
        self._expect_tidy()
        self._check()

    def _expect_tidy(self) -> None:
        left = [path.name for path in self.store.rglob(".*") if path.name != KEPT or not self._collects]
        if left:
            raise LostError(f"hidden files are left: {', '.join(left)}")

    def _check(self) -> None:
        for name in self.after:
            path = self.store / name
            old = self.template / name
            if (
                path.suffix != ".qcow2"
                or name.startswith(KEPT)
                or (old.exists() and old.read_bytes() == path.read_bytes())
            ):
                continue
            status = QemuImg().check(path, format="qcow2").status
            if status != "clean":
                raise LostError(f"check finds {status} in {name}")


def _files(found: Contents) -> set[str]:
    return {os.path.basename(name) for name in found}


def _differences(found: Contents, wanted: Contents) -> str:
    names = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
    return f"not as it should be: {', '.join(names)}"
