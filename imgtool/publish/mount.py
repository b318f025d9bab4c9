"""The files of an image in a directory.

qemu-storage-daemon shows the disk as a raw file by FUSE, whatever chain of whatever formats it is; the kernel mounts
a file system out of it through a loop device, which takes root. Both last until `unmount`, like any mount, and what
has to be remembered of them lies in the user's runtime folder.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import time

import msgspec

from imgtool.chain.encryption import refuse_encrypted
from imgtool.chain.walk import guard
from imgtool.errors import ImgtoolError, MachineError, ProgramError, RefusedError, UsageError
from imgtool.image.names import PathLike, absolute, option_value, printable
from imgtool.image.partitions import Table, read_table
from imgtool.image.whole import write_whole
from imgtool.machine.process import ProcessId, read_pid_file
from imgtool.machine.runtime import runtime_root
from imgtool.operations.plan import Plan, Touched
from imgtool.publish.serve import local_layers, refuse_in_use
from imgtool.qemu.extents import options_of
from imgtool.qemu.img_argv import ImageOpts
from imgtool.qemu.process import Limits, Runner, failure, run
from imgtool.qemu.programs import Programs
from imgtool.qemu.system import Process, start

DAEMON = "qemu-storage-daemon"
_FUSE = "/dev/fuse"
_PATIENCE = 20.0
_GRACE = 20.0
_TERM, _KILL = 15, 9
_PID_FILE = "daemon.pid"


class Mount(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """An image that is mounted."""

    image: str
    """The image's file."""
    at: str
    """The directory, or with `raw` the file."""
    view: str
    """The disk as a raw file."""
    writable: bool
    """Whether it can be written to."""
    raw: bool
    """Whether the disk itself is shown as a file, rather than its file system as a directory."""
    partition: int | None = None
    """Counted from 1; None is the whole disk."""
    offset: int = 0
    """Where the file system begins: bytes from the disk's beginning."""
    size: int | None = None
    """Bytes of the partition; None is the whole disk."""
    pid: int | None = None
    """Of qemu-storage-daemon."""
    started: int | None = None
    """When that process started, as the kernel counts: clock ticks since the host's start."""


def daemon_argv(program: str, options: str, view: str, *, writable: bool) -> list[str]:
    switched = ("on", "off") if writable else ("off", "on")
    return [
        program,
        *("--blockdev", f"{options},node-name=disk,read-only={switched[1]}"),
        *("--export", f"type=fuse,id=view,node-name=disk,mountpoint={option_value(view)},writable={switched[0]}"),
    ]


def mount_argv(mount: Mount, *, recovery: bool = True) -> list[str]:
    """`mount` of a partition. Without `recovery` the journal of a file system that was not unmounted stays as it is:
    it cannot be written."""
    options = ["rw" if mount.writable else "ro", "loop", "nosuid", "nodev"]
    if mount.size is not None:
        options += [f"offset={mount.offset}", f"sizelimit={mount.size}"]
    if not recovery:
        options.append("norecovery")
    return ["mount", "-o", ",".join(options), "--", mount.view, mount.at]


