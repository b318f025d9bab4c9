"""`imgtool vm monitor` and `vm qmp`: whatever QEMU can do that imgtool has no command for."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import click

from imgtool.cli.context import Context, output_option, pass_context
from imgtool.cli.vm import name_argument
from imgtool.errors import RefusedError, UsageError
from imgtool.image.names import printable

timeout_option = click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=30,
    metavar="SECONDS",
    help="How long QEMU may take.  [default: 30]",
)


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool vm monitor web info block\n"
    "  imgtool vm monitor web savevm before-upgrade --timeout 300\n"
    "  imgtool vm monitor web            # commands from the terminal, until Ctrl-D",
    context_settings={"ignore_unknown_options": True},
)
@name_argument
@click.argument("command", nargs=-1, metavar="[COMMAND…]")
@timeout_option
@output_option()
@pass_context
def monitor(context: Context, /, name: str, command: tuple[str, ...], timeout: float) -> None:
    """Give COMMAND to QEMU's monitor of NAME and print what it says. Without COMMAND, each line of stdin is one.

    `help` lists its commands. This monitor is for people: it says in words when something was wrong, with exit
    status 0. `vm qmp` is for programs.
    """
    from imgtool.cli.output import emit, report
    from imgtool.image.names import printable_lines
    from imgtool.machine import control
    from imgtool.machine.runtime import find

    one, _ = find(name)
    if command:
        line = " ".join(command)
        said = control.tell(one, line, seconds=timeout)
        lines = [printable_lines(said)] if said else []
        if lines or context.json:
            emit(context, control.Said(name=name, command=line, said=said), lines)
        return
    if context.json:
        raise UsageError("--output json is for one COMMAND", hint="write it behind NAME")
    for line in _typed(f"({name}) "):
        try:
            said = control.tell(one, line, seconds=timeout)
        except RefusedError as error:
            if not sys.stdin.isatty():
                raise  # what follows in a script may rest on it
            report(context, error)
            continue
        if said:
            click.echo(printable_lines(said))


def _typed(prompt: str) -> Iterator[str]:
    """The lines of stdin that are not empty; at a terminal with a prompt, and what was typed before by the arrows."""
    if sys.stdin.isatty():
        import contextlib

        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - `input` uses it
    while True:
        try:
            line = input(prompt if sys.stdin.isatty() else "").strip()
        except EOFError:
            if sys.stdin.isatty():
                click.echo()
            return
        if line:
            yield line


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool vm qmp web query-block\n"
    "  imgtool vm qmp web device_del id=nic0\n"
    '  imgtool vm qmp web object-add \'{"qom-type": "iothread", "id": "io9"}\'',
)
@name_argument
@click.argument("command", metavar="COMMAND")
@click.argument("arguments", nargs=-1, metavar="[JSON|KEY=VALUE…]")
@timeout_option
@output_option()
@pass_context
def qmp(context: Context, /, name: str, command: str, arguments: tuple[str, ...], timeout: float) -> None:
    """Send the QMP COMMAND to the QEMU of NAME and print what it returns, as JSON.

    Its arguments are one JSON object, or KEY=VALUE each, where a VALUE that is JSON counts as such.
    """
    from imgtool.cli.output import emit, to_json
    from imgtool.machine import control
    from imgtool.machine.runtime import find

    answer = control.query(find(name)[0], command, _arguments(arguments), seconds=timeout)
    emit(context, control.Answered(name=name, command=command, answer=answer), [to_json(answer).decode()])


def _arguments(words: tuple[str, ...]) -> dict[str, Any]:
    if len(words) == 1 and words[0].startswith("{"):
        return dict(_json(words[0]))
    found: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"{printable(word)!r} is no argument", hint="write KEY=VALUE, or all in one JSON object")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(f"the arguments are no JSON object: {error}", hint="write KEY=VALUE for each") from None
