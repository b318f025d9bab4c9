"""Arguments of a recipe: values that whoever builds it may give.

    [args]
    VERSION = "1.4"
    SUITE = { default = "bookworm", values = ["bookworm", "trixie"] }
    LICENSE = { help = "the key that the vendor sent" }

`--arg VERSION=1.5` gives another value; LICENSE has none of its own and must be given. `${VERSION}` stands for the
value in every text of the recipe, but for what a shell or an interpreter reads (`run`, `wait`, scripts): these get
the arguments that the layer names (`args = ["VERSION"]`) as environment variables. So a layer's key depends on the
arguments that it uses, and on no others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from imgtool.image.names import printable
from imgtool.machine.profile import Path as Place
from imgtool.machine.profile import Wrong, to_struct
from imgtool.machine.values.base import Config

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_USE = re.compile(r"(\$?)\$\{([^{}]*)\}")

_AS_WRITTEN = ("args", "interpreter", "run", "secrets", "wait")
"""What of a layer or check is for a shell, or names variables."""


class Argument(Config, frozen=True, kw_only=True):
    """A value that whoever builds the recipe may give."""

    default: str | None = None
    """Its value when none is given; without it one must be given."""
    values: tuple[str, ...] = ()
    """All that it can be; empty for any text."""
    help: str | None = None
    """What it is for, in words."""


def resolve(document: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, str]:
    """The value of every argument that the recipe `document` has, of those `given` or its own. Wrong when one has
    none, or one that it cannot have."""
    table = document.get("args", {})
    if not isinstance(table, dict):
        raise Wrong(("args", 0), "args is one table", "write [args]")
    return {name: _value(name, _argument(name, stated), given) for name, stated in table.items()}


def _argument(name: str, stated: Any) -> Argument:
    place = ("args", name)
    if isinstance(stated, dict):
        try:
            return to_struct(stated, Argument)
        except Wrong as wrong:
            wrong.place = (*place, *wrong.place)
            raise
    if isinstance(stated, bool):
        stated = str(stated).lower()
    if not isinstance(stated, str | int):
        text = printable(f'{name} = "…"')
        raise Wrong(place, f"the argument {printable(name)} is no text", f"write {text}")
    return Argument(default=str(stated))


def _value(name: str, argument: Argument, given: Mapping[str, str]) -> str:
    place = ("args", name)
    if not NAME.fullmatch(name):
        raise Wrong(place, f"{printable(name)!r} cannot be the name of an argument", "letters, digits and `_`")
    value = given.get(name, argument.default)
    if value is None:
        purpose = "" if argument.help is None else f": {printable(argument.help)}"
        raise Wrong(place, f"the argument {name} is not given{purpose}", f"--arg {name}=VALUE gives it")
    if argument.values and value not in argument.values:
        listed = ", ".join(printable(one) for one in argument.values)
        raise Wrong(place, f"{name} cannot be {printable(value)!r}", f"it is one of: {listed}")
    return value


def expanded(value: Any, values: Mapping[str, str], place: Place = ()) -> Any:
    """`value`, a part of a TOML document, with arguments put in. Wrong for the name of none."""
    if isinstance(value, str):
        return _USE.sub(lambda use: _put(use, values, place), value)
    if isinstance(value, list):
        return [expanded(item, values, (*place, at)) for at, item in enumerate(value)]
    if isinstance(value, dict):
        step = len(place) == 2 and place[0] in ("layer", "check")
        return {
            key: item if step and key in _AS_WRITTEN else expanded(item, values, (*place, key))
            for key, item in value.items()
        }
    return value


def _put(use: re.Match[str], values: Mapping[str, str], place: Place) -> str:
    escape, name = use[1], use[2]
    if escape:
        return use[0][1:]
    if name not in values:
        known = f"[args] has: {', '.join(values)}" if values else f"[args] declares them: {printable(name)} = …"
        raise Wrong(place, f"there is no argument {printable(name)!r}", f"{known}; $${{…}} is ${{…}} itself")
    return values[name]