class MountRequest:
    """An image that may be mounted: it was looked at, nothing was done."""

    def __init__(
        self,
        image: PathLike,
        at: PathLike,
        programs: Programs,
        *,
        format: str | None = None,
        partition: int | None = None,
        writable: bool = False,
        raw: bool = False,
        force: bool = False,
        runner: Runner = run,
    ) -> None:
        """Onto the directory `at`, or with `raw` as the file `at`, which is made. `partition` is its number, None the
        only one, or the whole disk where there is no partition table.

        Raises as `guard` and `learn_disks`; ProgramError when something for it is missing, which it names;
        RefusedError when something is mounted there."""
        self.path, self.at = absolute(image), absolute(at)
        self.programs, self.runner = programs, runner
        self.writable, self.raw, self.partition = writable, raw, partition
        if raw and partition is not None:
            raise UsageError("--raw shows the whole disk", hint="leave out --partition")
        self.chain = guard(self.path, format=format)
        refuse_encrypted(self.chain)
        refuse_in_use(self.path, format, writable=writable, force=force)
        self._check_place()
        self._check_host()
        self.folder = _folder(self.at)
        self.view = self.at if raw else os.path.join(self.folder, "disk")
        options = options_of(local_layers(self.chain))
        if options is None:
            raise RefusedError(
                f"{printable(self.path)} cannot be given to {DAEMON} image by image",
                hint="`imgtool convert` makes one image of it",
                path=self.path,
            )
        self._options = ImageOpts.of(options).text

    def _check_place(self) -> None:
        shown = printable(self.at)
        if self.raw:
            if os.path.lexists(self.at):
                raise _taken(self.at)
        elif not os.path.isdir(self.at):
            raise RefusedError(f"{shown} is no directory", hint=f"mkdir {shown}", path=self.at)
        elif os.path.ismount(self.at):
            raise RefusedError(f"something is mounted on {shown}", hint=f"imgtool unmount {shown}", path=self.at)

    def _check_host(self) -> None:
        if not os.path.exists(_FUSE):
            raise ProgramError(f"this host has no {_FUSE}", hint="`modprobe fuse`; a container needs that device")
        if not os.access(_FUSE, os.R_OK | os.W_OK):
            raise ProgramError(f"{_FUSE} is not for this user", hint="run it with sudo")
        if not self.raw and os.geteuid() != 0:
            raise ProgramError(
                "only root mounts a file system",
                hint="run it with sudo; --raw FILE shows the disk as a raw file without root",
            )
        program = self.programs.find(DAEMON)
        said = self.runner([program, "--help"], limits=Limits(seconds=10)).stdout
        if b"fuse" not in said:
            raise ProgramError(f"{program} was built without FUSE", hint="QEMU 6.0 and later can have it")

    def plan(self) -> Plan:
        planned = Mount(image=self.path, at=self.at, view=self.view, writable=self.writable, raw=self.raw)
        commands = [tuple(self._argv())]
        if not self.raw:
            commands.append(tuple(mount_argv(planned)))
        images = [
            Touched(path=image.path, action="write" if self.writable and not depth else "read")
            for depth, image in enumerate(self.chain)
        ]
        return Plan(commands=tuple(commands), images=tuple(images))

    def _argv(self) -> list[str]:
        return daemon_argv(self.programs.find(DAEMON), self._options, self.view, writable=self.writable)

    def make(self) -> Mount:
        """Mounts it. CommandError in the words of the program that failed; nothing is left then."""
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        _forget_stale(self.folder)
        self._make_view()
        made = Mount(image=self.path, at=self.at, view=self.view, writable=self.writable, raw=self.raw)
        log, record = (os.path.join(self.folder, name) for name in ("log", _PID_FILE))
        try:
            _write(self.folder, made)
            process = start(self._argv(), detached=True, stderr=log, record=record)
        except BaseException:
            _clear(made, self.folder, self.runner)
            raise
        identity = ProcessId.of(process.pid)
        started = None if identity is None else identity.started
        made = msgspec.structs.replace(made, pid=process.pid, started=started)
        try:
            _write(self.folder, made)
            _await(process, self.view, self.path)
            if not self.raw:
                made = self._with_partition(made)
                _write(self.folder, made)
                self._mount(made)
        except BaseException:
            process.end()
            process.close()
            _clear(made, self.folder, self.runner)
            raise
        process.close()
        return made

    def _make_view(self) -> None:
        """The empty file that the disk will be shown as. RefusedError when somebody else has put one there."""
        if not self.raw:
            with contextlib.suppress(FileNotFoundError):  # imgtool may have been killed here
                os.unlink(self.view)
        try:
            flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY | os.O_CLOEXEC
            os.close(os.open(self.view, flags, 0o600))
        except OSError as error:
            shutil.rmtree(self.folder, ignore_errors=True)
            if isinstance(error, FileExistsError):
                raise _taken(self.view) from error
            raise

    def _with_partition(self, made: Mount) -> Mount:
        fd = os.open(self.view, os.O_RDONLY | os.O_CLOEXEC)
        try:
            table = read_table(lambda offset, length: os.pread(fd, length, offset))
        finally:
            os.close(fd)
        if table is None:
            if self.partition is not None:
                raise RefusedError(f"{printable(self.path)} has no partition table", hint="leave out --partition")
            return made
        number = self.partition
        if number is None:
            number = _only(table, self.path)
        for one in table.partitions:
            if one.number == number:
                return msgspec.structs.replace(made, partition=number, offset=one.start, size=one.end - one.start)
        raise RefusedError(f"{printable(self.path)} has no partition {number}", hint=_listed(table))

    def _mount(self, made: Mount) -> None:
        done = self.runner(mount_argv(made))
        if done.status and not made.writable:
            second = self.runner(mount_argv(made, recovery=False))
            if second.status == 0:
                return
        if done.status:
            raise failure(done, path=self.path, hint="--partition N chooses another partition; --raw shows the disk")


def mount(
    image: PathLike,
    at: PathLike,
    *,
    format: str | None = None,
    partition: int | None = None,
    writable: bool = False,
    raw: bool = False,
    force: bool = False,
    programs: Programs | None = None,
) -> Mount:
    """Mounts a file system of `image` on the directory `at`, which needs root, or with `raw` shows the whole disk as
    the new file `at`, until `unmount`. `partition` is a number; None is the only partition, or the whole disk where
    there is no partition table.

    Raises as `guard`; RefusedError when something is mounted there, when others stand on the image (and it is
    `writable`), or when its parent is not the one it was made on, unless `force` is set; ImageInUseError;
    ProgramError when a program is missing that this needs; CommandError.
    """
    request = MountRequest(
        image,
        at,
        programs or Programs(),
        format=format,
        partition=partition,
        writable=writable,
        raw=raw,
        force=force,
    )
    return request.make()


