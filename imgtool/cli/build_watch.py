"""What a build shows while it goes on: headings and the guest's own words on stderr, or one JSON object per line."""

from __future__ import annotations

import codecs
import json
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import click

from imgtool.build.watcher import UNSEEN, Progress, Task, Watcher, title
from imgtool.cli.context import Context, want_color
from imgtool.cli.progress import progress
from imgtool.image.names import harmless, printable
from imgtool.machine.serial import clean

_LONGEST_LINE = 1 << 12
"""Bytes; what is longer is handed on in pieces."""


def watcher_for(context: Context) -> Watcher:
    """What suits the way the user wants to be told. An answer in JSON has stderr for errors alone, unless
    `--progress json` asks for events there."""
    if context.progress == "json":
        return Events()
    if context.quiet or context.json or context.progress == "none":
        return Watcher()
    return Headings(want_color(context, sys.stderr), partial(progress, context))


def _cut(line: bytes) -> tuple[bytes, bytes]:
    """`line` up to the UTF-8 character that it ends in the midst of, and the rest."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(line)
    rest = decoder.getstate()[0]
    return line[: len(line) - len(rest)], rest


class Headings(Watcher):
    """For people."""

    def __init__(self, color: bool, task: Task = UNSEEN) -> None:
        self._color = color
        self._task = task
        self._line = b""

    def _say(self, text: str, **style: Any) -> None:
        self._end_line()
        click.echo(click.style(harmless(text), **style), err=True, color=self._color)

    def note(self, text: str) -> None:
        self._say(f"note: {text}")

    def hit(self, number: int, total: int, name: str, key: str) -> None:
        self._say(f"[{number + 1}/{total}] {name}  {key[:12]}  cached", fg="green")

    def start(self, number: int, total: int, name: str, key: str, why: str) -> None:
        self._say(f"[{number + 1}/{total}] {name}  {key[:12]}", bold=True)
        self._say(f"  because {why}", dim=True)

    def task(self, text: str) -> AbstractContextManager[Progress | None]:
        self._end_line()
        return self._task(text)

    def booting(self, name: str) -> None:
        self._say(f"  booting {name}…", dim=True)

    def step(self, text: str) -> None:
        self._say(f"  $ {printable(title(text))}", fg="cyan")

    def output(self, piece: bytes) -> None:
        *whole, self._line = (self._line + piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")).split(b"\n")
        if len(self._line) > _LONGEST_LINE:
            line, self._line = _cut(self._line)
            whole.append(line)
        for line in whole:
            self._show(line)

    def _show(self, line: bytes) -> None:
        click.echo(f"  | {harmless(clean(line).expandtabs())}".rstrip(), err=True)

    def _end_line(self) -> None:
        line, self._line = self._line, b""
        if line:
            self._show(line)

    def done(self, name: str, seconds: float, size: int) -> None:
        from imgtool.cli.render import short_size

        self._say(f"  sealed {name}: {seconds:.1f} s, {short_size(size)}", fg="green")

    def result(self, text: str) -> None:
        self._say(f"[image] {text}", bold=True)

    def end(self) -> None:
        self._end_line()


class Events(Watcher):
    """For programs."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._line = b""

    def _tell(self, event: str, **what: object) -> None:
        self.end()
        self._write(event, **what)

    def _write(self, event: str, **what: object) -> None:
        seconds = round(time.monotonic() - self._begun, 3)
        print(json.dumps({"event": event, "at": seconds, **what}), file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        self._tell("note", text=text)

    def hit(self, number: int, total: int, name: str, key: str) -> None:
        self._tell("layer-cached", number=number, total=total, name=name, key=key)

    def start(self, number: int, total: int, name: str, key: str, why: str) -> None:
        self._tell("layer-start", number=number, total=total, name=name, key=key, why=why)

    def task(self, text: str) -> AbstractContextManager[Progress | None]:
        return nullcontext(lambda percent: self._tell("progress", task=text, percent=percent))

    def booting(self, name: str) -> None:
        self._tell("boot", name=name)

    def step(self, text: str) -> None:
        self._tell("step", text=text)

    def output(self, piece: bytes) -> None:
        """Whole lines: a serial port may bring a byte at a time."""
        lines, newline, self._line = (self._line + piece).rpartition(b"\n")
        self._say(lines + newline)
        if len(self._line) > _LONGEST_LINE:
            line, self._line = _cut(self._line)
            self._say(line)

    def _say(self, said: bytes) -> None:
        if said:
            self._write("output", text=said.decode(errors="replace"))

    def end(self) -> None:
        line, self._line = self._line, b""
        self._say(line)

    def done(self, name: str, seconds: float, size: int) -> None:
        self._tell("layer-sealed", name=name, seconds=seconds, size=size)

    def result(self, text: str) -> None:
        self._tell("image", text=text)
