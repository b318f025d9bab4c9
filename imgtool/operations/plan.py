"""What an operation is going to do, before it does it: the answer of `--dry-run`."""

from __future__ import annotations

from typing import Literal

import msgspec

Action = Literal["read", "create", "write", "replace", "rename", "delete"]


class Touched(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """One image and what happens to it."""

    path: str
    """The image."""
    action: Action
    """replace: a file made beside it takes its place. rename: it gets the name `to`."""
    bytes: int | None = None
    """How many will be written, where that is known beforehand."""
    to: str | None = None
    """The new path, for `rename`."""


class Plan(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The steps of an operation, in order. A command names the image it is for; where imgtool has it work beside that
    image and renames, it is run with that other name."""

    commands: tuple[tuple[str, ...], ...]
    """The argv of every program that will be run."""
    images: tuple[Touched, ...]
    """Every image that is looked at or changed."""
    notes: tuple[str, ...] = ()
    """What is good to know before saying yes."""
    total: int | None = None
    """Bytes that are put away, brought back, deleted, lost or sent in all, where the operation is there for that."""