def unmount(at: PathLike, *, runner: Runner = run) -> Mount:
    """Ends the mount that `mount` made at `at`. RefusedError when there is none, or when it is still in use."""
    place = absolute(at)
    folder = _folder(place)
    try:
        with open(os.path.join(folder, "mount.json"), "rb") as file:
            made = msgspec.json.decode(file.read(), type=Mount)
    except (OSError, msgspec.MsgspecError):
        raise RefusedError(
            f"imgtool mounted nothing on {printable(place)}", hint="`findmnt` lists what is mounted", path=place
        ) from None
    if not made.raw and os.path.ismount(made.at):
        done = runner(["umount", "--", made.at])
        if done.status:
            raise failure(done, path=place, hint=f"a program has a file open there: `fuser -vm {printable(place)}`")
    process = _daemon(made, folder)
    if process is not None and process.alive:
        _end(process)
    _clear(made, folder, runner)
    return made


def _daemon(made: Mount, folder: str) -> ProcessId | None:
    """The daemon of a mount; where imgtool was killed before it wrote that down, it wrote the bare process down."""
    return read_pid_file(os.path.join(folder, _PID_FILE)) if made.pid is None else ProcessId(made.pid, made.started)


def _end(process: ProcessId) -> None:
    from signal import Signals

    process.send(Signals(_TERM))
    if not process.wait(_GRACE):
        process.send(Signals(_KILL))
        process.wait(_GRACE)


def _clear(made: Mount, folder: str, runner: Runner) -> None:
    """Takes away what is left of a mount whose daemon has ended, however it did."""
    if not made.raw and os.path.ismount(made.at):
        runner(["umount", "--lazy", "--", made.at])
    if _is_fuse(made.view):
        runner(["umount", "--lazy", "--", made.view])
    if _is_fuse(made.view) and shutil.which("fusermount3") is not None:
        runner(["fusermount3", "-u", "-z", "--", made.view])
    with contextlib.suppress(OSError):
        # a file of another's that took its place is not empty
        if stat.S_ISREG(os.lstat(made.view).st_mode) and not os.path.getsize(made.view):
            os.unlink(made.view)
    shutil.rmtree(folder, ignore_errors=True)


def _forget_stale(folder: str) -> None:
    """A mount whose daemon is gone (the host was switched off, or it was killed) does not stand in the way."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        with open(os.path.join(folder, "mount.json"), "rb") as file:
            made = msgspec.json.decode(file.read(), type=Mount)
        process = _daemon(made, folder)
        if process is not None and process.alive:
            shown = printable(made.at)
            raise RefusedError(f"{shown} is mounted already", hint=f"imgtool unmount {shown}", path=made.at)
        _clear(made, folder, run)
        os.makedirs(folder, mode=0o700, exist_ok=True)


def _is_fuse(view: str) -> bool:
    try:
        return os.stat(view).st_dev != os.stat(os.path.dirname(view)).st_dev
    except OSError as error:
        return error.errno == errno.ENOTCONN  # its daemon is gone


def _taken(path: str) -> RefusedError:
    return RefusedError(f"{printable(path)} already exists", hint="choose another name", path=path)


def _only(table: Table, path: str) -> int:
    """The partition to take where none was named: the only one, else that is the user's to say."""
    extended = ("05", "0f", "85")
    usable = [one for one in table.partitions if one.type not in extended]
    if len(usable) != 1:
        raise RefusedError(
            f"{printable(path)} has {len(usable) or 'no'} partitions",
            hint=f"--partition N: {_listed(table)}" if usable else "--raw shows the disk",
            path=path,
        )
    return usable[0].number


def _listed(table: Table) -> str:
    from imgtool.sizes import format_size

    return ", ".join(
        f"{one.number} ({format_size(one.end - one.start)}{' ' + printable(one.name) if one.name else ''})"
        for one in table.partitions
    )


def _folder(at: str) -> str:
    place = hashlib.sha256(os.fsencode(os.path.realpath(at))).hexdigest()[:16]
    top = os.path.join(os.path.dirname(runtime_root()), "mount")
    try:
        os.makedirs(top, mode=0o700, exist_ok=True)
    except OSError as error:
        raise MachineError(f"{top} cannot be made: {error.strerror}") from error
    return os.path.join(top, place)


def _write(folder: str, made: Mount) -> None:
    try:
        write_whole(os.path.join(folder, "mount.json"), msgspec.json.encode(made))
    except UnicodeEncodeError:
        raise UsageError("a name that is not UTF-8 cannot be remembered", hint="rename it") from None


def _await(process: Process, view: str, path: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not (_is_fuse(view) and stat.S_ISREG(os.stat(view).st_mode)):
        if process.poll() is not None:
            raise process.failure(path=path)
        if time.monotonic() > deadline:
            raise ImgtoolError(f"{DAEMON} does not show the disk", path=path)
        time.sleep(0.01)
