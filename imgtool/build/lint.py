"""Looking into an image, without booting it, for what clones of it must not share.

The disk is unpacked into a sparse scratch file and its file systems are read by `debugfs` (e2fsprogs), which needs
neither root nor a mount and takes a partition by its offset. libguestfs would read more kinds of file systems, but
boots a VM of its own for it, and a throwaway clone would change the very state that is looked for. What is no ext2,
ext3 or ext4 is named as not looked at.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

import msgspec

from imgtool.build.executor import KEY_COMMENT
from imgtool.build.filesystems import FileSystem, filesystems
from imgtool.build.recipe import SealAction
from imgtool.chain.walk import guard
from imgtool.errors import ImageUnreadableError, ProgramError
from imgtool.image.names import PathLike, absolute, printable
from imgtool.qemu.process import Limits, Runner, run
from imgtool.qemu.qemu_img import QemuImg

_LIMITS = Limits(seconds=60, address_space=2 << 30)
"""The file system is a guest's, and may be a hostile one's."""
_LONGEST_FILE = 1 << 20
_LONGEST_LIST = 64 << 20
"""Bytes that are read of a file, and of what debugfs lists."""
_LISTED = re.compile(r"/\d+/(?P<mode>[0-7]{1,6})/\d+/\d+/(?P<name>[^/]+)/(?P<size>\d{0,18})/")
"""A line of its `ls -p`; a name with a slash, which only a broken file system has, is none that anybody opens."""


class Hazard(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """Something that two clones would share, or that a sealed image does not need."""

    severity: Literal["error", "warning"]
    """error: clones get in each other's way, or trust each other's keys."""
    path: str
    """In the guest."""
    action: SealAction
    """The seal action that takes it away."""
    message: str
    """What would come of it, in words."""


class System(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """A file system of the image."""

    partition: int | None
    """Counted from 1; None for a disk that is one file system."""
    offset: int
    """Bytes from the disk's beginning."""
    type: str
    """By its signature: `ext`, `xfs`, `btrfs`, `fat`, `lvm`, `luks`, `swap`, or `unknown`."""
    looked_at: bool
    """Whether its files were read: only those of ext2, ext3 and ext4 are."""


