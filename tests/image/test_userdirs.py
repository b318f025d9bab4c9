from __future__ import annotations

import os
from typing import get_args

import platformdirs
import pytest

from imgtool.image.userdirs import Kind, user_dir

KINDS = get_args(Kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("home", ["/somewhere/else", "", None])
def test_they_are_where_platformdirs_has_them(kind: Kind, home: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(f"XDG_{kind.upper()}_HOME", raising=False)
    if home is not None:
        monkeypatch.setenv(f"XDG_{kind.upper()}_HOME", home)
    expected = getattr(platformdirs.PlatformDirs("imgtool", appauthor=False), f"user_{kind}_dir")
    assert user_dir(kind) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_relative_one_is_ignored(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"XDG_{kind.upper()}_HOME", "here")
    assert user_dir(kind).startswith(os.path.expanduser("~/."))
