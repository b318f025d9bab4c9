"""Where the user's configuration is. Apart from what reads it: most users have none."""

from __future__ import annotations

import os

from imgtool.errors import ConfigError
from imgtool.image.names import absolute, printable
from imgtool.image.userdirs import user_dir


def config_path() -> str | None:
    """Where the configuration is; None where there is none. ConfigError when IMGTOOL_CONFIG names no file."""
    given = os.environ.get("IMGTOOL_CONFIG")
    if given is not None:
        if given and not os.path.exists(given):
            raise ConfigError(f"IMGTOOL_CONFIG names {printable(given)}, which does not exist", path=absolute(given))
        return given or None
    path = os.path.join(user_dir("config"), "config.toml")
    return path if os.path.exists(path) else None
