"""Starting a planned VM: what must be in place first, QEMU, and the moment from which it answers."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import time
from collections.abc import Callable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from imgtool.errors import CommandError, ImgtoolError, MachineError
from imgtool.image.policy import current, in_force
from imgtool.machine.argv import compile_argv
from imgtool.machine.console import restored
from imgtool.machine.host import Command, Helper, Secret
from imgtool.machine.plan import Plan, scratch_dir
from imgtool.machine.runtime import release
from imgtool.machine.trim import trimmed_logs
from imgtool.machine.vm import PID_FILE, QEMU_LOG, Vm
from imgtool.qemu.programs import Programs
from imgtool.qemu.system import Process, start

START_SECONDS = 60.0
"""QEMU has so long to answer on its monitor; preallocating memory can take it a while."""

_HELPER_SECONDS = 10.0
_POLL = 0.02

_FORESEEN = ("terminating on signal",)
"""What QEMU says on stderr of an end that was asked for."""


class Started(Struct, frozen=True):
    """A VM whose QEMU answers."""

    vm: Vm
    plan: Plan
    process: Process
    begun: float
    """time.monotonic() when QEMU was started."""


class Ended(Struct, frozen=True):
    """How QEMU ended by itself: its exit status, and what it had said on stderr."""

    status: int
    said: str


def launch(plan: Plan, programs: Programs, *, tied: bool = False) -> Started:
    """Starts the VM and returns once its QEMU answers over QMP. When it does not come up, CommandError with QEMU's
    own words, or MachineError where more is known than QEMU says; nothing is then left of it but logs. A VM that is
    `tied`, in the background or not, ends with imgtool, however that dies."""
    vm = plan.vm
    process: Process | None = None
    try:
        _make_ready(plan, programs, tied=tied)
        begun = time.monotonic()
        with _opened(plan) as descriptors:
            plan = _with_descriptors(plan, descriptors)
            process = start(
                plan.command.argv,
                detached=plan.detached,
                tied=tied,
                terminal=not plan.detached,
                stderr=vm.file(QEMU_LOG),
                pass_fds=[descriptor for queues in descriptors.values() for descriptor in queues],
                record=vm.file(PID_FILE),
            )
        _await_monitor(plan, process)
        _forget_scratch(plan)
        vm.update(phase="running")
    except BaseException:
        if process is not None:
            process.end()
            process.close()
        release(vm)
        raise
    return Started(vm, plan, process, begun)


def _opened(plan: Plan) -> contextlib.AbstractContextManager[dict[str, tuple[int, ...]]]:
    if not plan.command.taps:
        return contextlib.nullcontext({})
    from imgtool.machine.nets.join import opened

    return opened(plan.command.taps, plan.vm.name)


def _with_descriptors(plan: Plan, descriptors: dict[str, tuple[int, ...]]) -> Plan:
    """The plan with the taps that are open now: QEMU is told their numbers, and its sandbox keeps it from more."""
    if not descriptors:
        return plan
    host = replace(plan.host, descriptors=descriptors)
    command = compile_argv(plan.machine, host)
    plan.vm.update(argv=command.argv)
    return replace(plan, host=host, command=command)


def run(
    plan: Plan,
    programs: Programs,
    *,
    while_running: Callable[[Started], None] | None = None,
) -> Ended:
    """Runs the VM on the terminal until its QEMU ends, and leaves terminal and runtime directory as they were,
    however that happens: an exception (SIGTERM to imgtool, Ctrl-C without a terminal) ends QEMU first.

    `while_running` is called again and again, about ten times a second. CommandError when QEMU failed or crashed."""
    with restored():
        started = launch(plan, programs)
        process = started.process
        try:
            with trimmed_logs(started.vm.path):
                while process.wait(None if while_running is None else 0.1) is None:
                    assert while_running is not None
                    while_running(started)
            if while_running is not None:
                while_running(started)
            status = process.end()
            if status == 1 or status < 0:
                failure = process.failure()
                failure.hint = failure.hint or _sandbox_hint(process, failure)
                raise failure
            return Ended(status, _unforeseen(process.stderr()))
        finally:
            process.end()
            process.close()
            release(started.vm)


def _unforeseen(stderr: bytes) -> str:
    lines = stderr.decode(errors="surrogateescape").splitlines()
    return "\n".join(line for line in lines if not any(words in line for words in _FORESEEN))


def _make_ready(plan: Plan, programs: Programs, *, tied: bool) -> None:
    vm, command = plan.vm, plan.command
    if plan.seed is not None:
        from imgtool.machine.seed import iso

        _write_private(plan.host.seed or "", iso(plan.seed))
    _make_variables(plan, programs)
    _make_scratch(plan, programs)
    for secret in command.secrets:
        _make_secret(secret)
    for helper in command.helpers:
        _start_helper(vm, helper, detached=plan.detached, tied=tied)


def _make_variables(plan: Plan, programs: Programs) -> None:
    """The VM's own copy of the UEFI variables, at its first start."""
    uefi, firmware = plan.host.uefi, plan.firmware
    if uefi is None or firmware is None or uefi.vars is None or firmware.template is None:
        return
    if os.path.exists(uefi.vars):
        return
    from imgtool.qemu.qemu_img import QemuImg

    os.makedirs(os.path.dirname(uefi.vars), mode=0o700, exist_ok=True)
    QemuImg(programs).convert(
        firmware.template, uefi.vars, format=firmware.template_format, output_format=uefi.vars_format
    )


