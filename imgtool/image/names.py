"""Names: files a user gave, values inside option strings, and what is shown to people.

A path inside imgtool is a `str` as `os.fsdecode` makes it: absolute, non-UTF-8 bytes kept as lone surrogates, never
resolved through symlinks (QEMU resolves a relative backing name against the directory of the path as it was given).
"""

from __future__ import annotations

import os
from collections.abc import Iterable

PathLike = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Paths = PathLike | Iterable[PathLike]
"""One or several: a lone name is never taken for its letters."""


HIDDEN = ".imgtool-"
"""How the names of files and directories begin that imgtool makes beside images while it works: no images."""


def paths_of(given: Paths) -> list[PathLike]:
    return [given] if isinstance(given, str | bytes | os.PathLike) else list(given)


def absolute(path: PathLike) -> str:
    """`path` made absolute without following symlinks: the one spelling that no QEMU program takes for an option
    (`-x`), a protocol (`nbd:foo`) or a pseudo-protocol (`json:{}`)."""
    return os.path.abspath(os.fsdecode(path))


def option_value(value: str) -> str:
    """`value` for a QEMU option string (`driver=F,file.filename=VALUE`), where a comma is written twice."""
    return value.replace(",", ",,")


_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}


def _escape(char: str) -> str:
    code = ord(char)
    if char in _NAMED:
        return _NAMED[char]
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def printable(text: str) -> str:
    """`text` safe to show on a terminal and unambiguous: whatever is not one visible character or a plain space
    (control and direction characters, spaces of other kinds, bytes that were not UTF-8) and the backslash itself are
    written as escapes. Names that come from images are hostile."""
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(char if char.isprintable() and char != "\\" else _escape(char) for char in text)


def printable_lines(text: str) -> str:
    """Like `printable`, but keeps line feeds: for the output of programs, which may quote hostile names."""
    return "\n".join(printable(line) for line in text.rstrip("\n").split("\n"))


def pasted(word: str) -> str:
    """`word` as a shell takes it, in a command that people paste and that may be shown: what `printable` would
    escape is written in `$'…'`, which bash, zsh and ksh read."""
    plain = word.replace("\\", "")
    if printable(plain) == plain:
        import shlex

        return shlex.quote(word)
    escaped = []
    for byte in os.fsencode(word):
        char = chr(byte)
        if char in "\\'":
            escaped.append("\\" + char)
        else:
            escaped.append(char if 0x20 <= byte < 0x7F else f"\\x{byte:02x}")
    return "$'" + "".join(escaped) + "'"


def harmless(text: str) -> str:
    """`text` that is already made of printable parts, with whatever could still move a terminal's cursor escaped:
    the last look before text is written. Lines and backslashes stay."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\n" else _escape(char) for char in text)
