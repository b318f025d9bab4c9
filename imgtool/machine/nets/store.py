"""Where networks are kept: a directory each, in the runtime directory, which does not outlive the host's uptime.

NAME/config     how it was asked for
NAME/journal    what has to be undone
NAME/complete   there once it was made as a whole; taken away before it is deleted
NAME/…          dnsmasq's files
.lock           held by whoever makes or deletes a network
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

import msgspec

from imgtool.errors import MachineError
from imgtool.image.names import printable
from imgtool.machine.nets.names import is_network_name, network_name
from imgtool.machine.nets.values import Config
from imgtool.machine.process import ProcessId

CONFIG = "config"
COMPLETE = "complete"
LOCK = ".lock"

_PATIENCE = 120.0
"""Seconds to wait for another imgtool to be done with its network."""


class Complete(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What is known once a network stands."""

    dnsmasq: ProcessId | None = None


class Meta(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The content of NAME/config."""

    config: Config
    namespace: int
    """The network namespace that it was made in (the inode of /proc/self/ns/net)."""


class Entry(NamedTuple):
    """A network's directory; `meta` is None where imgtool died before it had written it, and done nothing yet."""

    name: str
    directory: str
    meta: Meta | None
    complete: Complete | None


def root() -> str:
    """The directory of all networks: `/run/imgtool/net`, or a user's own."""
    if os.geteuid() == 0:
        return "/run/imgtool/net"
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    return os.path.join(runtime, "imgtool", "net")


def directory(name: str) -> str:
    """Where the network `name` is kept. UsageError when nothing can have that name."""
    return os.path.join(root(), network_name(name))


def namespace() -> int:
    """The network namespace of this process."""
    return os.stat("/proc/self/ns/net").st_ino


@contextlib.contextmanager
def locked() -> Iterator[int]:
    """Keeps every other imgtool from changing networks; yields the lock's descriptor. Programs that get it passed on
    keep the lock until they end, too."""
    os.makedirs(root(), mode=0o700, exist_ok=True)
    lock = os.open(os.path.join(root(), LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + _PATIENCE
        while not _try_lock(lock, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise MachineError(
                    "another imgtool has been changing networks for long", hint=f"`fuser {root()}/{LOCK}` shows which"
                )
            time.sleep(0.02)
        yield lock
    finally:
        os.close(lock)


def being_changed() -> bool:
    """Whether some imgtool makes or deletes a network at this moment."""
    try:
        lock = os.open(os.path.join(root(), LOCK), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _try_lock(lock, fcntl.LOCK_SH)
    finally:
        os.close(lock)


def _try_lock(lock: int, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EINTR):
            return False
        raise
    return True


def entries() -> list[Entry]:
    """All networks, finished or not, by name. Empty too where the directory is another user's."""
    try:
        names = sorted(entry.name for entry in os.scandir(root()) if is_network_name(entry.name))
    except (FileNotFoundError, PermissionError):
        return []
    found = (entry(name) for name in names)
    return [entry for entry in found if entry is not None]


def entry(name: str) -> Entry | None:
    """The network `name`, None where there is none."""
    place = directory(name)
    if not os.path.isdir(place):
        return None
    meta = _read(os.path.join(place, CONFIG), Meta)
    return Entry(name, place, meta, None if meta is None else _read(os.path.join(place, COMPLETE), Complete))


def begin(config: Config) -> str:
    """Makes the directory of a new network. Nothing else may have been done for it yet."""
    place = directory(config.name)
    os.mkdir(place, 0o700)
    _write(os.path.join(place, CONFIG), Meta(config=config, namespace=namespace()))
    return place


def finish(place: str, complete: Complete) -> None:
    """Says that the network in `place` is whole."""
    _write(os.path.join(place, COMPLETE), complete)


def reopen(place: str) -> None:
    """Says that the network in `place` is about to be undone."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(place, COMPLETE))


def remove(place: str) -> None:
    """Forgets a network that has been undone: its config goes first, and with it the need to undo anything."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(place, CONFIG))
    shutil.rmtree(place)


V = TypeVar("V", Meta, Complete)


def _write(path: str, value: Meta | Complete) -> None:
    """Whole or not at all."""
    new = f"{path}.new"
    with open(new, "wb") as file:
        file.write(msgspec.json.encode(value))
        file.flush()
        os.fsync(file.fileno())
    os.rename(new, path)


def _read(path: str, kind: type[V]) -> V | None:
    try:
        with open(path, "rb") as file:
            return msgspec.json.decode(file.read(), type=kind)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise MachineError(
            f"{printable(path)} is damaged: {error}", hint="the journal next to it names the network's parts"
        ) from None
