"""Doing the steps of one layer, or the commands of a check, in a guest that is ready."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence

from imgtool.build import copying
from imgtool.build.executor import SHELL, Executor, ExecutorError, GuestLost, StepTimeout
from imgtool.build.guest import Guest
from imgtool.build.inputs import copied
from imgtool.build.keys import CopyInput
from imgtool.build.keys import copied as key_of_copy
from imgtool.build.memory import Memory
from imgtool.build.output import Log
from imgtool.build.recipe import Check, Layer, Loaded, executor_of, seconds_of, timeout_of
from imgtool.build.seal import scripts
from imgtool.build.store import FETCHED
from imgtool.build.watcher import title
from imgtool.errors import ConfigError, MachineError
from imgtool.image.names import printable

_WAIT_PAUSE = 1.0
_SHOWN = 200
_MORE_TIME = '`timeout = "30m"` in the layer or the check gives it more'
_LEFT_RUNNING = "a step leaves its guest running; `reboot = true` in a layer restarts it"


class StepFailed(MachineError):  # noqa: N818 - says what is so
    """A step ended badly. The message holds the last lines of its output."""

    code = "step-failed"

    def __init__(
        self,
        message: str,
        *,
        step: str,
        status: int | None,
        line: int,
        tail: Sequence[str],
        path: str,
        hint: str | None = None,
    ) -> None:
        shown = "".join(f"\n  | {line}" for line in tail)
        super().__init__(f"{printable(path)}:{line}: {message}{shown}", path=path, hint=hint)
        self.step = step
        self.status = status
        """Its exit status; None when it came to none."""
        self.line = line
        """In the recipe."""
        self.tail = tuple(tail)


class Steps:
    """The steps of one layer or check, in one guest."""

    def __init__(
        self,
        loaded: Loaded,
        place: tuple[str, int],
        guest: Guest,
        log: Log,
        *,
        secrets: Mapping[str, str],
        say: Callable[[str], None],
    ) -> None:
        """`place` says which: `("layer", 2)`. `secrets` are all that are known, by name."""
        self._loaded = loaded
        self._place = place
        owner: Sequence[Layer | Check] = loaded.recipe.layers if place[0] == "layer" else loaded.recipe.checks
        self._step = owner[place[1]]
        self._guest = guest
        self._log = log
        self._say = say
        self._kind = executor_of(loaded.recipe, self._step)
        self._timeout = timeout_of(self._step)
        wanted = self._step.secrets if isinstance(self._step, Layer) else ()
        self._secrets = {name: secrets[name] for name in wanted}

    @property
    def _executor(self) -> Executor:
        return self._guest.executor(self._kind)

    def perform(self, layer: Layer, memory: Memory, work: str, scratch: str) -> None:
        """All steps of `layer`. What is fetched goes into the folder `work`. StepFailed when one fails; ConfigError
        when a file changed while it was used."""
        self._copy(layer, memory, scratch)
        self.run(layer.run)
        self._run_script(layer, memory)
        self._reboot(layer)
        self._wait(layer)
        for action, script in scripts(layer.seal):
            self._command(f"seal {action}", script, ("seal",))
        self._fetch(layer, work)

    def run(self, lines: Sequence[str]) -> None:
        """Each line by a shell of its own."""
        for number, line in enumerate(lines):
            self._command(line, line.encode(errors="surrogateescape") + b"\n", ("run", number))

    def _command(
        self, shown: str, script: bytes, place: tuple[str | int, ...], interpreter: Sequence[str] = SHELL
    ) -> None:
        self._begin(shown)
        status = self._attempt(shown, script, place, interpreter)
        if status != 0:
            raise self._failed(shown, f"ended with exit status {status}", status, place)

    def _begin(self, shown: str) -> None:
        self._log.begin_step()
        self._log.heading(shown)
        self._say(shown)

    def _attempt(
        self,
        shown: str,
        script: bytes,
        place: tuple[str | int, ...],
        interpreter: Sequence[str] = SHELL,
        timeout: float | None = None,
    ) -> int:
        try:
            return self._executor.run(
                script,
                interpreter=interpreter,
                env=self._step.env,
                secrets=self._secrets,
                timeout=timeout or self._timeout,
                on_output=self._log.feed,
            )
        except StepTimeout:
            how = f"took longer than {self._timeout:g} s"
            raise self._failed(shown, how, None, place, hint=_MORE_TIME) from None
        except ExecutorError as error:
            raise self._broken(shown, error, place) from error
        finally:
            self._log.end_step()

    def _broken(self, shown: str, error: ExecutorError, place: tuple[str | int, ...]) -> StepFailed:
        """Of a step that could not be done, or whose end nobody knows."""
        hints = (_LEFT_RUNNING if isinstance(error, GuestLost) else None, error.hint)
        hint = "; ".join(filter(None, hints)) or None
        return self._failed(shown, f"failed: {error.message}", None, place, hint=hint)

    def _failed(
        self, shown: str, how: str, status: int | None, place: tuple[str | int, ...], *, hint: str | None = None
    ) -> StepFailed:
        name_of_step = title(shown)
        short = printable(name_of_step if len(name_of_step) <= _SHOWN else f"{name_of_step[: _SHOWN - 1]}…")
        name = f"the layer {self._step.name}" if isinstance(self._step, Layer) else "a check"
        return StepFailed(
            f"{name}: `{short}` {how}",
            step=shown,
            status=status,
            line=self._loaded.line(*self._place, *place),
            tail=self._log.tail(),
            path=self._loaded.path,
            hint=hint,
        )

    def _copy(self, layer: Layer, memory: Memory, scratch: str) -> None:
        for number, copy in enumerate(layer.copy):
            shown = f"copy {os.path.basename(copy.from_)} to {copy.to}"
            self._begin(shown)
            files = copied(copy, memory)
            try:
                copying.put(self._executor, copy, files, scratch)
            except ExecutorError as error:
                raise self._broken(shown, error, ("copy", number)) from error

    def check_unchanged(self, layer: Layer, memory: Memory, before: Sequence[CopyInput]) -> None:
        """ConfigError when what is copied is no longer what the layer's key was made of."""
        now = [key_of_copy(copy, memory) for copy in layer.copy]
        if now != list(before):
            raise ConfigError(
                f"files of the layer {layer.name} changed while it was built",
                hint="nothing was kept of it; run the build again",
                path=self._loaded.path,
            )

    def _run_script(self, layer: Layer, memory: Memory) -> None:
        if layer.script is None:
            return
        with open(layer.script, "rb") as file:
            script = file.read()
        interpreter = layer.interpreter or interpreter_of(script)
        self._command(f"run {os.path.basename(layer.script)}", script, ("script",), interpreter)

    def _reboot(self, layer: Layer) -> None:
        if not layer.reboot:
            return
        self._begin("reboot")
        try:
            self._guest.reboot(self._kind, seconds_of(self._loaded.recipe.machine.boot_timeout))
        except ExecutorError as error:
            raise self._broken("reboot", error, ("reboot",)) from error

    def _wait(self, layer: Layer) -> None:
        for number, line in enumerate(layer.wait):
            shown = f"wait for {line}"
            self._begin(shown)
            deadline = time.monotonic() + self._timeout
            place = ("wait", number)
            script = line.encode(errors="surrogateescape") + b"\n"
            while self._attempt(shown, script, place, timeout=max(1.0, deadline - time.monotonic())) != 0:
                if time.monotonic() >= deadline:
                    raise self._failed(shown, f"did not succeed within {self._timeout:g} s", None, place)
                time.sleep(_WAIT_PAUSE)

    def _fetch(self, layer: Layer, work: str) -> None:
        for number, wanted in enumerate(layer.fetch):
            shown = f"fetch {wanted.from_}"
            self._begin(shown)
            kept = os.path.join(work, FETCHED, str(number))
            os.makedirs(os.path.dirname(kept), exist_ok=True)
            try:
                copying.fetch(self._executor, wanted.from_, kept)
            except ExecutorError as error:
                raise self._broken(shown, error, ("fetch", number)) from error


def deliver(layer: Layer, folder: str) -> None:
    """Puts what the layer in `folder` fetched where the recipe wants it."""
    for number, wanted in enumerate(layer.fetch):
        copying.deliver(os.path.join(folder, FETCHED, str(number)), wanted.to, os.path.basename(wanted.from_))


def interpreter_of(script: bytes) -> Sequence[str]:
    """What the first line `#!…` of a script names; the shell without one. As the kernel does it: at most one word
    after the program's."""
    first = script.partition(b"\n")[0]
    if not first.startswith(b"#!"):
        return SHELL
    words = os.fsdecode(first[2:].strip()).split(None, 1)
    return words or SHELL
