from __future__ import annotations

from collections.abc import Iterator

import click
import pytest

from imgtool.cli import chain, layers, main, net, overlay, vm
from imgtool.cli.lazy import LazyGroup
from tests.cli.conftest import Imgtool


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("vm shutdown web", "did you mean `imgtool vm stop`?"),
        ("vm destroy web", "did you mean `imgtool vm kill`?"),
        ("vm start web", "did you mean `imgtool boot -d IMAGE`?"),
        ("vm lst", "did you mean `imgtool vm list`?"),
        ("vm frobnicate", "`imgtool vm --help` lists them"),
        ("ps", "did you mean `imgtool vm list`?"),
        ("verify", "did you mean `imgtool chain verify`?"),
        ("clone a b", "did you mean `imgtool overlay new`?"),
        ("show a", "did you mean `imgtool chain show`?"),
        ("rm a", "did you mean `imgtool overlay delete`?"),
        ("stop web", "did you mean `imgtool vm stop`?"),
        ("overlay create a b", "did you mean `imgtool overlay new`?"),
        ("overlay a b", "`imgtool overlay --help` lists them"),
        ("layers rm a", "did you mean `imgtool layers prune`?"),
        ("net rm lab", "did you mean `imgtool net delete`?"),
        ("chain tree", "did you mean `imgtool chain show`?"),
        ("chain new a b", "did you mean `imgtool overlay new`?"),
        ("chain rebase a", "did you mean `imgtool rebase`?"),
        ("vm boot a", "did you mean `imgtool boot`?"),
        ("vm snapshot a", "did you mean `imgtool vm monitor NAME savevm TAG`?"),
    ],
)
def test_a_command_of_another_program_is_answered_with_imgtools_own(imgtool: Imgtool, typed: str, hint: str) -> None:
    done = imgtool(*typed.split(), "--output", "json")
    assert (done.status, done.error["hint"]) == (2, hint)


@pytest.mark.parametrize(
    "elsewhere", [main.ELSEWHERE, vm.ELSEWHERE, overlay.ELSEWHERE, chain.ELSEWHERE, layers.ELSEWHERE, net.ELSEWHERE]
)
def test_what_is_proposed_for_them_are_commands(elsewhere: dict[str, str]) -> None:
    for name, command in elsewhere.items():
        group: click.Command | None = main.cli
        context = click.Context(main.cli, info_name="imgtool")
        for word in command.split()[1:]:
            if isinstance(group, LazyGroup):
                group = group.get_command(context, word)
                assert group is not None, (name, command)
        assert not isinstance(group, LazyGroup), (name, command)


@pytest.mark.parametrize(
    ("typed", "message", "hint"),
    [
        (
            "overlay new -b base z",
            "No such option '-b'.",
            "write `imgtool overlay new [OPTIONS] BASE [OVERLAY]`; `imgtool overlay new --help` shows how it is used",
        ),
        (
            "overlay list",
            "Missing argument 'BASE'.",
            "write `imgtool overlay list [OPTIONS] BASE`; `imgtool overlay list --help` shows how it is used",
        ),
        ("info a --json", "No such option '--json'.", "write `--output json`"),
    ],
)
def test_words_that_do_not_fit_are_answered_with_those_that_do(
    imgtool: Imgtool, typed: str, message: str, hint: str
) -> None:
    done = imgtool(*typed.split(), "--output", "json")
    assert (done.status, done.error["message"], done.error["hint"]) == (2, message, hint)


def commands(group: LazyGroup, context: click.Context) -> Iterator[click.Command]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield command
        if isinstance(command, LazyGroup):
            yield from commands(command, context)


def test_every_command_has_its_help_under_both_names_once() -> None:
    context = click.Context(main.cli, info_name="imgtool")
    everything = [main.cli, *commands(main.cli, context), *commands(main.cli, context)]
    assert len(everything) > 100
    for command in everything:
        names = [name for parameter in command.params for name in parameter.opts]
        assert (names.count("-h"), names.count("--help")) == (1, 1), command.name


@pytest.mark.parametrize("words", ["build lint", "build", "chain show", "vm", ""])
def test_help_is_shown_under_both_names(imgtool: Imgtool, words: str) -> None:
    short, long = (imgtool(*words.split(), name) for name in ("-h", "--help"))
    assert short == long
    assert (short.status, short.stdout.splitlines()[0].split()[:2]) == (0, ["Usage:", "imgtool"])
