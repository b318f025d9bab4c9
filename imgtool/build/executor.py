"""Doing things in a guest: the one interface that a build has, whichever way leads into the guest.

Three ways there are, in `imgtool.build.executors`: the guest agent (no network), SSH (a key that the cloud-init seed
brings in), and a root shell on the first serial port. Each is a module with two functions, `equip` and `connect`,
which those of the same names here call.

What all of them promise:

* commands run as root;
* files are binary-safe, whatever their size, and so are names;
* `secrets` are seen by the command alone, as environment variables. They go to the guest inside the channel: never
  in the argv of any process, here or there, never into a file of the guest's disk, never into a log of this side
  (a serial port's log included: nothing of them may be echoed);
* nothing that they need for themselves (scripts, staging files) is left in the guest, nor lies anywhere but in a
  tmpfs (`/run`, `/dev/shm`) where the guest has one;
* what takes too long is a StepTimeout, a guest that is gone a GuestLost, and neither waits without a limit.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, Self, cast

from imgtool.errors import MachineError

if TYPE_CHECKING:
    from imgtool.machine.config import Machine
    from imgtool.machine.vm import State, Vm

Kind = Literal["agent", "ssh", "serial"]

KINDS: tuple[Kind, ...] = ("agent", "ssh", "serial")

Access = Literal["agent", "ssh", "serial", "auto"]
"""A way that is asked for; auto is the best that the guest has."""

Output = Callable[[bytes], None]
"""Gets each piece of output as it comes, stdout and stderr in the order they were written, as raw bytes."""


def keeping(said: bytearray, most: int = 1 << 20) -> Output:
    """Collects the first `most` bytes of an output in `said`: a guest may say something without an end."""
    return lambda piece: said.extend(piece[: most - len(said)])


SHELL = ("/bin/sh", "-eu")
"""What runs a step's lines when the recipe names no interpreter."""


KEY_COMMENT = "imgtool-build"
"""The comment of the SSH key that leads a build in: sealing finds the key by it and takes it out."""


class ExecutorError(MachineError):
    """Something could not be done in the guest, by no fault of the step's command."""

    code = "executor"


class GuestLost(ExecutorError):  # noqa: N818 - says what is so
    """The guest, or the way into it, is gone."""

    code = "guest-lost"


def has_ended(name: str) -> GuestLost:
    """The error for the VM `name` that does not run any more."""
    return GuestLost(
        f"{name} has ended",
        hint=f"`imgtool vm log {name}` shows what the guest said last, with --qemu what QEMU said",
    )


class StepTimeout(ExecutorError):  # noqa: N818
    """A command took longer than it may. It was ended in the guest where that is possible."""

    code = "step-timeout"


class Executor(Protocol):
    """A way into a running guest. Used by one thread, for one thing at a time; a context manager that closes."""

    kind: Kind

    def wait_ready(self, *, seconds: float) -> None:
        """Returns once commands can be run. ExecutorError after `seconds`, GuestLost when the VM ends meanwhile."""

    def run(
        self,
        script: bytes,
        *,
        interpreter: Sequence[str] = SHELL,
        env: Mapping[str, str] = {},
        secrets: Mapping[str, str] = {},
        timeout: float | None = None,
        on_output: Output = lambda _: None,
    ) -> int:
        """Runs `script` by `interpreter` (an argv, to which the script is given as a file or on stdin) as root in
        `/`, stdin empty, with `env` and `secrets` added to a plain environment (PATH with the sbin folders, HOME,
        LANG=C.UTF-8). Returns its exit status, 128 + N when signal N ended it. Output is live: no later than about
        a second after it was written. StepTimeout after `timeout` seconds, GuestLost when the guest goes away."""

    def put(self, source: str, target: str, *, mode: int = 0o644, owner: str | None = None) -> None:
        """The bytes of the host's regular file `source` become the guest's file `target` (absolute), replacing what
        is there; folders above it are made. `owner` is `user` or `user:group`, as chown takes it; None is root.
        ExecutorError, in the guest's words, when it cannot be written."""

    def get(self, source: str, target: str) -> None:
        """The bytes of the guest's regular file `source` (symlinks followed) become the host's file `target`, which
        is replaced. ExecutorError when it cannot be read."""

    def sync(self) -> None:
        """Everything the guest wrote is on its disks when this returns."""

    def freeze(self) -> bool:
        """Holds the guest's file systems still until `thaw`; False where this way cannot, and nothing was done. The
        caller always thaws, within seconds."""

    def thaw(self) -> None:
        """Lets them go on. Harmless when nothing is frozen."""

    def reboot(self, *, seconds: float) -> None:
        """Has the guest reboot, properly where its init can, and returns once commands can be run in the system that
        came up after (its boot_id is another). ExecutorError after `seconds`."""

    def power_off(self) -> None:
        """Asks the guest to sync, unmount and power off, and returns at once; that QEMU ends is awaited elsewhere."""

    def close(self) -> None:
        """Lets go of the way in. What was started in the guest is the guest's. Twice is once."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class _Way(Protocol):
    """The module of one kind."""

    def equip(self, machine: Machine, folder: str) -> Machine: ...

    def connect(self, vm: Vm, state: State, folder: str) -> Executor: ...


def equip(machine: Machine, kind: Kind, folder: str) -> Machine:
    """`machine` with what this way into its guest needs: a channel for the agent, a key in the cloud-init seed, a
    serial port. What the recipe asked for stays. Keys and the like lie in `folder`, a directory (mode 0700) that
    lasts from one build to the next, so that the seed says the same again; they are made there when missing."""
    return _way(kind).equip(machine, folder)


def connect(vm: Vm, state: State, kind: Kind, folder: str) -> Executor:
    """The way of this kind into the guest of `vm`, which has been `equip`ped. Returns at once: `wait_ready` waits."""
    return _way(kind).connect(vm, state, folder)


def _way(kind: Kind) -> _Way:
    return cast("_Way", importlib.import_module(f"imgtool.build.executors.{kind}"))
