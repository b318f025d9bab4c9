"""TOML profiles: `vm.toml` holds any setting of a machine, under the name its option has.

    machine = "q35"
    memory = "2G"
    smp = { cpus = 4, threads = 2 }

    [[drive]]
    file = "disk.qcow2"
    if = "virtio"

    [[network]]
    type = "user"
    hostfwd = ["tcp::2222-:22"]

Read strictly: whatever is not known, or not of its kind, is an error with its line. `imgtool schema profile` prints
the JSON Schema.
"""

from __future__ import annotations

import contextlib
import os.path
import re
import tomllib
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from imgtool.errors import ConfigError, UsageError
from imgtool.image.names import absolute, printable
from imgtool.machine.config import Machine
from imgtool.machine.options.fields import Kind, kinds
from imgtool.machine.options.paths import with_absolute_paths
from imgtool.machine.options.text import nearest
from imgtool.machine.options.words import placed, typed
from imgtool.sizes import parse_size

T = TypeVar("T", bound=msgspec.Struct)
M = TypeVar("M", bound=Machine)

Path = tuple[str | int, ...]
"""Where in a document: `("drive", 1, "cache")`."""

_LARGEST = 1 << 20


class Wrong(Exception):  # noqa: N818 - what `reading` makes a ConfigError of
    """What is wrong at a place of a document."""

    def __init__(self, place: Path, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.place = place
        self.message = message
        self.hint = hint


def load_profile(path: str) -> Machine:
    """The machine that the profile at `path` describes; its file names are relative to the profile's folder.
    ConfigError, with the line, when something in it is wrong."""
    where = absolute(path)
    return with_absolute_paths(parse_profile(read_text(path), where), os.path.dirname(where))


def read_text(path: str, what: str = "a profile") -> str:
    """The text of the TOML file at `path`. ConfigError when there is none, or none that could be `what`."""
    where = absolute(path)
    try:
        with open(where, "rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise ConfigError(f"{printable(where)}: {error.strerror}", path=where) from error
    if len(content) > _LARGEST:
        raise ConfigError(f"{printable(where)} is too large for {what}", path=where)
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{printable(where)} is not UTF-8", path=where) from None


def read_profile(path: str) -> dict[str, Any]:
    """The settings of a profile, as plain tables for `merge` with those of the command line."""
    settings: dict[str, Any] = msgspec.to_builtins(load_profile(path))
    return settings


def parse_profile(text: str, name: str = "profile") -> Machine:
    """The machine that a profile's text describes, file names as they are written. ConfigError as `load_profile`."""
    with reading(text, name) as document:
        return to_machine(document, Machine)


@contextlib.contextmanager
def reading(text: str, name: str) -> Iterator[dict[str, Any]]:
    """Yields the document that the TOML `text` is. A Wrong that is raised inside the `with` block becomes a
    ConfigError with its line."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{printable(name)}: {error}", hint="see https://toml.io", path=name) from None
    except RecursionError:
        raise ConfigError(f"{printable(name)}: its values lie too deep in each other", path=name) from None
    try:
        _check_texts(document)
        yield document
    except Wrong as wrong:
        line = find_line(text, wrong.place)
        raise ConfigError(f"{printable(name)}:{line}: {wrong.message}", hint=wrong.hint, path=name) from None


def _check_texts(document: dict[str, Any]) -> None:
    """Wrong for a NUL in a text, which no file name, argument or variable can have."""
    left: list[tuple[Any, Path]] = [(document, ())]
    while left:
        value, place = left.pop()
        if isinstance(value, str) and "\0" in value:
            raise Wrong(place, f"{printable(_dotted(place))} holds a NUL character", "leave \\u0000 out")
        if isinstance(value, dict):
            left += [(entry, (*place, key)) for key, entry in value.items()]
        elif isinstance(value, list):
            left += [(entry, (*place, at)) for at, entry in enumerate(value)]


def read_settings(settings: dict[str, Any]) -> Machine:
    """The machine of settings that a program has put together, as a profile's are read, file names as they are
    written. UsageError, with the place, when something in them is wrong."""
    try:
        return to_machine(settings, Machine)
    except Wrong as wrong:
        inside = _dotted(wrong.place[:-1])
        message = wrong.message if not inside or inside in wrong.message else f"{inside}: {wrong.message}"
        raise UsageError(message, hint=wrong.hint) from None


def to_machine(table: dict[str, Any], struct: type[M], place: Path = ()) -> M:
    """The machine whose settings are the table at `place` of a document, as a `struct`, which may have more settings
    than Machine. Wrong when they are not right."""
    known = kinds(struct)
    settings: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            raise _unknown((*place, key), key, list(known))
        try:
            plain = typed(key, value)
        except UsageError as error:
            raise Wrong((*place, key), error.message, error.hint) from None
        settings[key] = _checked(plain, known[key], (*place, key))
    return _converted(settings, struct, place)


def to_struct(table: dict[str, Any], struct: type[T]) -> T:
    """A whole document as a `struct`, sizes in QEMU's notation. Wrong when it is none."""
    kind = Kind(inspect.type_info(struct), None)
    return _converted(_checked(table, kind, ()), struct, ())


def _converted(settings: dict[str, Any], struct: type[T], place: Path) -> T:
    try:
        return msgspec.convert(settings, struct)
    except msgspec.ValidationError as error:
        message, _, found = str(error).rpartition(" - at `$")
        where = (*place, *_place(found))
        shown = _dotted(where)
        raise Wrong(where, f"{shown}: {message or error}" if shown else str(error)) from None


def _checked(value: Any, kind: Kind, place: Path) -> Any:
    """`value` with sizes read; raises for keys that its type does not have."""
    if isinstance(value, str) and kind.is_size:
        try:
            return parse_size(value)
        except UsageError as error:
            raise Wrong(place, f"{_dotted(place)}: {error.message}", error.hint) from None
    words = _words_of(kind.type)
    if isinstance(value, str) and words and value not in words:
        close = nearest(value, words)
        listed = f"it is one of: {', '.join(words)}"
        raise Wrong(
            place,
            f"{_dotted(place)} cannot be {printable(value)!r}",
            f"did you mean {close}? {listed}" if close else listed,
        )
    _check_header(value, kind.type, place)
    if isinstance(value, list) and isinstance(kind.type, inspect.VarTupleType):
        item = Kind(kind.type.item_type, kind.unit)
        return [_checked(entry, item, (*place, at)) for at, entry in enumerate(value)]
    if not isinstance(value, dict):
        return value
    struct = _struct(value, kind.type, place)
    if struct is None:
        return value
    known = kinds(struct.cls)
    checked = {}
    for key, entry in value.items():
        if key == struct.tag_field:
            checked[key] = entry
        elif key in known:
            checked[key] = _checked(entry, known[key], (*place, key))
        else:
            raise _unknown((*place, key), key, [*([struct.tag_field] if struct.tag_field else []), *known])
    _check_complete(value, struct.cls, place)
    return checked


def _check_header(value: Any, given: inspect.Type, place: Path) -> None:
    """Wrong for `[name]` where TOML has `[[name]]`, and for the other way round."""
    name = ".".join(part for part in place if isinstance(part, str))
    if isinstance(value, dict) and isinstance(given, inspect.VarTupleType) and _is_table(given.item_type):
        raise Wrong(place, f"{_dotted(place)} is a list of tables", f"write [[{name}]]")
    if isinstance(value, list) and isinstance(given, inspect.StructType):
        raise Wrong((*place, 0), f"{_dotted(place)} is one table, no list of them", f"write [{name}]")
    if isinstance(value, str) and isinstance(given, inspect.VarTupleType):
        if isinstance(given.item_type, inspect.StrType):
            raise Wrong(place, f"{_dotted(place)} is a list", f"write {place[-1]} = […]")
        if _is_table(given.item_type):
            raise Wrong(place, f"{_dotted(place)} is a list of tables, no text", f"write [[{name}]]")


def _check_complete(table: dict[str, Any], struct: type[msgspec.Struct], place: Path) -> None:
    """Wrong for a table that lacks a key it cannot be without."""
    for field in msgspec.structs.fields(struct):
        if field.required and field.encode_name not in table:
            raise Wrong(place, f"{_dotted(place) or 'the file'} needs {field.encode_name} =")


def _is_table(given: inspect.Type) -> bool:
    types = given.types if isinstance(given, inspect.UnionType) else (given,)
    return any(isinstance(item, inspect.StructType) for item in types)


def _words_of(given: inspect.Type) -> list[str]:
    """The words that a type consists of; none when other strings are of it, too."""
    types = given.types if isinstance(given, inspect.UnionType) else (given,)
    if any(isinstance(item, inspect.StrType | inspect.AnyType) for item in types):
        return []
    return [
        word
        for item in types
        if isinstance(item, inspect.LiteralType)
        for word in item.values
        if isinstance(word, str)
    ]


def _struct(value: dict[str, Any], given: inspect.Type, place: Path) -> inspect.StructType | None:
    """The struct that the table `value` is to become; for one of several its `type` says which."""
    if isinstance(given, inspect.StructType):
        return given
    if not isinstance(given, inspect.UnionType):
        return None
    structs = {item.tag: item for item in given.types if isinstance(item, inspect.StructType)}
    field = next((item.tag_field for item in structs.values()), None)
    if field is None:
        return None
    names = [str(tag) for tag in structs]
    if field not in value:
        raise Wrong(place, f"{_dotted(place)} needs {field} =", f"one of: {', '.join(names)}")
    found = structs.get(value[field])
    if found is None:
        close = nearest(str(value[field]), names)
        listed = f"there are: {', '.join(names)}"
        raise Wrong(
            (*place, field),
            f"{_dotted(place)} has no {field} {printable(str(value[field]))!r}",
            f"did you mean {close}? {listed}" if close else listed,
        )
    return found


def _unknown(place: Path, key: str, names: list[str]) -> Wrong:
    meant = placed(key)
    close = meant if meant is not None and meant.partition(".")[0] in names else nearest(key, names)
    listed = f"{_dotted(place[:-1]) or 'the file'} knows: {', '.join(names)}"
    return Wrong(place, f"unknown key {printable(key)!r}", f"did you mean {close}? {listed}" if close else listed)


def _dotted(place: Path) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")


def _place(text: str) -> Path:
    """msgspec's `.drive[0].cache` (a JSON path without its `$`) as a place."""
    parts = re.findall(r"\.([^.\[\]`]+)|\[(\d+)\]", text)
    return tuple(int(number) if number else key for key, number in parts)


_WORD = r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'"""
_DOTTED = rf"(?:{_WORD})(?:\s*\.\s*(?:{_WORD}))*"
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_DOTTED})\s*\]")
_KEY = re.compile(rf"\s*({_DOTTED})\s*=")