class Lint(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The answer of `build lint`."""

    image: str
    """The file that was looked at."""
    systems: tuple[System, ...]
    """In the order of the disk."""
    hazards: tuple[Hazard, ...]
    """Empty where nothing was found."""


Kind = Literal["file", "folder", "link", "other"]


class Entry(NamedTuple):
    name: str
    kind: Kind
    size: int


class Files:
    """The files of one ext file system."""

    def __init__(self, raw: str, offset: int, *, runner: Runner = run) -> None:
        self._source = f"{raw}?offset={offset}" if offset else raw
        self._runner = runner
        self._program = _debugfs()

    def list(self, folder: str) -> list[Entry]:
        """What is in `folder`, nothing when there is no such folder. Links in its path are not followed."""
        entries = []
        for line in self._ask(f'ls -p "{folder}"', _LONGEST_LIST).decode(errors="surrogateescape").split("\n"):
            found = _LISTED.fullmatch(line)
            if found is not None and found["name"] not in (".", ".."):
                kind = _KINDS.get(int(found["mode"], 8) & 0o170000, "other")
                entries.append(Entry(found["name"], kind, int(found["size"] or 0)))
        return entries

    def find(self, pattern: str) -> Iterator[tuple[str, Entry]]:
        """The paths that match `pattern`, in which `*` stands for a name or a part of one."""
        yield from self._find("", pattern.strip("/").split("/"))

    def _find(self, folder: str, parts: Sequence[str]) -> Iterator[tuple[str, Entry]]:
        for entry in self.list(folder or "/"):
            if not fnmatchcase(entry.name, parts[0]) or '"' in entry.name:
                continue
            path = f"{folder}/{entry.name}"
            if len(parts) == 1:
                yield path, entry
            elif entry.kind == "folder":
                yield from self._find(path, parts[1:])

    def read(self, path: str) -> bytes:
        """The beginning of a file."""
        return self._ask(f'cat "{path}"', _LONGEST_FILE)

    def _ask(self, request: str, most: int) -> bytes:
        """The first `most` bytes of the answer: in a few blocks there is room for a file without an end."""
        answer = bytearray()

        def take(piece: bytes) -> None:
            answer.extend(piece[: most - len(answer)])
            if len(answer) == most:
                raise _Enough

        # -c: without the block and inode bitmaps, which nothing here needs
        argv = [self._program, "-c", "-R", request, self._source]
        with contextlib.suppress(_Enough):
            self._runner(argv, limits=_LIMITS, on_stdout=take)
        return bytes(answer)


class _Enough(Exception):  # noqa: N818 - no error
    """No more of an answer is wanted."""


_KINDS: dict[int, Kind] = {0o100000: "file", 0o040000: "folder", 0o120000: "link"}


class _Rule(NamedTuple):
    pattern: str
    action: SealAction
    message: str
    severity: Literal["error", "warning"] = "error"
    kinds: tuple[str, ...] = ("file",)


_RULES = (
    _Rule("/etc/ssh/ssh_host_*_key", "ssh-host-keys", "a host key: who has one clone can pass for all"),
    _Rule("/etc/dropbear/dropbear_*_host_key", "ssh-host-keys", "a host key: who has one clone can pass for all"),
    _Rule("/var/lib/systemd/random-seed", "machine-id", "a seed of randomness that clones would start with"),
    _Rule(
        "/var/lib/systemd/credential.secret", "machine-id", "the secret that this machine encrypts credentials with"
    ),
    _Rule("/var/lib/urandom/random-seed", "machine-id", "a seed of randomness that clones would start with"),
    _Rule("/var/lib/seedrng/seed.*", "machine-id", "a seed of randomness that clones would start with"),
    _Rule("/var/lib/dhcp/*lease*", "dhcp-leases", "a lease: clones would ask for the same address"),
    _Rule("/var/lib/dhclient/*", "dhcp-leases", "a lease: clones would ask for the same address"),
    _Rule("/var/lib/dhcpcd/*.lease*", "dhcp-leases", "a lease: clones would ask for the same address"),
    _Rule("/var/lib/dhcpcd/duid", "dhcp-leases", "the DHCP identity of one machine"),
    _Rule("/var/lib/udhcpc/*", "dhcp-leases", "a lease: clones would ask for the same address"),
    _Rule("/var/lib/NetworkManager/*.lease", "dhcp-leases", "a lease: clones would ask for the same address"),
    _Rule("/var/lib/NetworkManager/secret_key", "dhcp-leases", "what stable addresses are made from"),
    _Rule("/etc/udev/rules.d/70-persistent-net.rules", "dhcp-leases", "names network cards by their addresses"),
    _Rule(
        "/var/lib/cloud/instance",
        "cloud-init",
        "cloud-init takes a clone for this instance",
        kinds=("link", "folder"),
    ),
    _Rule("/var/lib/cloud/instances/*", "cloud-init", "the state of one instance", kinds=("folder",)),
    _Rule("/var/log/cloud-init*.log", "cloud-init", "the log of another machine's start", "warning"),
    _Rule("/var/log/journal/*", "logs", "the journal of another machine", "warning", ("folder",)),
    _Rule("/root/.*_history", "history", "what somebody typed", "warning"),
    _Rule("/home/*/.*_history", "history", "what somebody typed", "warning"),
    _Rule("/var/cache/apt/archives/*.deb", "package-cache", "a package that was installed", "warning"),
    _Rule("/var/lib/apt/lists/*_Packages*", "package-cache", "a list of packages that grows old", "warning"),
    _Rule("/var/cache/apk/*", "package-cache", "a package that was installed", "warning"),
)

_BUILD_KEY = f" {KEY_COMMENT}\n".encode()


def lint_image(image: PathLike, *, format: str | None = None, qemu_img: QemuImg | None = None) -> Lint:
    """What two clones of `image` would share but must not (machine-id, SSH host keys, …), and what a sealed image
    does not need, found in its file systems without booting it. ImageUnreadableError when none of these can be read,
    ProgramError without debugfs, and what `guard` raises."""
    qemu_img = qemu_img or QemuImg()
    path = absolute(image)
    top = guard(path, format=format)[0]
    _debugfs()
    folder = os.path.dirname(path)
    with tempfile.TemporaryDirectory(
        prefix=".imgtool-lint-", dir=folder if os.access(folder, os.W_OK) else None
    ) as scratch:
        raw = path
        if top.format != "raw":
            raw = os.path.join(scratch, "disk.raw")
            qemu_img.convert(path, raw, format=top.format, output_format="raw", cache="unsafe")
        elif "?" in path:  # which debugfs takes for the beginning of its options
            raw = os.path.join(scratch, "disk.raw")
            os.symlink(path, raw)
        return _lint_raw(path, raw)


def _lint_raw(path: str, raw: str) -> Lint:
    found = filesystems(raw)
    systems = tuple(
        System(
            partition=one.number,
            offset=one.offset,
            type=one.type,
            looked_at=one.type == "ext",
        )
        for one in found
    )
    if not any(system.looked_at for system in systems):
        kinds = ", ".join(sorted({system.type for system in systems}))
        what = f"no file system that can be looked at ({kinds})" if kinds else "no file system that imgtool knows"
        raise ImageUnreadableError(
            f"{printable(path)} has {what}",
            hint="ext2, ext3 and ext4 can; for others boot a clone and look inside",
            path=path,
        )
    hazards = [hazard for one in found if one.type == "ext" for hazard in _hazards(raw, one)]
    return Lint(image=path, systems=systems, hazards=tuple(hazards))


def _hazards(raw: str, system: FileSystem) -> Iterator[Hazard]:
    files = Files(raw, system.offset)
    prefix = "" if files.list("/etc") else "/var"
    if prefix and not any(entry.name in ("lib", "log", "cache") for entry in files.list("/")):
        return  # neither a root nor a /var
    if not prefix:
        yield from _machine_id(files)
        yield from _build_key(files)
    for rule in _RULES:
        if not rule.pattern.startswith(prefix):
            continue
        for path, entry in files.find(rule.pattern.removeprefix(prefix)):
            if entry.kind in rule.kinds and (entry.kind != "file" or entry.size > 0):
                yield Hazard(severity=rule.severity, path=f"{prefix}{path}", action=rule.action, message=rule.message)


def _machine_id(files: Files) -> Iterator[Hazard]:
    for place in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        for path, entry in files.find(place):
            content = files.read(path).strip() if entry.kind == "file" and entry.size else b""
            if content not in (b"", b"uninitialized"):
                yield Hazard(
                    severity="error",
                    path=path,
                    action="machine-id",
                    message="clones would have one machine-id, and with it one DHCP identity",
                )


def _build_key(files: Files) -> Iterator[Hazard]:
    for pattern in ("/root/.ssh/authorized_keys", "/home/*/.ssh/authorized_keys"):
        for path, _ in files.find(pattern):
            if _BUILD_KEY in files.read(path) + b"\n":
                yield Hazard(
                    severity="error", path=path, action="cloud-init", message="lets in whoever built the image"
                )


def _debugfs() -> str:
    found = shutil.which("debugfs") or shutil.which("debugfs", path="/usr/sbin:/sbin")
    if found is None:
        raise ProgramError("debugfs was not found", hint="on Debian: apt-get install e2fsprogs")
    return found
