"""The files of the host that go into a layer: what of them counts, in an order that is always the same."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import msgspec

from imgtool.build.memory import Memory
from imgtool.build.recipe import Copy
from imgtool.errors import ConfigError
from imgtool.image.names import printable

_REMEMBERED = 1 << 20
"""Smaller files are read faster than looked up."""


Excluded = Callable[[str], bool]
"""Whether a path below the folder that is copied is left out. That of a folder ends in a slash."""


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One file, folder or link below what is copied. Times, owners and the host's paths do not count."""

    path: str
    """Below the folder that is copied; empty for a file that is copied alone."""
    kind: Literal["file", "folder", "link"]
    mode: str
    """Octal permissions. A link has none of its own."""
    sha256: str | None = None
    target: str | None = None


class Found(msgspec.Struct, frozen=True):
    """An entry, and where it lies."""

    entry: Entry
    source: str


def copied(copy: Copy, memory: Memory) -> list[Found]:
    """What is copied, as `files_of` says it, without what is excluded."""
    return files_of(copy.from_, memory, excluded(copy))


def files_of(source: str, memory: Memory, without: Excluded | None = None) -> list[Found]:
    """What `source` is: the file alone, or what a folder holds, sorted by path. A `source` that is a link is
    followed, links inside are links. ConfigError for what cannot be read, or is no file, folder or link."""
    try:
        status = os.stat(source)
        if not stat.S_ISDIR(status.st_mode):
            if without is not None:
                hint = "leave out `exclude` and `exclude-from`"
                raise ConfigError(
                    f"{printable(source)} is a file: nothing in it can be excluded", hint=hint, path=source
                )
            return [_entry(source, "", status, memory)]
        return list(_below(source, "", memory, without))
    except OSError as error:
        place = os.fsdecode(error.filename) if error.filename else source
        raise ConfigError(f"{printable(place)} cannot be copied: {error.strerror}", path=place) from error


def excluded(copy: Copy) -> Excluded | None:
    """What leaves paths out of a copy; None where nothing does. ConfigError for patterns that are none, or a file of
    them that cannot be read."""
    lines: list[str] = []
    for path in copy.exclude_from:
        lines += _patterns_in(path)
    lines += copy.exclude
    if not lines:
        return None
    import pathspec

    try:
        return pathspec.GitIgnoreSpec.from_lines(lines).match_file
    except ValueError as error:
        raise ConfigError(f"exclude: {printable(str(error))}", path=copy.from_) from error


def _patterns_in(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read().splitlines()
    except OSError as error:
        raise ConfigError(f"{printable(path)} cannot be read: {error.strerror}", path=path) from error


def target_of(copy: Copy, files: Sequence[Found]) -> str:
    """Where `files`, which are those of `copy.from_`, go in the guest: a file that goes into a folder keeps its
    name."""
    alone = len(files) == 1 and files[0].entry.path == ""
    return copy.to + os.path.basename(copy.from_) if alone and copy.to.endswith("/") else copy.to


def _below(folder: str, prefix: str, memory: Memory, without: Excluded | None) -> Iterator[Found]:
    for name in sorted(os.listdir(folder), key=os.fsencode):
        source = os.path.join(folder, name)
        path = prefix + name
        status = os.lstat(source)
        is_folder = stat.S_ISDIR(status.st_mode)
        if without is not None and without(f"{path}/" if is_folder else path):
            continue  # with all that is in it, which may be what cannot be read
        yield _entry(source, path, status, memory)
        if is_folder:
            yield from _below(source, path + "/", memory, without)


def _entry(source: str, path: str, status: os.stat_result, memory: Memory) -> Found:
    mode = f"{stat.S_IMODE(status.st_mode):04o}"
    if stat.S_ISLNK(status.st_mode):
        return Found(Entry(path, "link", "0777", target=os.readlink(source)), source)
    if stat.S_ISDIR(status.st_mode):
        return Found(Entry(path, "folder", mode), source)
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{printable(source)} is no file, folder or link, and cannot be copied", path=source)
    return Found(Entry(path, "file", mode, sha256=_sha256(source, status.st_size, memory)), source)


def _sha256(source: str, size: int, memory: Memory) -> str:
    if size >= _REMEMBERED:
        return memory.sha256(source)
    from imgtool.build.memory import file_sha256

    return file_sha256(source)
