"""Text for people: sizes, dates, aligned fields and tables. Whatever comes from outside is made printable here."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence

import click

from imgtool.image.names import pasted


def size(count: int) -> str:
    """`10 GiB (10737418240 bytes)`"""
    return f"{short_size(count)} ({count} bytes)" if count >= 1024 else short_size(count)


def short_size(count: int) -> str:
    """`10 GiB`"""
    import humanize

    return (
        humanize.naturalsize(count, binary=True).replace(".0 ", " ").replace("Bytes", "bytes").replace("Byte", "byte")
    )


def date(seconds: int) -> str:
    """A time of the host's clock, in its own time zone."""
    import datetime

    try:
        moment = datetime.datetime.fromtimestamp(seconds).astimezone()
    except (OverflowError, OSError, ValueError):
        return f"{seconds} s after 1970"
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def counted(count: int, noun: str) -> str:
    """`1 snapshot`, `2 snapshots`"""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def width(text: str) -> int:
    """Columns that `text` takes on a terminal, without counting colour."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in click.unstyle(text)
    )


def fields(pairs: Iterable[tuple[str, str]], *, indent: str = "") -> Iterator[str]:
    """`key: value` lines, the values aligned."""
    known = list(pairs)
    longest = max((len(key) for key, _ in known), default=0)
    for key, value in known:
        yield f"{indent}{key + ':':<{longest + 1}} {value}"


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[int] = (), indent: str = ""
) -> Iterator[str]:
    """Columns as wide as their widest cell; those numbered in `right` are aligned to the right."""
    lines = [tuple(head), *(tuple(row) for row in rows)]
    widths = [max(width(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        cells = []
        for column, cell in enumerate(line):
            pad = " " * (widths[column] - width(cell))
            cells.append(pad + cell if column in right else cell + pad)
        yield (indent + "  ".join(cells)).rstrip()


def shell(words: Sequence[str]) -> str:
    """A command line to paste into a shell that also may be shown."""
    return " ".join(pasted(word) for word in words)


def good(text: str) -> str:
    return click.style(text, fg="green")


def doubtful(text: str) -> str:
    return click.style(text, fg="yellow")


def bad(text: str) -> str:
    return click.style(text, fg="red", bold=True)
