"""How --help shows the options of a command."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import click
from click.testing import CliRunner

from imgtool.cli.boot import boot
from imgtool.cli.boot_options import SECTIONS
from imgtool.cli.main import cli
from tests.cli.conftest import Imgtool


def sections(imgtool: Imgtool, *command: str) -> dict[str, list[str]]:
    """Title → the long names of the options beneath it."""
    found: dict[str, list[str]] = {}
    names: list[str] = []  # of what stands before the first section
    for line in imgtool(*command, "--help", COLUMNS="80").stdout.splitlines():
        if re.fullmatch(r"[A-Z][\w -]*:", line):
            names = found.setdefault(line.removesuffix(":"), [])
        elif match := re.match(r"  (?:-\w, )?(--[\w-]+)", line):
            names.append(match[1])
    return found


def test_what_many_commands_have_stands_behind_a_command_s_own_options(imgtool: Imgtool) -> None:
    assert sections(imgtool, "overlay", "reset") == {
        "Options": ["--store", "--force"],
        "Common options": ["--dry-run", "--quiet", "--output", "--trust", "--help"],
    }


def test_the_time_limit_of_qemu_img_stands_with_the_other_limits_and_one_s_own_before_them(imgtool: Imgtool) -> None:
    limits = ["--output", "--trust", "--object", "--timeout", "--limit-cpu", "--limit-memory", "--help"]
    assert sections(imgtool, "info")["Common options"] == limits
    assert sections(imgtool, "vm", "wait") == {
        "Options": ["--for", "--timeout"],
        "Common options": ["--output", "--help"],
    }


def test_the_options_of_boot_are_in_sections_each_once(imgtool: Imgtool) -> None:
    shown = sections(imgtool, "boot")
    assert list(shown) == ["Options", *SECTIONS, "Common options"]
    assert shown["Network"] == ["--network", "--nic-model"]
    assert shown["Options"][:2] == ["--format", "--profile"]
    times = Counter(name for names in shown.values() for name in names)
    assert set(times.values()) == {1}
    assert set(times) == {"--help", *(param.opts[-1] for param in boot.params if param.param_type_name == "option")}


def test_a_group_lists_its_commands(imgtool: Imgtool) -> None:
    said = imgtool("chain", "--help").stdout
    assert "Options:\n  -h, --help  Show this message and exit.\n\nLooking:\n  show " in said


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    here = click.Context(group)
    for name in group.list_commands(here):
        command = group.get_command(here, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


def test_what_is_no_example_fits_a_terminal_of_80_columns_and_no_name_is_broken() -> None:
    wide = []
    broken = []
    for words in commands(cli):
        text = CliRunner().invoke(cli, [*words, "--help"], terminal_width=80).stdout
        body, _, examples = text.partition("Example")
        prose = [line for line in examples.splitlines() if not line.startswith("    ")]
        wide += [(*words, line) for line in (*body.splitlines(), *prose) if len(line) > 80]
        broken += [(*words, line) for line in text.splitlines() if re.search(r"\w-$", line)]
    assert wide == []
    assert broken == []  # half of `server-key.pem` is no name
