"""The layer store: every finished layer a folder that appears whole and never changes.

    ROOT/                     $XDG_DATA_HOME/imgtool/layers, IMGTOOL_LAYERS, or --layers
        KEY/                  a layer; KEY.2, KEY.3… when it was built again while others stood on the old one
            NAME.qcow2        the overlay, mode 0444; its backing file is ../PARENT/NAME.qcow2, or the base
            manifest.json     Manifest
            key.json          the KeyDocument
            log               what its steps said
            fetched/          files that its steps brought back
        failed-…/             the overlay and log of a failed build that was to be kept
        recipes/              the result of each recipe's last build
        .imgtool-work-…/      layers being made; one that nobody holds is cleared by the next build
        .locks/               flock(2) files: one a key, one a work folder, one for the store's use

A layer is made in a work folder and moved into place by one rename, after everything in it is on disk. Whoever
builds a key holds its lock: a second build waits and then finds the layer.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

from imgtool.errors import ImageError, ImageInUseError
from imgtool.image.names import absolute, printable
from imgtool.image.userdirs import user_dir

T = TypeVar("T")

MANIFEST = "manifest.json"
KEY_FILE = "key.json"
LOG = "log"
FETCHED = "fetched"

_LAYER = re.compile(r"(?P<key>[0-9a-f]{64})(?:\.(?P<generation>[0-9]+))?")
_WORK = ".imgtool-work-"
_FAILED = "failed-"
_PATIENCE = 0.1


class Manifest(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What a sealed layer is."""

    schema: Literal[1] = 1
    """The version of this document."""
    recipe: str
    """The image's name in the recipe that built it."""
    layer: str
    """Its name in the recipe."""
    key: str
    """The SHA-256, in hex, of everything that went into it."""
    parent: str | None
    """The folder of the layer beneath; None when that is the base."""
    base: str
    """The base image that the whole stands on, where it was when the layer was made."""
    base_format: str
    """As QEMU calls it."""
    base_content: str
    """The digest of what a guest reads of the base."""
    content: str
    """The digest of what a guest reads (`imgtool1:…`)."""
    image: str
    """The overlay's file name in the layer's folder."""
    virtual_size: int
    """Bytes of the disk."""
    size: int
    """Bytes of the overlay's file."""
    mtime_ns: int
    """When the overlay's file was last written: nanoseconds since the epoch."""
    created: float
    """Seconds since the epoch."""
    seconds: float
    """How long its steps took."""
    by_hand: bool = False
    """Somebody worked in the guest while it was made: it is never taken for what the recipe says."""
    qemu: str
    """The version of QEMU that made it."""
    imgtool: str
    """The version that made it."""


class Layer(NamedTuple):
    """A layer that is in the store."""

    folder: str
    """Its name in the store: the key, and for later generations their number."""
    path: str
    manifest: Manifest

    @property
    def image(self) -> str:
        return os.path.join(self.path, self.manifest.image)

    @property
    def log(self) -> str:
        return os.path.join(self.path, LOG)

    @property
    def used(self) -> float:
        """When a build took it last, or made it: seconds since the epoch. Its folder's time says so."""
        return os.stat(self.path).st_mtime


class Work(NamedTuple):
    """A folder in which a layer is made, held by this process."""

    path: str
    fd: int
    lock: str


def default_root() -> str:
    """Where layers are kept when nobody says."""
    given = os.environ.get("IMGTOOL_LAYERS")
    if given:
        return absolute(given)
    return os.path.join(user_dir("data"), "layers")


