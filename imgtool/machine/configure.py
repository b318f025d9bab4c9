"""A Machine from an image and settings as a person has them: by QEMU's names, as values, tables or option strings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from imgtool.errors import UsageError
from imgtool.image.names import PathLike, absolute, printable
from imgtool.machine.config import Machine
from imgtool.machine.options.fields import kinds
from imgtool.machine.options.paths import with_absolute_paths
from imgtool.machine.options.text import suggestion
from imgtool.machine.options.words import from_words, merge, placed, with_first_disk
from imgtool.machine.profile import read_profile, read_settings


def configure(
    image: PathLike | None = None, *, format: str | None = None, profile: PathLike | None = None, **settings: Any
) -> Machine:
    """The machine whose first disk (virtio) is `image`. `settings` are named as in a profile, with `_` for `-`.

        configure("web.qcow2", memory="2G", smp="4,maxcpus=8", network=["user,hostfwd=tcp::2222-:22"], agent=True)
        configure("web.qcow2", profile="vm.toml", drive=[{"file": "data.qcow2", "if": "virtio"}])

    `format` is that of `image`; without it, its header decides. `profile` is the path of a TOML file, which the
    `settings` override or extend as the options of `boot` do: `imgtool schema profile` lists them all. A size is text
    in QEMU's notation, or a number in QEMU's own unit: MiB for `memory`, bytes elsewhere. A setting that is None is
    not given. Where text would be read as an option string, a file name is a pathlib.Path:
    `drive=[Path("a,b.qcow2")]`. File names are relative to the current directory, those in the profile to its own.

    UsageError for a setting that is unknown or wrong, ConfigError, with the line, for a profile that is wrong.
    Nothing is looked at but the profile: `boot` finds out whether the machine can be started.
    """
    words = {}
    for name, value in ((name.replace("_", "-"), value) for name, value in settings.items()):
        if name not in kinds(Machine):
            raise _unknown(name)
        if value is not None:
            words[name] = _plain(_table(name, value))
    if image is None and format is not None:
        raise UsageError("a format without an image")
    first = from_words({} if image is None else with_first_disk({}, os.fsdecode(image), format))
    given = read_settings(words if profile is None else merge(read_profile(absolute(profile)), words))
    machine = with_absolute_paths(given, os.getcwd())
    return replace(machine, drives=(*first.drives, *machine.drives))


def _unknown(name: str) -> UsageError:
    table, _, key = (placed(name) or "").partition(".")
    hint = suggestion(name, kinds(Machine))
    if table:
        hint = f"write {table}={{{key!r}: …}}" if key else f"did you mean {table}?"
    return UsageError(f"no machine has the setting {printable(name)}", hint=hint)


_FILES = {"drive": "file", "share": "path", "hugepages": "path"}
"""Settings that are option strings as text: table → its key for a path that is given as such."""


def _table(name: str, value: Any) -> Any:
    """`value` with the paths that stand for a whole table as that table: a comma in a path is no option."""
    if name in _FILES and isinstance(value, bytes | os.PathLike):
        return {_FILES[name]: value}
    return [_table(name, item) for item in value] if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    """`value` with the paths in it as text."""
    if isinstance(value, bytes | os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
