"""What --help shows: a command's own options first, those that many commands have last."""

from __future__ import annotations

from collections.abc import Iterable

import click

from imgtool.cli.lazy import Sectioned

SHARED = ("dry_run", "progress", "quiet", "output", "trust", "objects")
"""Options of many commands, in the order in which they are shown."""

LIMITS = ("timeout", "limit_cpu", "limit_memory")
"""What commands that start qemu-img have together; of others `--timeout` is their own."""


_HYPHEN = "\N{NON-BREAKING HYPHEN}"


class _Formatter(click.HelpFormatter):
    """click's, which breaks lines at spaces only: half of `server-key.pem` is no name."""

    def write_text(self, text: str) -> None:
        super().write_text(text.replace("-", _HYPHEN))

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        super().write_dl([(first, second.replace("-", _HYPHEN)) for first, second in rows], col_max, col_spacing)

    def write(self, string: str) -> None:
        super().write(string.replace(_HYPHEN, "-"))


def help_of(ctx: click.Context) -> str:
    """The whole text for the command of `ctx`."""
    command = ctx.command
    formatter = _Formatter(width=ctx.terminal_width, max_width=ctx.max_content_width)
    if isinstance(command, click.Group):
        command.format_help(ctx, formatter)
    else:
        command.format_usage(ctx, formatter)
        command.format_help_text(ctx, formatter)
        _write_options(ctx, formatter)
        command.format_epilog(ctx, formatter)
    return formatter.getvalue().rstrip("\n")


def _write_options(ctx: click.Context, formatter: click.HelpFormatter) -> None:
    rows = {
        str(option.name): row
        for option in ctx.command.get_params(ctx)
        if isinstance(option, click.Option) and (row := option.get_help_record(ctx)) is not None
    }
    sections = ctx.command.sections if isinstance(ctx.command, Sectioned) else {}
    shared = [*SHARED, *(LIMITS if LIMITS[-1] in rows else ()), "_help"]
    grouped = {name for names in (*sections.values(), shared) for name in names}
    own = [name for name in rows if name not in grouped]
    for title, names in {"Options": own, **sections, "Common options": shared}.items():
        shown = [rows[name] for name in names if name in rows]
        if shown:
            with formatter.section(title):
                formatter.write_dl(shown)
