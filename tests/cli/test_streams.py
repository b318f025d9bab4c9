"""Standard streams that are closed, full, or left by their reader."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

from tests.cli.conftest import Imgtool
from tests.cli.test_completion import seal_layers
from tests.conftest import Images

CLOSED = [numbers for count in (1, 2, 3) for numbers in combinations((0, 1, 2), count)]


def close(numbers: tuple[int, ...]) -> None:
    for number in numbers:
        os.close(number)


@pytest.mark.parametrize("numbers", CLOSED, ids=str)
def test_closed_streams_disturb_nothing(images: Images, numbers: tuple[int, ...]) -> None:
    base = images.base("base.qcow2")
    before = base.read_bytes()
    commands: list[list[str | Path]] = [["info", base], ["convert", "-O", "raw", base, images / "disk.img"]]
    for words in commands:
        done = subprocess.run(
            [sys.executable, "-m", "imgtool", *words],
            preexec_fn=lambda: close(numbers),
            capture_output=True,
            timeout=20,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert bool(done.stdout) == (1 not in numbers)
    assert base.read_bytes() == before
    assert (images / "disk.img").read_bytes() == bytes(1 << 20)


def test_a_full_disk_behind_stdout_is_an_error(images: Images) -> None:
    base = images.base("base.qcow2")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    for words in (["info", base], ["--version"], ["chain", "show", base]):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "imgtool", *words], env=env, stdout=full, stderr=subprocess.PIPE, check=False
            )
        assert (done.returncode, done.stderr) == (1, b"imgtool: error: No space left on device\n")


def test_a_reader_that_leaves_is_no_error_to_talk_about(images: Images) -> None:
    base = images.base("base.qcow2")
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "imgtool", "info", base], stdout=writing, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("words", [[], ["overlay"], ["chain"]], ids=["imgtool", "overlay", "chain"])
def test_without_a_command_the_help_is_shown_as_it_is(imgtool: Imgtool, words: list[str]) -> None:
    bare, asked = imgtool(*words), imgtool(*words, "--help")
    assert (bare.status, bare.stdout) == (2, "")
    assert bare.stderr == asked.stdout


def test_help_is_shown_where_the_locale_lacks_its_characters(imgtool: Imgtool) -> None:
    for encoding in ("latin-1", "ascii", "ascii:strict"):
        done = imgtool("convert", "--help", PYTHONIOENCODING=encoding)
        assert (done.status, done.stderr) == (0, "")
        assert "NAME=VALUE," in done.stdout
    assert "NAME=VALUE,\\u2026" in imgtool("convert", "--help", PYTHONIOENCODING="latin-1").stdout


@pytest.mark.parametrize(("terminal", "coloured"), [("xterm", True), ("dumb", False)])
def test_a_terminal_that_knows_no_colours_gets_none(images: Images, terminal: str, coloured: bool) -> None:
    env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": terminal}
    master, slave = os.openpty()
    try:
        subprocess.run(
            [sys.executable, "-m", "imgtool", "info", images / "gone"],
            env=env,
            stdout=slave,
            stderr=slave,
            check=False,
        )
        told = os.read(master, 1 << 16)
    finally:
        os.close(slave)
        os.close(master)
    assert b"does not exist" in told
    assert (b"\x1b[" in told) == coloured


@pytest.mark.parametrize(("encoding", "branch"), [("utf-8", "└─ "), ("latin-1", "`- ")])
def test_a_tree_of_layers_is_drawn_with_what_the_locale_has(
    imgtool: Imgtool, tmp_path: Path, encoding: str, branch: str
) -> None:
    seal_layers(tmp_path / "layers", "packages", "sealed")
    drawn = imgtool("layers", "tree", "--layers", tmp_path / "layers", PYTHONIOENCODING=encoding).stdout.splitlines()
    assert [line.partition("web@")[0] for line in drawn[1:]] == [branch, f"   {branch}"]
