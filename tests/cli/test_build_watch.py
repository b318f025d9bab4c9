"""What `build --progress json` tells of a guest's words."""

from __future__ import annotations

import json

import pytest

from imgtool.cli.build_watch import Events


def test_output_comes_in_whole_lines_and_nothing_of_it_is_lost(capsys: pytest.CaptureFixture[str]) -> None:
    """A serial port brings a byte at a time."""
    watch = Events()
    watch.step("count")
    for byte in b"one\ntwo\nthree \xe2\x82\xac":
        watch.output(bytes([byte]))
    watch.step("more")
    watch.output(b"x" * 5000)
    watch.output(b"the end")
    watch.end()
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(event["event"], event["text"]) for event in told] == [
        ("step", "count"),
        ("output", "one\n"),
        ("output", "two\n"),
        ("output", "three €"),
        ("step", "more"),
        ("output", "x" * 5000),
        ("output", "the end"),
    ]
