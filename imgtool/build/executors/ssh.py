"""By SSH, as root or as a user who may become root without a password, with a key of the build's own that the
cloud-init seed brings in.

One connection is opened and shared (OpenSSH's ControlMaster); nothing of the user's own ssh configuration, keys or
agent takes part.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from msgspec.structs import replace

from imgtool.build.executor import KEY_COMMENT, Executor, ExecutorError, GuestLost, Kind, StepTimeout, keeping
from imgtool.build.executors import shell
from imgtool.build.executors.base import SHORT, Answer, Step, Way, killed
from imgtool.build.executors.stream import Frames
from imgtool.errors import CommandTimeout, ConfigError, MachineError, ProgramError
from imgtool.machine import ssh
from imgtool.machine.config import Machine
from imgtool.machine.seed import login
from imgtool.machine.values.devices import CloudInit
from imgtool.machine.vm import State, Vm
from imgtool.qemu.process import Completed, Limits, failure, run
from imgtool.qemu.system import Process, start

KEY = "id_ed25519"

_OPTIONS = (
    "BatchMode=yes",
    "ClearAllForwardings=yes",
    "ConnectTimeout=10",
    "ForwardAgent=no",
    "ForwardX11=no",
    "GlobalKnownHostsFile=/dev/null",
    "IdentitiesOnly=yes",
    "IdentityAgent=none",
    "PasswordAuthentication=no",
    "RequestTTY=no",
    "ServerAliveCountMax=8",
    "ServerAliveInterval=15",
)
_POLL = 0.05
_PAUSE = 0.5
_COPY_SECONDS = 3600.0
_LONGEST_ANSWER = 16 << 20
"""Bytes; what the guest agent keeps, too."""
_LOST = 255
"""What ssh itself ends with when it has no connection."""

_SHELL = (*shell.PLAIN, "/bin/sh", "-c", 'exec 2>&1; eval "$(cat)"')
_WRITE = (*shell.PLAIN, "/bin/sh", "-c", 'exec cat >"$1"', "imgtool")

_FORGET_KEY = b"""
for f in /root/.ssh/authorized_keys /home/*/.ssh/authorized_keys; do
    [ -f "$f" ] || continue
    n=$(grep -vxF -e "$KEY" "$f") || :
    if [ -n "$n" ]; then printf '%s\\n' "$n" >"$f"; else rm -f "$f"; fi
done
"""


def equip(machine: Machine, folder: str) -> Machine:
    """The guest's root gets the key, or the user whom the machine's own cloud-init settings make."""
    if machine.networks is not None and not machine.networks:
        raise ConfigError("a guest without a network cannot be reached by SSH", hint="choose another executor")
    wanted = machine.cloud_init or CloudInit()
    if wanted.user is None and not wanted.ssh_keys:
        wanted = replace(wanted, user="root")
    public = _make_key(folder)
    if public not in wanted.ssh_keys:
        wanted = replace(wanted, ssh_keys=(*wanted.ssh_keys, public))
    return replace(machine, cloud_init=wanted)


def forget_key(way: Executor, folder: str) -> None:
    """Takes the key in `folder` out of the guest again. ExecutorError when that fails."""
    with open(os.path.join(folder, KEY + ".pub")) as file:
        key = file.read().strip()
    said = bytearray()
    if way.run(_FORGET_KEY, env={"KEY": key}, timeout=SHORT, on_output=keeping(said)) != 0:
        raise ExecutorError(f"the build's key cannot be removed: {shell.words_of(bytes(said))}")


def connect(vm: Vm, state: State, folder: str) -> SshWay:
    return SshWay(vm, state, folder)


def _make_key(folder: str) -> str:
    """The path of the public key in `folder`; the pair is made where it is missing."""
    key = os.path.join(folder, KEY)
    if not os.path.exists(key + ".pub"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(key)
        argv = [_program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", KEY_COMMENT, "-f", key]
        done = run(argv, limits=Limits(seconds=SHORT))
        if done.status != 0:
            raise failure(done, path=key)
    return key + ".pub"


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise ProgramError(f"{name} was not found on PATH", hint="on Debian: apt-get install openssh-client")
    return found


class _Ended(Exception):  # noqa: N818 - no error
    """The step has ended: whoever else holds its output open is not waited for."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class SshWay(Way):
    kind: Kind = "ssh"

    def __init__(self, vm: Vm, state: State, folder: str) -> None:
        super().__init__(vm.name, lambda: vm.running)
        self._vm = vm
        self._state = state
        self._key = os.path.join(folder, KEY)
        wanted = state.machine.cloud_init
        self._user = login(wanted) if wanted is not None and (wanted.user or wanted.ssh_keys) else "root"
        self._endpoint: ssh.Endpoint | None = None
        self._known_hosts = vm.file(f"build-{ssh.KNOWN_HOSTS}")
        # A place of its own: the socket's path gets a suffix while it is made, for which the VM's may be too long.
        self._folder = tempfile.mkdtemp(prefix="imgtool-")
        self._control = os.path.join(self._folder, "s")
        self._master: Process | None = None

    def wait_ready(self, *, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                if self._master is None or self._master.poll() is not None:
                    self._open(deadline)
                answer = self._shell(b"id -u")
            except MachineError as error:
                self._lose()
                if not self._alive():
                    raise GuestLost(f"{self._name} ended before it could be reached by SSH") from None
                if time.monotonic() >= deadline:
                    raise ExecutorError(
                        f"{self._name} cannot be reached by SSH within {seconds:g} s: {error.message}",
                        hint=error.hint or "is sshd installed, and cloud-init, which lets the build's key in?",
                    ) from None
                time.sleep(_PAUSE)
                continue
            if answer.status == 0 and answer.output.strip() == b"0":
                return
            raise ExecutorError(
                f"{self._user} is not root in {self._name} and cannot become it: {shell.words_of(answer.output)}",
                hint="sudo without a password is needed there, or no user in the cloud-init settings",
            )

    def close(self) -> None:
        self._lose()
        shutil.rmtree(self._folder, ignore_errors=True)

    def power_off(self) -> None:
        forget_key(self, os.path.dirname(self._key))
        super().power_off()

    def _lose(self) -> None:
        if self._master is not None:
            self._master.end()
            self._master.close()
            self._master = None
        for path in (self._control, self._known_hosts):  # a system that boots anew may have made new host keys
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def _shell(self, program: bytes, *, seconds: float = SHORT) -> Answer:
        said = bytearray()
        try:
            with _fed(program + b"\n") as stdin:
                done = self._run(_SHELL, stdin=stdin, on_stdout=keeping(said, _LONGEST_ANSWER), seconds=seconds)
        except CommandTimeout:
            raise self._gone(f"no answer within {seconds:g} s") from None
        return Answer(done.status, bytes(said) + done.stderr)

    def _write(self, content: IO[bytes], target: str) -> None:
        try:
            with _fed(content) as stdin:
                done = self._run([*_WRITE, target], stdin=stdin, on_stdout=len, seconds=_COPY_SECONDS)
        except CommandTimeout:
            raise self._gone(f"a file took longer than {_COPY_SECONDS:g} s") from None
        if done.status != 0:
            raise ExecutorError(f"the guest cannot write: {shell.words_of(done.stderr)}")

    def _read(self, source: str, sink: IO[bytes]) -> None:
        try:
            done = self._run(["cat", "--", source], stdin=None, on_stdout=sink.write, seconds=_COPY_SECONDS)
        except CommandTimeout:
            raise self._gone(f"a file took longer than {_COPY_SECONDS:g} s") from None
        if done.status != 0:
            raise ExecutorError(f"the guest cannot read: {shell.words_of(done.stderr)}")

    def _see_through(self, step: Step) -> int:
        frames = Frames(step.token)

        def take(piece: bytes) -> None:
            status = step.take(frames.feed(piece))
            if status is not None:
                raise _Ended(status)

        try:
            with _fed(step.exports) as stdin:
                self._run(step.command(), stdin=stdin, on_stdout=take, seconds=step.left())
        except _Ended as end:
            return end.status
        except CommandTimeout:
            raise StepTimeout("late") from None
        raise killed()

    def _run(
        self,
        command: Sequence[str],
        *,
        stdin: int | None,
        on_stdout: Callable[[bytes], object],
        seconds: float | None,
    ) -> Completed:
        """Runs an argv as root in the guest. GuestLost when the connection breaks off."""
        if self._master is None or self._master.poll() is not None:
            raise self._gone(self._last_words())
        become = [] if self._user == "root" else ["sudo", "-n", "--"]
        line = os.fsdecode(shell.join([*become, *command]))
        argv = self._argv(("-o", "ControlMaster=no"), line)
        done = run(
            argv, limits=Limits(seconds=seconds), on_stdout=lambda piece: (on_stdout(piece), None)[1], stdin=stdin
        )
        if done.status == _LOST and self._master.wait(_PAUSE) is not None:
            raise self._gone(self._last_words())
        return done

    def _argv(self, options: Sequence[str], *command: str) -> list[str]:
        assert self._endpoint is not None
        fixed = [word for option in _OPTIONS for word in ("-o", option)]
        return ssh.ssh_argv(
            _program("ssh"),
            self._endpoint,
            known_hosts=self._known_hosts,
            user=self._user,
            identities=[self._key],
            options=["-F", "none", "-S", self._control, *fixed, *options],
            command=command,
        )

    def _open(self, deadline: float) -> None:
        """Opens the shared connection. ExecutorError, in ssh's words, when it does not come up."""
        if self._endpoint is None:
            self._endpoint = ssh.endpoint(self._vm, self._state)
        self._lose()
        self._master = start(self._argv(("-o", "ControlMaster=yes", "-N")), detached=False)
        while not os.path.exists(self._control):
            if self._master.wait(_POLL) is not None or time.monotonic() >= deadline:
                raise ExecutorError(self._last_words())

    def _last_words(self) -> str:
        return shell.words_of(self._master.stderr()) if self._master is not None else "it was not connected"


@contextmanager
def _fed(data: bytes | IO[bytes]) -> Iterator[int]:
    """A descriptor to read `data` from: a pipe, for what it carries is to lie on no disk."""
    reader, writer = os.pipe()

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), os.fdopen(writer, "wb") as file:
            if isinstance(data, bytes):
                file.write(data)
            else:
                shutil.copyfileobj(data, file, 1 << 16)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        yield reader
    finally:
        os.close(reader)
        thread.join()