class Store:
    """The layers below one folder. Methods raise ImageError when the folder cannot be used."""

    def __init__(self, root: str | None = None) -> None:
        self.root = absolute(root) if root is not None else default_root()

    def path(self, *names: str) -> str:
        return os.path.join(self.root, *names)

    def prepare(self) -> None:
        with _said(self.root):
            os.makedirs(self.path(".locks"), mode=0o700, exist_ok=True)

    def layers(self) -> list[Layer]:
        """All layers with a manifest, oldest first."""
        found = [self.layer(name) for name in self._names()]
        return sorted((layer for layer in found if layer is not None), key=lambda layer: layer.manifest.created)

    def layer(self, folder: str) -> Layer | None:
        """The layer in this folder; None when there is none that can be read."""
        path = self.path(folder)
        try:
            with open(os.path.join(path, MANIFEST), "rb") as file:
                return Layer(folder, path, decode(file.read(), Manifest))
        except (OSError, ValueError):
            return None

    def find(self, key: str) -> Layer | None:
        """The newest layer of this key that is as it was sealed, down to its base."""
        for folder in sorted(self._generations(key), key=_generation, reverse=True):
            layer = self.layer(folder)
            if layer is not None and not layer.manifest.by_hand and self.is_whole(layer):
                return layer
        return None

    def is_whole(self, layer: Layer) -> bool:
        """Whether its file and those of the layers beneath were not touched since they were sealed. The base is for
        the caller to look at."""
        here: Layer | None = layer
        while here is not None:
            manifest = here.manifest
            try:
                status = os.stat(here.image)
            except OSError:
                return False
            if (status.st_size, status.st_mtime_ns) != (manifest.size, manifest.mtime_ns):
                return False
            if manifest.parent is None:
                return True
            here = self.layer(manifest.parent)
        return False

    def note_use(self, layer: Layer) -> None:
        """A build takes the layer now."""
        with contextlib.suppress(OSError):  # of another user's
            os.utime(layer.path)

    def chain(self, layer: Layer) -> list[Layer]:
        """The layer and those beneath it, as far as they are there."""
        found = []
        here: Layer | None = layer
        while here is not None:
            found.append(here)
            here = None if here.manifest.parent is None else self.layer(here.manifest.parent)
        return found

    def free_name(self, key: str) -> str:
        """The folder for a new layer of this key. Called with the key held."""
        numbers = [_generation(name) for name in self._generations(key)]
        return key if not numbers else f"{key}.{max(numbers) + 1}"

    def _names(self) -> list[str]:
        try:
            return [name for name in os.listdir(self.root) if _LAYER.fullmatch(name)]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _generations(self, key: str) -> list[str]:
        return [name for name in self._names() if name.startswith(key)]

    @contextlib.contextmanager
    def using(self) -> Iterator[None]:
        """Inside the `with` block, no layer is removed: what was found stays there."""
        self.prepare()
        fd = _open_lock(self.path(".locks", "use"))
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            yield
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Inside the `with` block, nobody builds. ImageInUseError when somebody does already."""
        self.prepare()
        fd = _open_lock(self.path(".locks", "use"))
        try:
            if not _try_lock(fd):
                raise ImageInUseError(
                    "a build is using the layers", hint="wait for it to end, then run this again", path=self.root
                )
            yield
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def claim(self, key: str, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Holds the key; while another build does, waits, having called `on_wait` once."""
        fd = _open_lock(self.path(".locks", key))
        try:
            if not _try_lock(fd):
                on_wait()
                while not _try_lock(fd):
                    time.sleep(_PATIENCE)
            yield
        finally:
            os.close(fd)

    def work(self) -> Work:
        """A new work folder, held until `drop` or `publish`, or until this process ends."""
        with _said(self.root), self._changing():
            name = f"{_WORK}{os.urandom(6).hex()}"
            lock = self.path(".locks", name)
            fd = _open_lock(lock)
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.mkdir(self.path(name), mode=0o755)
        return Work(self.path(name), fd, lock)

    def publish(self, work: Work, folder: str) -> Layer:
        """Moves a finished layer into place; everything in it is on disk before, and the move when this returns."""
        target = self.path(folder)
        with _said(target):
            _sync_tree(work.path)
            os.rename(work.path, target)
            _sync(self.root)
        _release(work)
        layer = self.layer(folder)
        assert layer is not None, "it was written just now"
        return layer

    def drop(self, work: Work) -> None:
        shutil.rmtree(work.path, ignore_errors=True)
        _release(work)

    def keep_failed(self, work: Work, name: str) -> str:
        """Gives the folder of a failed build a name that stays; returns its path."""
        with _said(self.root), self._changing():
            number = 1
            while os.path.exists(self.path(f"{_FAILED}{name}-{number}")):
                number += 1
            target = self.path(f"{_FAILED}{name}-{number}")
            os.rename(work.path, target)
        _release(work)
        return target

    def failed(self) -> list[str]:
        """The paths of kept failures."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(self.path(name) for name in os.listdir(self.root) if name.startswith(_FAILED))
        return []

    def clear_stale(self) -> list[str]:
        """Takes away work folders of builds that were killed, and names them."""
        gone = []
        with _said(self.root), self._changing():
            for name in os.listdir(self.root):
                if not name.startswith(_WORK):
                    continue
                lock = self.path(".locks", name)
                fd = _open_lock(lock)
                try:
                    if _try_lock(fd):
                        shutil.rmtree(self.path(name), ignore_errors=True)
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(lock)
                        gone.append(self.path(name))
                finally:
                    os.close(fd)
        return gone

    def remove(self, layer: Layer) -> None:
        """Takes a layer away in one step: half of it never shows. Called with the store `alone`."""
        with _said(layer.path):
            grave = self.path(f"{_WORK}{os.urandom(6).hex()}")
            os.rename(layer.path, grave)
            shutil.rmtree(grave)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path(".locks", layer.manifest.key))

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Inside the `with` block, nobody else makes or clears a work folder."""
        fd = _open_lock(self.path(".locks", "work"))
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _generation(folder: str) -> int:
    match = _LAYER.fullmatch(folder)
    assert match is not None
    return int(match["generation"] or 1)


def encode(value: Any) -> bytes:
    """`value` (structs and builtins) as JSON that keeps names which are no UTF-8, as `imgtool.cli` writes it."""
    return json.dumps(msgspec.to_builtins(value), indent=1).encode() + b"\n"


def decode(content: bytes, type: type[T]) -> T:
    """The opposite of `encode`. ValueError when it is something else."""
    return msgspec.convert(json.loads(content), type)


def write_file(path: str, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


def _release(work: Work) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(work.lock)
    os.close(work.fd)


def _open_lock(path: str) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sync_tree(path: str) -> None:
    for folder, _, names in os.walk(path, topdown=False):
        for name in names:
            _sync(os.path.join(folder, name))
        _sync(folder)


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _said(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "is there space left?" if error.errno == errno.ENOSPC else "--layers names another folder for layers"
        raise ImageError(
            f"the layers in {printable(path)} cannot be used: {error.strerror}", hint=hint, path=path
        ) from error
