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
from msgspec.structs import replace

from imgtool.image.links import PROTOCOLS
from imgtool.image.names import absolute, printable
from imgtool.image.policy import Policy
from imgtool.machine.options.text import suggestion
from imgtool.machine.profile import Wrong, read_text, reading, to_struct
from imgtool.machine.values.base import Config, Count, Size
from imgtool.qemu.process import Limits

Seconds = Annotated[float, Meta(gt=0)]


class PolicySettings(Config, frozen=True, kw_only=True):
    """What images may refer to, beside what lies in their own directory: see `imgtool.image.policy`."""

    directories: tuple[str, ...] = ()
    """Absolute. In the file `~` is the home directory, and a relative one begins where the file lies."""
    protocols: tuple[str, ...] = ()
    guessed_formats: bool = False

    def policy(self) -> Policy:
        return Policy(
            directories=self.directories,
            protocols=frozenset(self.protocols),
            guessed_formats=self.guessed_formats,
            own_references=True,
        )


class LimitSettings(Config, frozen=True, kw_only=True):
    """Bounds on qemu-img; what is left out stays as it is."""

    memory: Size | None = None
    cpu_seconds: Count | None = None
    seconds: Seconds | None = None
    max_size: Size | None = None

    def on(self, limits: Limits) -> Limits:
        """`limits`, with those of the configuration in their places."""
        return Limits(
            seconds=self.seconds or limits.seconds,
            cpu_seconds=self.cpu_seconds or limits.cpu_seconds,
            address_space=self.memory or limits.address_space,
        )


class Settings(Config, frozen=True, kw_only=True):
    policy: PolicySettings = PolicySettings()
    limits: LimitSettings = LimitSettings()


def read_settings(path: str) -> Settings:
    """The configuration at `path`. ConfigError, with the line, when something in it is wrong."""
    with reading(read_text(path, "a configuration"), path) as document:
        settings = to_struct(document, Settings)
        for index, name in enumerate(settings.policy.protocols):
            if name not in PROTOCOLS:
                raise Wrong(
                    ("policy", "protocols", index),
                    f"there is no protocol {printable(name)!r}",
                    suggestion(name, sorted(PROTOCOLS)),
                )
    folder = os.path.dirname(absolute(path))
    directories = tuple(os.path.join(folder, os.path.expanduser(name)) for name in settings.policy.directories)
    return replace(settings, policy=replace(settings.policy, directories=directories))