def find_line(text: str, place: Path) -> int:
    """The line, counted from 1, where the value at `place` is written: its key, else the innermost table around it
    that has a line of its own."""
    best, depth = 1, 0
    for number, found in _written(text):
        length = _covered(found, place)
        if length > depth:
            best, depth = number, length
    inner = [part for part in place[depth:] if isinstance(part, str)]
    if not inner:
        return best
    lines = text.splitlines()
    pattern = re.compile(rf"(?<![\w-])[\"']?{re.escape(inner[-1])}[\"']?\s*=")
    for number in range(best, len(lines) + 1):
        if number > best and (_HEADER.match(lines[number - 1]) or _KEY.match(lines[number - 1])):
            break
        if pattern.search(lines[number - 1]):
            return number
    return best


def _covered(found: Path, place: Path) -> int:
    """How much of `place` leads to `found`; 0 when it does not. A list of one may be written as that one alone."""
    at = 0
    for part in found:
        if at < len(place) and isinstance(place[at], int) and not isinstance(part, int):
            at += 1
        if at >= len(place) or place[at] != part:
            return 0
        at += 1
    return at


def _written(text: str) -> Iterator[tuple[int, Path]]:
    """Every header and key of a TOML text with its line and its place."""
    table: Path = ()
    counts: dict[Path, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        header = _HEADER.match(line)
        if header is not None:
            table = ()
            words = _words(header[2])
            for at, word in enumerate(words):
                table = (*table, word)
                if at == len(words) - 1 and header[1] == "[[":
                    counts[table] = counts.get(table, -1) + 1
                if table in counts:
                    table = (*table, counts[table])
            yield number, table
            continue
        key = _KEY.match(line)
        if key is not None:
            yield number, (*table, *_words(key[1]))


def _words(dotted: str) -> list[str]:
    return [word.strip().strip("\"'") for word in re.findall(_WORD, dotted)]


def find_word(text: str, first: int, words: tuple[str, ...], index: int) -> int:
    """The line of the element `index` of the list of strings that begins on line `first`; `first` when it is written
    in a way that hides it (escapes, several lines)."""
    lines = text.splitlines()
    at = first
    for number, line in _word_places(lines, first, words):
        if number == index:
            at = line
    return at


def _word_places(lines: list[str], first: int, words: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    line, column = first, 0
    for number, word in enumerate(words):
        if "\n" in word or not word:
            return
        while line <= len(lines):
            found = lines[line - 1].find(word, column)
            if found >= 0:
                yield number, line
                column = found + len(word)
                break
            line, column = line + 1, 0
