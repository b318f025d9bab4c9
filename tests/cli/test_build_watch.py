"""What `build --progress json` tells of a guest's words."""

from __future__ import annotations

import json

import pytest

from imgtool.cli.build_watch import Events, Headings


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


def test_a_line_without_an_end_is_handed_on_in_pieces_and_no_character_is_cut(
    capfd: pytest.CaptureFixture[str],
) -> None:
    said = ("é" * 50_000 + "x").encode()
    events, headings = Events(), Headings(color=False)
    for watch in (events, headings):
        for at in range(0, len(said), 1001):
            watch.output(said[at : at + 1001])
        watch.end()
        shown = capfd.readouterr().err.splitlines()
        assert len(shown) > 10
        texts = [json.loads(line)["text"] for line in shown] if watch is events else [line[4:] for line in shown]
        assert all(len(text) < 6000 for text in texts)
        assert "".join(texts).encode() == said
