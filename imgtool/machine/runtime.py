"""Running VMs, each a directory in the runtime directory: what it is, its process, its sockets and its logs.

    ROOT/                 $XDG_RUNTIME_DIR/imgtool/vm, mode 0700
        .lock             held (flock) while names and images are claimed and what is stale is cleared
        NAME/
            vm.json       State
            qemu.pid      QEMU's identity, written before QEMU begins
            *.pid         those of the programs beside it (swtpm, virtiofsd, passt), which end with it
            *.sock        QMP, guest agent, serial ports, helpers
            *.log         serial ports, QEMU's stderr; these alone survive the VM

Nothing waits for a detached VM to end. Whoever looks next recognises by QEMU's pid and start time that it is gone,
and clears what it left.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from imgtool.errors import ConfigError, ImageInUseError, MachineError
from imgtool.image.names import printable
from imgtool.image.userdirs import temporary_dir
from imgtool.machine.config import Machine
from imgtool.machine.process import ProcessId, boot_identity, end_process, read_pid_file
from imgtool.machine.trim import trim_logs
from imgtool.machine.vm import PID_FILE, STATE_FILE, HeldImage, State, Vm

LONGEST_NAME = 48
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.+-]*"

_LONGEST_SOCKET = 100
"""sun_path holds 108 bytes on Linux and 104 elsewhere, the closing NUL included."""
_LONGEST_FILE = "serial0.sock"

_ENDED_KEPT = 20
"""So many ended VMs keep their logs."""


def runtime_root() -> str:
    """The folder of all this user's VMs, made if need be. MachineError when it cannot be, or is another's."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    if not base or not os.path.isdir(base):
        base = f"/run/user/{os.getuid()}"
    if os.path.isdir(base) and os.access(base, os.W_OK):
        top = os.path.join(base, "imgtool")
    else:
        top = os.path.join(temporary_dir(), f"imgtool-{os.getuid()}")
    root = os.path.join(top, "vm")
    try:
        for folder in (top, root):
            os.makedirs(folder, mode=0o700, exist_ok=True)
            status = os.lstat(folder)
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
                raise MachineError(
                    f"{folder} belongs to someone else", hint="set XDG_RUNTIME_DIR to a folder of yours"
                )
            if status.st_mode & 0o077:
                os.chmod(folder, 0o700)
    except OSError as error:
        raise MachineError(
            f"the runtime directory {root} cannot be made: {error.strerror}", hint="set XDG_RUNTIME_DIR"
        ) from error
    return root


def check_name(name: str) -> str:
    """`name` itself, when it can be a VM's. ConfigError otherwise."""
    if not re.fullmatch(_NAME, name) or len(name) > LONGEST_NAME:
        raise ConfigError(
            f"{printable(name)!r} cannot be the name of a VM",
            hint=f"letters, digits and `_.+-` after a letter or digit, at most {LONGEST_NAME} of them",
        )
    return name


def name_from(path: str | None) -> str:
    """A VM name made from an image's file name: `alpine` from /images/alpine.qcow2."""
    stem = os.path.splitext(os.path.basename(path or ""))[0]
    name = re.sub(r"[^A-Za-z0-9_.+-]+", "-", stem).strip("-_.+")[: LONGEST_NAME - 4]
    return name or "vm"


def is_migrated_to(machine: Machine) -> bool:
    """Whether its QEMU waits for the state of another VM. Until that has come it writes no image, and locks none; the
    other gives its images up with it."""
    return any(word.lstrip("-") == "incoming" and word.startswith("-") for word in machine.arguments)


def claim(
    machine: Machine,
    *,
    name: str | None,
    like: str | None = None,
    images: Sequence[HeldImage] = (),
    detached: bool,
    root: str | None = None,
) -> Vm:
    """The directory of a new VM. Without a `name` a free one is made up from the image `like`.

    MachineError when the name is taken; ImageInUseError, naming the other VM, when one of the two would write an
    image that the other has open, unless it hands it over: the machine waits to be migrated to.
    """
    root = root or runtime_root()
    with _locked(root):
        vm = _place(root, _sweep(root), name, like, () if is_migrated_to(machine) else images)
        _remove(vm.path)
        os.mkdir(vm.path, mode=0o700)
        launcher = ProcessId.of(os.getpid())
        assert launcher is not None
        vm.created = time.time()
        vm.write(
            State(
                name=vm.name,
                phase="starting",
                launcher=launcher,
                boot=boot_identity(),
                created=vm.created,
                detached=detached,
                machine=machine,
                images=tuple(images),
            )
        )
    return vm


def foresee(
    *, name: str | None, like: str | None = None, images: Sequence[HeldImage] = (), root: str | None = None
) -> Vm:
    """The directory that `claim` would make now. Raises what it would; claims nothing, and clears nothing away."""
    root = root or runtime_root()
    there = [Vm(root, one) for one in sorted(os.listdir(root)) if not one.startswith(".")]
    others = [(vm, state) for vm in there if (state := vm.state()) is not None and vm.lives(state)]
    return _place(root, others, name, like, images)


def _place(
    root: str, others: list[tuple[Vm, State]], name: str | None, like: str | None, images: Sequence[HeldImage]
) -> Vm:
    """Where a new VM beside `others` may have its directory."""
    taken = {vm.name for vm, _ in others}
    if name is None:
        name = _free_name(name_from(like), taken | {vm.name for vm in unknown_vms(root)})
    elif Vm(root, check_name(name)).unknown:
        raise not_understood(Vm(root, name))
    elif name in taken:
        raise MachineError(
            f"a VM named {name} is running", hint=f"`imgtool vm stop {name}` ends it; --name takes another name"
        )
    check_images(images, [(vm.name, state.images) for vm, state in others])
    vm = Vm(root, name)
    if len(os.fsencode(vm.file(_LONGEST_FILE))) > _LONGEST_SOCKET:
        raise MachineError(
            f"{vm.path} is too long a path for sockets",
            hint="set XDG_RUNTIME_DIR to a shorter folder, or give a shorter --name",
        )
    return vm


