"""A click group whose commands are imported when they are called, and not before."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from imgtool.errors import UsageError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class Entry(NamedTuple):
    where: str
    """`module:attribute` of the click command."""
    help: str
    """One line, shown by the group's --help without importing the command."""


Sections = Mapping[str, Mapping[str, Entry]]


_HELP = "_help"


def add_help(command: click.Command) -> None:
    """Gives `command` its --help, once. click would look for translations of that option's one line, which takes as
    long as a twentieth of `import click`, whether or not the option is used."""
    if not any(parameter.name == _HELP for parameter in command.params):
        command.params.append(
            click.Option(
                ["-h", "--help", _HELP],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_show_help,
                help="Show this message and exit.",
            )
        )


def _show_help(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from imgtool.cli.help import help_of

        click.echo(help_of(ctx), color=ctx.color)
        ctx.exit()


class Sectioned(click.Command):
    """A command with so many options that --help shows them in sections (title → names of options); what is in none
    stands before them."""

    sections: Mapping[str, Sequence[str]] = MappingProxyType({})


class LazyGroup(click.Group):
    """`sections`: title → command name → Entry, in the order they are shown. `elsewhere`: what other programs call
    their commands → the whole of imgtool's own."""

    def __init__(
        self, *args: Any, sections: Sections, elsewhere: Mapping[str, str] = MappingProxyType({}), **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections
        self._elsewhere = elsewhere
        self._entries = {name: entry for section in sections.values() for name, entry in section.items()}
        add_help(self)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self._entries.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.where.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        add_help(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self._entries and not name.startswith("-"):
            raise UsageError(f"there is no command {name!r} in `{ctx.command_path}`", hint=self._suggest(ctx, name))
        return super().resolve_command(ctx, args)

    def _suggest(self, ctx: click.Context, name: str) -> str:
        if name in self._elsewhere:
            return f"did you mean `{self._elsewhere[name]}`?"
        root = ctx.find_root()
        if isinstance(root.command, click.Group) and name in root.command.list_commands(root):
            return f"did you mean `{root.command_path} {name}`?"
        import difflib

        near = difflib.get_close_matches(name, self._entries, n=1)
        return f"did you mean `{ctx.command_path} {near[0]}`?" if near else f"`{ctx.command_path} --help` lists them"

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """As click's, without importing the commands to ask them for their help."""
        from click.shell_completion import CompletionItem

        names = [
            CompletionItem(name, help=entry.help)
            for name, entry in self._entries.items()
            if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_paragraph()
        formatter.write_text(f"`{ctx.command_path} COMMAND --help` explains a command and shows examples.")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, section in self.sections.items():
            with formatter.section(title):
                formatter.write_dl([(name, entry.help) for name, entry in section.items()])
