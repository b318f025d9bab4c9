"""Virtual machines in a program: started, waited for, talked to and ended by one object.

    with imgtool.boot("web.qcow2", memory="2G", network=["user"], agent=True, accel="tcg") as vm:
        vm.wait("agent", seconds=120)
        print(vm.execute(["uname", "-a"]).stdout.decode())
        vm.stop()

They are the VMs of `imgtool vm`: a program finds those of the command line, and the other way round.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from imgtool.errors import MachineError, UsageError
from imgtool.image.names import PathLike, absolute
from imgtool.machine import control, ending, plugging
from imgtool.machine.config import Machine
from imgtool.machine.configure import configure
from imgtool.machine.host import AGENT_SOCKET
from imgtool.machine.launch import launch
from imgtool.machine.plan import prepare
from imgtool.machine.runtime import find, release, vms
from imgtool.machine.vm import State, Vm
from imgtool.qemu.programs import Programs
from imgtool.qemu.qmp import COMMAND_SECONDS, Monitor
from imgtool.qemu.system import Process

if TYPE_CHECKING:
    from imgtool.machine.agent import Agent, Executed

_POLL = 0.05
_STOP_SECONDS = 60.0
_REAP_SECONDS = 10.0

_left: list[Process] = []
"""QEMUs whose RunningVm nobody has any more. They are reaped when the next one is started."""


def boot(
    what: PathLike | Machine | None = None,
    *,
    tied: bool = True,
    force: bool = False,
    programs: Programs | None = None,
    **settings: Any,
) -> RunningVm:
    """Starts a VM in the background, and returns when its QEMU answers. The guest is only beginning then: see
    `RunningVm.wait`.

    `what` is a Machine, or an image, for which `configure` makes one of the `settings`. What `imgtool boot` refuses
    is refused here too unless `force` is set: an image that others stand on, or that is in use. A VM that is `tied`
    ends with this process, however that ends; any other runs on until somebody stops it.

    UsageError and ConfigError for a machine that makes no sense, ImageError and ChainError for images that cannot be
    used, RefusedError for what must not be done, MachineError and CommandError for what cannot be started.
    """
    if isinstance(what, Machine):
        if settings:
            raise UsageError("a Machine has its settings", hint="give them to `configure`, which makes it")
        machine = what
    else:
        machine = configure(what, **settings)
    programs = programs or Programs()
    _reap_left()
    started = launch(prepare(machine, programs, detached=True, force=force), programs, tied=tied)
    return RunningVm(started.vm, started.process, warnings=started.plan.warnings)


def _reap_left() -> None:
    for process in _left.copy():
        if process.poll() is not None:
            process.close()
            with contextlib.suppress(ValueError):  # another thread was first
                _left.remove(process)


def running_vm(name: str) -> RunningVm:
    """The running VM of this name, whoever started it. MachineError when there is none."""
    return RunningVm(find(name)[0])


def running_vms() -> list[RunningVm]:
    """All running VMs of this user, sorted by name."""
    return [RunningVm(vm) for vm, _ in vms()]


class RunningVm:
    """A VM that runs, or has ended since. As a context manager it is stopped at the end of the block; when the block
    raises, QEMU is ended without asking the guest.

    Its methods raise MachineError when the VM has ended, and QmpUnreachable when its QEMU does not answer.
    """

    def __init__(self, vm: Vm, process: Process | None = None, *, warnings: Sequence[str] = ()) -> None:
        """Made by `boot`, `running_vm` and `running_vms`."""
        self._vm = vm
        self._process = process
        self.warnings = tuple(warnings)
        """What `imgtool boot` would have warned of."""

    def __repr__(self) -> str:
        return f"<RunningVm {self.name}{'' if self.running else ', ended'}>"

    def __del__(self) -> None:
        process: Process | None = getattr(self, "_process", None)
        if process is not None:
            process.close()
            _left.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            state = self._live_state()
            if state is not None:
                ending.stop(self._vm, state, seconds=_STOP_SECONDS if kind is None else 0)
            elif kind is None:
                self._raise_failure()
        finally:
            self._let_go()

    @property
    def name(self) -> str:
        """The name that `imgtool vm` and `running_vm` know it by."""
        return self._vm.name

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._vm.running

    @property
    def machine(self) -> Machine:
        """Its configuration, with everything filled in that was left open, such as its name."""
        return self._state().machine

    @property
    def command(self) -> tuple[str, ...]:
        """QEMU's command line."""
        return self._state().argv

    @property
    def serial_log(self) -> str:
        """The file with everything that the guest has written to its first serial port. It is kept after the VM has
        ended."""
        return self._vm.serial_log

    def status(self) -> control.Status:
        """What QEMU reports about it. Does not raise when QEMU does not answer: the status says so."""
        return control.status(self._vm, self._state())

    def wait(self, what: str = "running", *, seconds: float = 300.0) -> None:
        """Waits until the guest itself has shown how far it is: `running`, `serial:REGEX` (a line on its console),
        `ssh`, `agent` or `cloud-init`. NotReady, with how far it came and the end of its console, when that takes
        more than `seconds` or the VM ends."""
        from imgtool.machine.readiness import parse_wait, wait_until

        wait_until(self._vm, parse_wait(what, "what"), seconds=seconds)

    def wait_ended(self, *, seconds: float | None = None) -> bool:
        """Waits until the VM has ended, and returns whether it has within `seconds` (None: however long that takes).
        CommandError when its QEMU, started by this object, has failed."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while self.running:
            if deadline is not None and time.monotonic() >= deadline:
                return False
            time.sleep(_POLL)
        self._raise_failure()
        self._let_go()
        return True

    def execute(self, argv: Sequence[str], *, stdin: bytes = b"", seconds: float | None = None) -> Executed:
        """Runs a program in the guest through its agent (`agent=True`, and qemu-guest-agent in the guest), and waits
        for it to end. No shell is involved. AgentUnavailable when the agent does not answer, NoSuchProgramError when
        there is no such program, AgentError when the program takes more than `seconds`; it then goes on running."""
        with self.agent() as guest:
            return guest.execute(argv, stdin=stdin, seconds=seconds)

    def agent(self) -> AbstractContextManager[Agent]:
        """A session with the guest agent, for several calls (QEMU: qga/qapi-schema.json). AgentUnavailable when it
        does not answer."""
        from imgtool.machine import agent

        self._state()
        return agent.session(self._vm.file(AGENT_SOCKET))

    def qmp_session(self) -> Monitor:
        """A QMP session, as a context manager. Keep it short: QEMU talks to one client at a time."""
        self._state()
        return Monitor.connect(self._vm.qmp_socket)

    def qmp(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """What QEMU returns for one QMP command. QmpCommandError when QEMU refuses it; RefusedError for one that
        makes QEMU start a program, when QEMU's sandbox would kill it for that."""
        self._state()
        return control.query(self._vm, command, arguments or {})

    def monitor(self, command: str, *, seconds: float = COMMAND_SECONDS) -> str:
        """What QEMU's human monitor (HMP) answers to a command such as `savevm before`, errors included."""
        self._state()
        return control.tell(self._vm, command, seconds=seconds)

    def ssh_argv(self, *command: str, user: str | None = None, identity: PathLike | None = None) -> list[str]:
        """OpenSSH's command line for a shell in the guest, or for `command` there. By default `user` is the one that
        imgtool's cloud-init seed creates, and `identity` the private key that belongs to the public key in the seed.
        NoWay when no address is known, ProgramError without OpenSSH."""
        from imgtool.machine import ssh

        return ssh.command_line(
            self._vm, self._state(), command, user=user, identity=None if identity is None else absolute(identity)
        )

    def screenshot(self, target: PathLike) -> None:
        """Writes what the guest's screen shows to `target`: as PPM when the name ends in `.ppm`, else as PNG.
        MachineError when it has no screen."""
        self._state()
        control.screenshot(self._vm, absolute(target))

    def pause(self) -> None:
        """Stops its CPUs."""
        self._steer("stop")

    def resume(self) -> None:
        """Lets its CPUs run again."""
        self._steer("cont")

    def reset(self) -> None:
        """Presses the reset button."""
        self._steer("system_reset")

    def _steer(self, command: control.Steering) -> None:
        self._state()
        control.steer(self._vm, command)

    def set_cpus(self, wanted: int) -> None:
        """Plugs in CPUs until there are `wanted`. RefusedError when there are more already, MachineError when the VM
        was started without room for them (`maxcpus=`)."""
        self._state()
        plugging.set_cpus(self._vm, wanted)

    def set_memory(self, wanted: int | str, *, node: int | None = None) -> None:
        """Plugs in memory until there is `wanted`: text in QEMU's notation (`4G`), or a number of MiB. It is of the
        NUMA node `node`, or of the first. RefusedError when there is more already, MachineError when the VM was
        started without room for it (`slots=`, `maxmem=`)."""
        plugging.set_memory(self._vm, self._state(), plugging.parse_memory(str(wanted)), node=node)

    def change(
        self, file: PathLike, *, drive: str | None = None, format: str | None = None, force: bool = False
    ) -> None:
        """Puts the image `file` into the CD-ROM or floppy drive `drive`, which may be left out where there is one.
        ImageInUseError when another VM writes it, MachineError when the guest has locked the drive, unless with
        `force`."""
        from imgtool.machine import media

        media.change(self._vm, self._state(), absolute(file), drive=drive, format=format, force=force)

    def eject(self, *, drive: str | None = None, force: bool = False) -> None:
        """Empties that drive. MachineError when the guest has locked it, unless with `force`."""
        from imgtool.machine import media

        media.eject(self._vm, self._state(), drive=drive, force=force)

    def stop(self, *, seconds: float = _STOP_SECONDS) -> ending.How:
        """Asks the guest to power off, and ends QEMU when it has not done so within `seconds` (0: at once). Returns
        what it took; unless that is `killed`, the images were closed properly."""
        how = ending.stop(self._vm, self._state(), seconds=seconds)
        self._let_go()
        return how

    def kill(self) -> None:
        """Ends QEMU at once, like pulling the plug: what the guest had not written yet is lost."""
        self._state()
        ending.kill(self._vm)
        self._let_go()

    def _live_state(self) -> State | None:
        """None when it has ended."""
        state = self._vm.state()
        return state if state is not None and self._vm.lives(state) else None

    def _state(self) -> State:
        state = self._live_state()
        if state is None:
            raise MachineError(
                f"the VM {self.name} has ended", hint=f"`imgtool vm log {self.name}` shows what it said"
            )
        return state

    def _raise_failure(self) -> None:
        """CommandError when QEMU has failed by itself. It is ours to ask as long as we have not let it go."""
        if self._process is not None:
            status = self._process.wait(_REAP_SECONDS)
            if status is not None and (status == 1 or status < 0):
                failure = self._process.failure()
                self._let_go()
                raise failure

    def _let_go(self) -> None:
        """Reaps a QEMU of ours that has ended, and clears what an ended VM leaves, apart from its logs."""
        if self.running:
            return
        process, self._process = self._process, None
        if process is not None:
            process.wait(_REAP_SECONDS)
            process.close()
        release(self._vm)