def _make_scratch(plan: Plan, programs: Programs) -> None:
    command = plan.command
    if not command.scratch:
        return
    from imgtool.qemu.qemu_img import QemuImg

    folder = scratch_dir(plan.vm)
    plan.vm.update(leftovers=(folder,))
    try:
        os.mkdir(folder, mode=0o700)
    except FileExistsError:
        status = os.lstat(folder)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise MachineError(f"{folder} is in the way", hint="set TMPDIR to a folder of yours") from None
        from shutil import rmtree

        rmtree(folder)
        os.mkdir(folder, mode=0o700)
    image = QemuImg(programs)
    for scratch in command.scratch:
        # The image was guarded when it was looked at; that this overlay elsewhere stands on it is our own doing.
        with in_force(current().naming(scratch.backing)):
            image.create(
                scratch.path,
                scratch.size,
                format="qcow2",
                backing=scratch.backing,
                backing_format=scratch.backing_format,
            )


def _forget_scratch(plan: Plan) -> None:
    """QEMU has the files open; without names they vanish with it, whatever happens to whom."""
    if plan.command.scratch:
        from shutil import rmtree

        rmtree(scratch_dir(plan.vm), ignore_errors=True)
        plan.vm.update(leftovers=())


def _make_secret(secret: Secret) -> None:
    if not os.path.exists(secret.path):
        import secrets

        # VNC looks at the first eight characters only.
        _write_private(secret.path, secrets.token_urlsafe(6).encode())


def _write_private(path: str, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)


def _start_helper(vm: Vm, helper: Helper, *, detached: bool, tied: bool) -> None:
    if helper.directory is not None:
        os.makedirs(helper.directory, mode=0o700, exist_ok=True)
        if helper.link is not None:
            os.symlink(helper.directory, helper.link)
    name = os.path.basename(helper.socket).removesuffix(".sock")
    log, record = vm.file(f"{name}.log"), vm.file(f"{name}.pid")

    def begin(argv: Sequence[str]) -> None:
        process = start(argv, detached=detached, tied=tied, stderr=log, record=record)
        with contextlib.closing(process):
            _await_socket(helper, process)

    try:
        begin(helper.argv)
    except CommandError:
        if not helper.otherwise:
            raise
        begin(helper.otherwise)


def _await_socket(helper: Helper, process: Process) -> None:
    deadline = time.monotonic() + _HELPER_SECONDS
    while not os.path.exists(helper.socket):
        if process.wait(_POLL) is not None:
            raise process.failure()
        if time.monotonic() > deadline:
            process.end()
            raise MachineError(f"{helper.name} did not make its socket within {_HELPER_SECONDS:g} s")


def _await_monitor(plan: Plan, process: Process) -> None:
    """Returns when QEMU has opened everything and answers, or has ended with status 0 meanwhile (`-- -version`)."""
    # Not earlier: QEMU starts meanwhile.
    from imgtool.qemu.qmp import QmpUnreachable, knock

    socket = plan.vm.qmp_socket
    deadline = time.monotonic() + START_SECONDS
    while True:
        status = process.wait(_POLL)
        if status is not None:
            if status == 0 and not plan.detached:
                return
            raise _start_failure(plan, process)
        try:
            knock(socket, seconds=max(0.1, deadline - time.monotonic()))
            give_secrets(plan.command, socket, seconds=max(0.1, deadline - time.monotonic()))
            return
        except QmpUnreachable:
            if time.monotonic() >= deadline:
                process.end()
                raise MachineError(f"QEMU did not answer within {START_SECONDS:g} s of its start") from None


def _start_failure(plan: Plan, process: Process) -> ImgtoolError:
    from imgtool.machine.accelerator import closed_device
    from imgtool.machine.ports import port_failure

    error = process.failure()
    port = port_failure(plan.machine, plan.vm.name)
    if port is not None:
        return port
    error.hint = error.hint or _sandbox_hint(process, error) or closed_device(plan.machine.accel)
    if process.poll() == 0:
        error.message = f"{plan.vm.name} ended as soon as it was started"
    return error


_NO_FORK = "Failed to fork (Operation not permitted)"
"""GLib's words where the sandbox forbids the call instead of ending who makes it (seen with QEMU 10.0)."""


def _sandbox_hint(process: Process, error: ImgtoolError) -> str | None:
    """What to do where QEMU's sandbox has ended it, or let it start no program; None where it did not."""
    if process.poll() == -signal.SIGSYS or _NO_FORK in error.message:
        return "QEMU's sandbox lets it start no program (exec:…); --no-sandbox does"
    return None


def give_secrets(command: Command, socket: str, *, seconds: float) -> None:
    """Gives QEMU the passwords that it takes over its monitor only. QmpUnreachable when that takes over `seconds`."""
    secrets = [secret for secret in command.secrets if secret.by_qmp]
    if not secrets:
        return
    from imgtool.qemu.qmp import Monitor

    with Monitor.connect(socket, seconds=seconds) as monitor:
        for secret in secrets:
            with open(secret.path) as file:
                monitor.execute("set_password", {"protocol": secret.protocol, "password": file.read()})