def check_images(wanted: Sequence[HeldImage], held: Sequence[tuple[str, Sequence[HeldImage]]]) -> None:
    """ImageInUseError when an image in `wanted` is in `held` (VM name, its images) and one of the two writes it."""
    for image in wanted:
        for name, images in held:
            for other in images:
                if (image.device, image.inode) != (other.device, other.inode):
                    continue
                if not image.writable and not other.writable:
                    continue
                how = "is being written by" if other.writable else "is being read by"
                raise ImageInUseError(
                    f"the image {how} the VM {name}",
                    path=image.path,
                    hint=f"`imgtool vm stop {name}` ends it"
                    + ("" if other.writable else "; --ephemeral or --new-overlay boots beside it, without writing"),
                )


def vms(root: str | None = None) -> list[tuple[Vm, State]]:
    """The running VMs by name. What others left is cleared on the way."""
    root = root or runtime_root()
    with _locked(root):
        return _sweep(root)


def find(name: str, root: str | None = None) -> tuple[Vm, State]:
    """The running VM of this name. MachineError when there is none."""
    running = vms(root)
    for vm, state in running:
        if vm.name == name:
            return vm, state
    if re.fullmatch(_NAME, name) and Vm(root or runtime_root(), name).unknown:
        raise not_understood(Vm(root or runtime_root(), name))
    names = [vm.name for vm, _ in running]
    import difflib

    near = difflib.get_close_matches(name, names, n=1)
    ended = os.path.isdir(os.path.join(root or runtime_root(), name)) if re.fullmatch(_NAME, name) else False
    raise MachineError(
        f"the VM {printable(name)} has ended" if ended else f"there is no VM named {printable(name)}",
        hint=f"`imgtool vm log {name}` shows what it said"
        if ended
        else f"did you mean {near[0]}?"
        if near
        else "`imgtool vm list` shows those that run",
    )


def unknown_vms(root: str | None = None) -> list[Vm]:
    """Those that run without this imgtool knowing what they are. They are in nobody's way but that of their name."""
    root = root or runtime_root()
    there = [Vm(root, name) for name in sorted(os.listdir(root)) if not name.startswith(".")]
    return [vm for vm in there if vm.unknown]


def not_understood(vm: Vm) -> MachineError:
    """What is said of an unknown one."""
    qemu = vm.qemu()
    return MachineError(
        f"the VM {vm.name} runs, but what was noted of it cannot be understood",
        hint="the imgtool that started it can end it" + (f", or `kill {qemu.pid}`" if qemu is not None else ""),
        path=vm.file(STATE_FILE),
    )


def release(vm: Vm) -> None:
    """Clears what an ended VM leaves, apart from its logs. Doing it twice is doing it once; a later VM of the same
    name stays as it is."""
    with _locked(vm.root):
        if not vm.replaced:
            _clear(vm, vm.state())


def find_logs(name: str, root: str | None = None) -> Vm:
    """The VM of this name, running or ended, as long as its logs are there. MachineError otherwise."""
    vm = Vm(root or runtime_root(), check_name(name))
    if not os.path.isdir(vm.path):
        raise MachineError(
            f"there is no VM named {name}, and no logs of one", hint="`imgtool vm list` shows those that run"
        )
    return vm


def _free_name(stem: str, taken: set[str]) -> str:
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    return name


@contextmanager
def _locked(root: str) -> Iterator[None]:
    import fcntl

    fd = os.open(os.path.join(root, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _sweep(root: str) -> list[tuple[Vm, State]]:
    """The VMs that live, after clearing those that have ended. Called with the lock held."""
    alive: list[tuple[Vm, State]] = []
    ended: list[tuple[float, Vm]] = []
    for name in sorted(os.listdir(root)):
        vm = Vm(root, name)
        if name.startswith(".") or not os.path.isdir(vm.path):
            continue
        trim_logs(vm.path)
        state = vm.state()
        if state is not None and vm.lives(state):
            vm.created = state.created
            alive.append((vm, state))
            continue
        if state is None and vm.unknown:
            continue  # its guest's work is not ours to throw away
        _clear(vm, state)
        if os.path.isdir(vm.path):
            ended.append((os.stat(vm.path).st_mtime, vm))
    for _, vm in sorted(ended, key=lambda item: item[0])[:-_ENDED_KEPT]:
        _remove(vm.path)
    return alive


def _clear(vm: Vm, state: State | None) -> None:
    entries = os.listdir(vm.path) if os.path.isdir(vm.path) else []
    if state is None or state.boot == boot_identity():
        # QEMU first: what runs beside it mostly ends by itself then.
        for name in sorted(entries, key=lambda name: name != PID_FILE):
            process = read_pid_file(vm.file(name)) if name.endswith(".pid") else None
            if process is not None:
                end_process(process)
    for leftover in state.leftovers if state else ():
        _remove(leftover)
    for name in entries:
        if not name.endswith(".log"):
            _remove(vm.file(name))
    with contextlib.suppress(OSError):
        os.rmdir(vm.path)  # where there are no logs


def _remove(path: str) -> None:
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            for name in os.listdir(path):
                _remove(os.path.join(path, name))
            os.rmdir(path)
        else:
            os.unlink(path)
    except OSError:
        pass  # gone already; or it cannot go, and must not stand in the way of every later command
