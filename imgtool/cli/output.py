"""Writing answers: one JSON document, or text for people, on stdout; everything else on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import click

from imgtool.cli.context import Context, want_color
from imgtool.errors import CommandError, ImgtoolError
from imgtool.image.names import harmless, printable

_WARNING = "warning"


def emit(context: Context, value: Any, human: Iterable[str]) -> None:
    """The answer of a command: `value` as one JSON document, or the lines of `human` (not touched for JSON)."""
    if context.json:
        click.echo(to_json(value))
    else:
        emit_lines(context, human)


def emit_lines(context: Context, lines: Iterable[str]) -> None:
    color = want_color(context, sys.stdout)
    # a terminal that cannot show a character sees its escape
    encoding = sys.stdout.encoding or "ascii"
    click.echo("\n".join(lines).encode(encoding, "backslashreplace").decode(encoding), color=color)


def to_json(value: Any) -> bytes:
    """`value` (structs and builtins) as one indented JSON document. A name that is not UTF-8 keeps its bytes as the
    lone surrogates of Python's surrogateescape, written `\\udcXX`, so that `os.fsencode` of what Python's `json`
    reads back is the name."""
    import msgspec

    try:
        return msgspec.json.format(msgspec.json.encode(value), indent=2)
    except UnicodeEncodeError:
        import json

        return json.dumps(msgspec.to_builtins(value), indent=2).encode()


def remark(context: Context, text: str, *, label: str = "note") -> None:
    """Something a person may want to know, on stderr; not with `-q` and not in place of an answer."""
    if not context.quiet:
        _tell(context, label, text)


def warn(context: Context, text: str) -> None:
    _tell(context, _WARNING, text)


def _tell(context: Context, label: str, text: str) -> None:
    if context.json:
        context.held.append((label, text))
    else:
        _write(context, label, text)


def _write(context: Context, label: str, text: str) -> None:
    shown = click.style(label, fg="yellow") if label == _WARNING else label
    click.echo(f"imgtool: {shown}: {harmless(text)}", err=True, color=want_color(context, sys.stderr))


def tell_held(context: Context) -> None:
    """What waited for a command to end without an error."""
    held, context.held = context.held, []
    for label, text in held:
        _write(context, label, text)


def report(context: Context, error: ImgtoolError) -> None:
    """`error` on stderr: what happened and what to do next, or the same as a JSON object."""
    if context.json:
        from imgtool.cli.error_document import error_document

        warnings = [text for label, text in context.held if label == _WARNING]
        context.held = []
        click.echo(to_json(error_document(error, warnings)), err=True)
        return
    color = want_color(context, sys.stderr)
    text = harmless(_located(error))
    click.echo(f"imgtool: {click.style('error', fg='red', bold=True)}: {text}", err=True, color=color)
    if error.hint:
        click.echo(f"{click.style('hint', fg='cyan')}: {harmless(error.hint)}", err=True, color=color)
    if isinstance(error, CommandError) and error.argv:
        click.echo(f"{click.style('command', dim=True)}: {printable(error.command)}", err=True, color=color)


def _located(error: ImgtoolError) -> str:
    if error.path is None:
        return error.message
    name = printable(error.path)
    return error.message if name in error.message else f"{name}: {error.message}"
