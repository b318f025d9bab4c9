"""An error as a JSON object on stderr."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from imgtool.errors import CommandError, ImgtoolError


class ErrorDetails(msgspec.Struct, frozen=True, kw_only=True):
    """What happened, on which file, and what to do next."""

    code: str
    """What kind of error it is; it stays the same in later versions: usage, refused, image-not-found, …"""
    message: str
    """In words; they may change in later versions."""
    hint: str | None
    """What to do next; None where nothing can be said."""
    path: str | None
    """The file it is about, as it is called."""
    command: str | None
    """The program that failed, with its words, for a shell."""
    exit_status: int | None
    """Of that program, or of the step of a build that failed."""
    stderr: str | None
    """Of that program."""


class ErrorDocument(msgspec.Struct, frozen=True):
    """The one object on stderr of a command that fails under `--output json`."""

    error: ErrorDetails
    """What it failed of."""
    warnings: tuple[str, ...] = ()
    """What there was to say before it failed."""


def error_document(error: ImgtoolError, warnings: Sequence[str] = ()) -> ErrorDocument:
    command = error if isinstance(error, CommandError) else None
    return ErrorDocument(
        ErrorDetails(
            code=error.code,
            message=error.message,
            hint=error.hint,
            path=error.path,
            command=command.command if command and command.argv else None,
            exit_status=error.status,
            stderr=command.stderr.decode(errors="replace") if command else None,
        ),
        tuple(warnings),
    )
