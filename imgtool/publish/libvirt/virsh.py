"""A libvirt connection, by virsh.

A chain goes to a connection's storage pool image by image, the base first: each is a volume named by its stem and its
layer digest, so that what is there already is not sent again, and names its parent as it lies there.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import msgspec

from imgtool.errors import ProgramError, RefusedError
from imgtool.image.names import pasted, printable
from imgtool.operations.overlay import stem_of
from imgtool.publish.replica import Replica, replicas
from imgtool.qemu.process import Completed, Runner, failure, run

Progress = Callable[[float], None]
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9._+]+")


class Volume(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """An image in a storage pool."""

    path: str
    """Where it came from, here."""
    name: str
    """Its name in the pool."""
    volume: str
    """Its path there."""
    size: int
    """Bytes of the file."""
    sent: bool
    """False: it was there."""


def is_remote(uri: str) -> bool:
    """Whether `uri` is a libvirt on another host. One reached by ssh is: a loopback address is a tunnel's then."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return False
    if parts.scheme.partition("+")[2] in ("ssh", "libssh", "libssh2"):
        return True
    return bool(parts.hostname) and parts.hostname not in ("localhost", "127.0.0.1", "::1")


def define_argv(uri: str, path: str) -> list[str]:
    return ["virsh", "-q", "-c", uri, "define", "--validate", path]


def dump_argv(uri: str | None, name: str) -> list[str]:
    where = [] if uri is None else ["-c", uri]
    return ["virsh", "-q", *where, "dumpxml", "--inactive", "--", name]


class Connection:
    """One libvirt, reached at `uri`."""

    def __init__(self, uri: str, runner: Runner = run) -> None:
        if uri.startswith("-"):
            raise RefusedError(f"{printable(uri)} is not a libvirt URI", hint="such as qemu:///system")
        self.uri = uri
        self.runner = runner

    def define(self, xml: str) -> None:
        """Defines the domain. CommandError in libvirt's words when it will not have it."""
        with tempfile.TemporaryDirectory(prefix="imgtool-") as folder:
            path = os.path.join(folder, "domain.xml")
            with open(path, "wb") as file:
                file.write(xml.encode())  # as XML without a declaration is, whatever the locale
            self._run(define_argv(self.uri, path))

    def upload(
        self, path: str, *, pool: str, format: str | None = None, progress: Progress | None = None
    ) -> list[Volume]:
        """The chain of the image at `path` in the storage pool `pool`, the base first.

        Raises as `imgtool.publish.replica.replicas`; CommandError in libvirt's words."""
        done: list[Volume] = []
        with replicas(path, format=format, name=_volume_name) as copies:
            total = sum(copy.size for copy in copies) or 1
            sent = 0
            for copy in copies:
                with tempfile.TemporaryDirectory(prefix=".imgtool-", dir=os.path.dirname(copy.path)) as folder:
                    done.append(self._one(copy, pool, folder))
                sent += copy.size
                if progress is not None:
                    progress(100 * sent / total)
        return done

    def _one(self, copy: Replica, pool: str, folder: str) -> Volume:
        there = self._path_of(pool, copy.name)
        if there is not None:
            if self._digest(pool, copy, folder) != copy.sha256:
                raise RefusedError(
                    f"the volume {copy.name} of pool {pool} is not the image that its name says",
                    hint=f"`virsh -c {pasted(self.uri)} vol-delete --pool {pool} {copy.name}`, then try again",
                    path=copy.path,
                )
            return Volume(path=copy.path, name=copy.name, volume=there, size=copy.size, sent=False)
        self._run(
            self._virsh(
                "vol-create-as", "--pool", pool, copy.name, f"{copy.size}B", "--format", "raw", allocation=True
            )
        )
        try:
            with copy.as_file(folder) as file:
                self._run(self._virsh("vol-upload", "--pool", pool, "--vol", copy.name, "--file", file))
            self._run(self._virsh("pool-refresh", "--pool", pool))
            there = self._path_of(pool, copy.name)
        except BaseException:
            self.runner(self._virsh("vol-delete", "--pool", pool, "--vol", copy.name))
            raise
        if there is None:
            raise ProgramError(f"the pool {printable(pool)} lost the volume {copy.name}")
        return Volume(path=copy.path, name=copy.name, volume=there, size=copy.size, sent=True)

    def _virsh(self, *words: str, allocation: bool = False) -> list[str]:
        return ["virsh", "-q", "-c", self.uri, *words, *(["--allocation", "0"] if allocation else [])]

    def _run(self, argv: Sequence[str]) -> Completed:
        done = self.runner(argv)
        if done.status:
            raise failure(done, hint=f"`virsh -c {pasted(self.uri)} version` shows whether libvirt answers")
        return done

    def _path_of(self, pool: str, name: str) -> str | None:
        done = self.runner(self._virsh("vol-path", "--pool", pool, "--vol", name))
        return os.fsdecode(done.stdout).strip() or None if done.status == 0 else None

    def _digest(self, pool: str, copy: Replica, folder: str) -> str:
        """Of the volume's bytes, which are read back."""
        path = os.path.join(folder, "back")
        self._run(self._virsh("vol-download", "--pool", pool, "--vol", copy.name, "--file", path))
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def _volume_name(path: str, digest: str, format: str) -> str:
    stem = _NOT_PLAIN.sub("-", stem_of(os.path.basename(path))).strip(".-")[:64] or "image"
    stem = re.sub(r"(-[0-9a-f]{12})+\Z", "", stem) or "image"
    return f"{stem}-{digest.partition(':')[2][:12]}.{format}"


def dump(name: str, uri: str | None = None, *, runner: Runner = run) -> str:
    """The XML of the domain `name`, as it starts next. CommandError in libvirt's words."""
    done = runner(dump_argv(uri, name))
    if done.status:
        raise failure(done, hint="`virsh list --all` names the domains; --connect URI asks another libvirt")
    return done.stdout.decode(errors="surrogateescape")


def need_virsh() -> None:
    if shutil.which("virsh") is None:
        raise ProgramError("virsh is not installed", hint="on Debian: apt-get install libvirt-clients")
