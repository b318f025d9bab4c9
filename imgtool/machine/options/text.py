"""QEMU's option strings: `first,key=value,flag`, with a comma inside a value written twice.

Source: QEMU's util/qemu-option.c (get_opt_value). Unlike QEMU, an unknown key is an error that names the nearest
right one.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from imgtool.errors import UsageError
from imgtool.image.names import printable
from imgtool.sizes import parse_size

_PIECE = r",,|,|[^,]+"


def split(text: str) -> list[str]:
    """The parts of an option string between single commas; `,,` becomes a comma."""
    parts = [""]
    for piece in re.findall(_PIECE, text):
        if piece == ",":
            parts.append("")
        else:
            parts[-1] += "," if piece == ",," else piece
    return parts


def nearest(word: str, names: Collection[str]) -> str | None:
    """The name that `word` may be a misspelling of, in capitals or not; None when none is near."""
    return next(iter(_near(word, names)), None)


def suggestion(word: str, names: Collection[str], *, more: str | None = None) -> str:
    """`did you mean X?` where one is near, or several as near as it; else all the names, in order. `more` is said
    after that."""
    near = _near(word, names)
    said = f"did you mean {' or '.join(near)}?" if near else "there are: " + ", ".join(sorted(names, key=_by_number))
    return said if more is None else f"{said}{'' if near else ';'} {more}"


_ALIKE = 0.02
"""Names that differ by no more than this in how near they are count as equally near."""


def _near(word: str, names: Collection[str]) -> list[str]:
    import difflib

    by_lower = {name.lower(): name for name in names}
    found = difflib.get_close_matches(word.lower(), by_lower, n=3, cutoff=0.6)
    ratios = [difflib.SequenceMatcher(a=name, b=word.lower()).ratio() for name in found]
    return [by_lower[name] for name, ratio in zip(found, ratios, strict=True) if ratio >= ratios[0] - _ALIKE]


def _by_number(name: str) -> list[tuple[int, str]]:
    """For sorting: 2.9 stands before 2.12, and digits before letters."""
    return [(int(digits), rest) for digits, rest in re.findall(r"(\d+)(\D*)", f"0{name}")]


def pairs(
    option: str, text: str, *, first: str | None, keys: Collection[str], listed: Collection[str] | None = None
) -> list[tuple[str, str]]:
    """The keys and values of an option string in their order. UsageError for a key that is not in `keys`, which lists
    those that are `listed`, or all.

    A first part without `=` is the value of `first`; any other one without is switched on, and switched off when it
    begins with `no`.
    """
    found: list[tuple[str, str]] = []
    if not text:
        return found
    for place, part in enumerate(split(text)):
        key, equals, value = part.partition("=")
        if not equals:
            if place == 0 and first is not None:
                key, value = first, part
            elif part in keys:
                value = "on"
            elif part.startswith("no") and part[2:] in keys:
                key, value = part[2:], "off"
            elif not part:
                raise UsageError(
                    f"{option} {printable(text)}: nothing stands between two commas",
                    hint="a comma inside a value is written twice: a,,b",
                )
        if key not in keys:
            raise unknown(option, key, keys, keys if listed is None else listed)
        found.append((key, value))
    return found


def unknown(option: str, key: str, keys: Collection[str], listed: Collection[str]) -> UsageError:
    close = nearest(key, keys)
    known = f"{option} knows: {', '.join(listed)}" if listed else f"{option} takes nothing more"
    return UsageError(f"{option} has no {printable(key)!r}", hint=f"did you mean {close}?" if close else known)


def once(option: str, found: list[tuple[str, str]], *, repeated: Collection[str] = ()) -> dict[str, str]:
    """`found` as a dictionary. UsageError when a key that is not in `repeated` comes twice with different values."""
    values: dict[str, str] = {}
    for key, value in found:
        if key in repeated:
            continue
        if values.get(key, value) != value:
            raise UsageError(f"{option} says {key} twice: {printable(values[key])} and {printable(value)}")
        values[key] = value
    return values


def boolean(option: str, key: str, value: str) -> bool:
    if value in ("on", "yes", "true", "y"):
        return True
    if value in ("off", "no", "false", "n"):
        return False
    raise UsageError(f"{option}: {key} is on or off, not {printable(value)!r}")


def number(option: str, key: str, value: str) -> int:
    try:
        return int(value, 0)
    except ValueError:
        raise UsageError(f"{option}: {key} is a number, not {printable(value)!r}") from None


def size(option: str, key: str, value: str, *, unit: str = "") -> int:
    """Bytes; a bare number counts in `unit` (`M` for memory, as QEMU's -m does)."""
    try:
        return parse_size(value + unit if value.isdecimal() else value)
    except UsageError as error:
        raise UsageError(f"{option}: {key}: {error.message}", hint=error.hint) from None
