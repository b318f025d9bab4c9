"""Files into the guest and out of it, whole trees too, through an executor that knows single files."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tarfile
import time
from collections.abc import Sequence
from typing import NamedTuple

from imgtool.build.executor import Executor, ExecutorError, keeping
from imgtool.build.inputs import Found, target_of
from imgtool.build.recipe import Copy
from imgtool.errors import ConfigError
from imgtool.image.names import printable, printable_lines

_IN_MEMORY = 16 << 20
"""Larger archives are staged on the guest's disk: /run is small."""

_LONGEST_LIST = 64 << 20
"""Bytes of the names in a folder that is fetched."""

_UNPACK = b"""\
trap 'rm -f -- "$IMGTOOL_ARCHIVE"' EXIT
if [ -n "$IMGTOOL_USER" ]; then id -u "$IMGTOOL_USER" >/dev/null; fi
if [ -n "$IMGTOOL_GROUP" ]; then
    grep -q "^$IMGTOOL_GROUP:" /etc/group || { echo "there is no group $IMGTOOL_GROUP" >&2; exit 1; }
fi
mkdir -p -- "$IMGTOOL_TO"
tar -x -p -f "$IMGTOOL_ARCHIVE" -C "$IMGTOOL_TO"
"""

_LIST = b"""\
if [ -d "$IMGTOOL_FROM" ]; then
    cd "$IMGTOOL_FROM"
    printf 'folder\\000'
    find . -type f -print0
elif [ -f "$IMGTOOL_FROM" ]; then
    printf 'file\\000'
else
    echo "there is no file or folder $IMGTOOL_FROM" >&2
    exit 1
fi
"""


class Owner(NamedTuple):
    """An owner as tar names it: by name, or by number where a name is one."""

    user: str
    group: str

    @classmethod
    def of(cls, text: str | None) -> Owner:
        user, _, group = (text or "root:root").partition(":")
        return cls(user, group or "root")


def put(executor: Executor, copy: Copy, files: Sequence[Found], scratch: str) -> None:
    """Copies `files`, which are those of `copy.from_`, into the guest. `scratch` is a folder of the host to work in.
    ExecutorError when the guest does not take them."""
    if len(files) == 1 and files[0].entry.path == "":
        executor.put(files[0].source, target_of(copy, files), mode=_mode(copy, files[0]), owner=copy.owner)
        return
    archive = os.path.join(scratch, f"copy-{secrets.token_hex(4)}.tar")
    try:
        pack(archive, copy, files)
        staged = f"{'/run' if os.path.getsize(archive) <= _IN_MEMORY else '/var/tmp'}/{os.path.basename(archive)}"
        executor.put(archive, staged, mode=0o600)
    finally:
        if os.path.exists(archive):
            os.unlink(archive)
    owner = Owner.of(copy.owner)
    said = bytearray()
    status = executor.run(
        _UNPACK,
        env={
            "IMGTOOL_ARCHIVE": staged,
            "IMGTOOL_TO": copy.to,
            "IMGTOOL_USER": "" if owner.user.isdigit() else owner.user,
            "IMGTOOL_GROUP": "" if owner.group.isdigit() else owner.group,
        },
        timeout=600,
        on_output=keeping(said),
    )
    if status != 0:
        words = printable_lines(said.decode(errors="replace"))
        raise ExecutorError(f"{printable(copy.from_)} could not be unpacked in the guest: {words}")


def pack(archive: str, copy: Copy, files: Sequence[Found]) -> None:
    """A tar (GNU's, which every tar reads) of `files` with the owner and the modes that `copy` gives them."""
    owner = Owner.of(copy.owner)
    now = int(time.time())
    fd = os.open(archive, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with (
        os.fdopen(fd, "wb") as target,
        tarfile.open(
            fileobj=target, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape"
        ) as tar,
    ):
        for found in files:
            entry = found.entry
            info = tarfile.TarInfo(entry.path)
            info.mtime = now
            info.mode = _mode(copy, found)
            _own(info, owner)
            if entry.kind == "folder":
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            elif entry.kind == "link":
                info.type = tarfile.SYMTYPE
                info.linkname = entry.target or ""
                tar.addfile(info)
            else:
                with open(found.source, "rb") as file:
                    info.size = os.fstat(file.fileno()).st_size
                    tar.addfile(info, file)


def _own(info: tarfile.TarInfo, owner: Owner) -> None:
    if owner.user.isdigit():
        info.uid = int(owner.user)
    else:
        info.uname = owner.user
    if owner.group.isdigit():
        info.gid = int(owner.group)
    else:
        info.gname = owner.group


def _mode(copy: Copy, found: Found) -> int:
    if found.entry.kind == "link":
        return 0o777
    if copy.mode is None:
        return int(found.entry.mode, 8)
    mode = int(copy.mode, 8)
    if found.entry.kind == "folder":
        return mode | (mode & 0o444) >> 2  # who may read what is in it may look for it
    return mode


def fetch(executor: Executor, source: str, target: str) -> None:
    """The guest's file or folder `source` becomes the host's `target`, which does not exist. Of a folder its regular
    files. ExecutorError when there is none."""
    said = bytearray()
    listed = keeping(said, _LONGEST_LIST)
    status = executor.run(_LIST, env={"IMGTOOL_FROM": source}, timeout=600, on_output=listed)
    if len(said) == _LONGEST_LIST:
        raise ExecutorError(f"{printable(source)} holds too many files to be fetched", hint="make an archive of it")
    if status != 0:
        words = printable_lines(said.decode(errors="replace"))
        raise ExecutorError(f"{printable(source)} could not be fetched: {words}")
    kind, *names = bytes(said).split(b"\0")
    if kind.endswith(b"file"):
        executor.get(source, target)
        return
    os.mkdir(target)
    for name in (os.fsdecode(name).removeprefix("./") for name in names if name):
        if name.startswith("/") or ".." in name.split("/"):
            raise ExecutorError(
                f"the guest names a file {printable(name)}, which lies nowhere in {printable(source)}"
            )
        place = os.path.join(target, name)
        try:
            os.makedirs(os.path.dirname(place), exist_ok=True)
        except OSError as error:
            raise ExecutorError(f"{printable(name)} cannot be made here: {error.strerror}", path=place) from error
        executor.get(f"{source.rstrip('/')}/{name}", place)


def deliver(kept: str, target: str, name: str) -> None:
    """Puts what was fetched into `kept` where the recipe wants it: `target`, or inside it when that is a folder and a
    file was fetched (`name`). A file there is replaced when it differs. ConfigError when it cannot be written."""
    try:
        if os.path.isdir(kept):
            for folder, _, names in os.walk(kept):
                below = os.path.join(target, os.path.relpath(folder, kept))
                os.makedirs(below, exist_ok=True)
                for one in names:
                    _deliver_file(os.path.join(folder, one), os.path.join(below, one))
            return
        os.makedirs(os.path.dirname(target), exist_ok=True)
        _deliver_file(kept, os.path.join(target, name) if os.path.isdir(target) else target)
    except OSError as error:
        raise ConfigError(f"{printable(target)} cannot be written: {error.strerror}", path=target) from error


def _deliver_file(source: str, target: str) -> None:
    import filecmp

    if os.path.isfile(target) and filecmp.cmp(source, target, shallow=False):
        return
    draft = os.path.join(os.path.dirname(target), f".imgtool-{secrets.token_hex(6)}")
    try:
        shutil.copyfile(source, draft)
        os.replace(draft, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise
