"""The examples of every `--help` and of the README, parsed as their command would parse them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click

from imgtool.cli.context import Context
from imgtool.cli.main import cli
from imgtool.errors import ImgtoolError

README = Path(__file__).parents[2] / "README.md"


def commands(command: click.Command, context: click.Context) -> Iterator[click.Command]:
    yield command
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from commands(below, click.Context(below, info_name=name, parent=context))


def examples() -> Iterator[str]:
    """Each call of imgtool in an example, without the rest of its line."""
    top = click.Context(cli, info_name="imgtool", obj=Context())
    lines = [line for command in commands(cli, top) for line in (command.epilog or "").splitlines()]
    for block in re.findall(r"^```\w+\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL):
        lines += [f"  {line.removeprefix('$ ')}" for line in block.splitlines()]
    for line in dict.fromkeys(lines):
        found = re.match(r"  (?:\w+=\$\()?(?:[A-Z_]+=\S+ )?(?:sudo )?imgtool (.*)", line)
        if found is not None:
            yield re.split(r" (?:\|\|?|&&?|>)(?: |$)|; |\)$", found[1])[0]


def parse(example: str) -> None:
    words = shlex.split(example, comments=True)
    command: click.Command = cli
    context = click.Context(cli, info_name="imgtool", obj=Context())
    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        assert name is not None
        command = found
        if not isinstance(command, click.Group):
            command.make_context(name, words, parent=context)


def test_every_example_is_a_call_that_its_command_takes() -> None:
    wrong = {}
    found = list(examples())
    for example in found:
        try:
            parse(example)
        except (click.ClickException, ImgtoolError, ValueError) as error:
            wrong[example] = str(error)
    assert wrong == {}
    assert len(found) > 150


def test_every_command_shows_an_example() -> None:
    top = click.Context(cli, info_name="imgtool", obj=Context())
    leaves = [command for command in commands(cli, top) if not isinstance(command, click.Group)]
    assert [command.name for command in leaves if "imgtool " not in (command.epilog or "")] == []
