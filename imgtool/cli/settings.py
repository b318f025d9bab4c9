"""The user's configuration, `~/.config/imgtool/config.toml` or the file that IMGTOOL_CONFIG names:

    [policy]
    directories = ["/var/lib/libvirt/images"]   # images may refer to what lies there and below
    protocols = ["nbd"]                         # … and by these protocols
    guessed-formats = false

    [limits]                                    # of qemu-img
    memory = "2G"                               # while it only reads
    cpu-seconds = 30                            # for what is quick: info, measure, create
    seconds = 60
    max-size = "100G"                           # of what convert writes

Read strictly, when it is needed: an unknown key is an error.
"""

from __future__ import annotations

import os
from typing import Annotated

from msgspec import Meta

from imgtool.errors import ConfigError
from imgtool.image.names import absolute, printable
from imgtool.image.userdirs import user_dir
from imgtool.machine.values.base import Config, Count, Size

Seconds = Annotated[float, Meta(gt=0)]


class PolicySettings(Config, frozen=True, kw_only=True):
    """What images may refer to, beside what lies in their own directory: see `imgtool.image.policy`."""

    directories: tuple[str, ...] = ()
    """`~` is the home directory; a relative one begins where the configuration lies."""
    protocols: tuple[str, ...] = ()
    guessed_formats: bool = False


class LimitSettings(Config, frozen=True, kw_only=True):
    """Bounds on qemu-img; what is left out stays as it is."""

    memory: Size | None = None
    cpu_seconds: Count | None = None
    seconds: Seconds | None = None
    max_size: Size | None = None


class Settings(Config, frozen=True, kw_only=True):
    policy: PolicySettings = PolicySettings()
    limits: LimitSettings = LimitSettings()


def config_path() -> str | None:
    """Where the configuration is; None where there is none. ConfigError when IMGTOOL_CONFIG names no file."""
    given = os.environ.get("IMGTOOL_CONFIG")
    if given is not None:
        if given and not os.path.exists(given):
            raise ConfigError(f"IMGTOOL_CONFIG names {printable(given)}, which does not exist", path=absolute(given))
        return given or None
    path = os.path.join(user_dir("config"), "config.toml")
    return path if os.path.exists(path) else None


def read_settings() -> Settings:
    """The user's configuration. ConfigError, with the line, when something in it is wrong."""
    path = config_path()
    if path is None:
        return Settings()
    from imgtool.image.links import PROTOCOLS
    from imgtool.machine.options.text import suggestion
    from imgtool.machine.profile import Wrong, read_text, reading, to_struct

    with reading(read_text(path, "a configuration"), path) as document:
        settings = to_struct(document, Settings)
        for index, name in enumerate(settings.policy.protocols):
            if name not in PROTOCOLS:
                raise Wrong(
                    ("policy", "protocols", index),
                    f"there is no protocol {printable(name)!r}",
                    suggestion(name, sorted(PROTOCOLS)),
                )
    return settings


def directories(settings: Settings) -> tuple[str, ...]:
    """The trusted directories of a configuration, absolute."""
    folder = os.path.dirname(absolute(config_path() or "."))
    return tuple(os.path.join(folder, os.path.expanduser(name)) for name in settings.policy.directories)
