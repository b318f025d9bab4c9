"""What every check is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from msgspec import Struct

from imgtool.errors import ConfigError, UsageError
from imgtool.machine.board import Board
from imgtool.machine.config import Machine
from imgtool.machine.host import Host
from imgtool.machine.layout import Placed

T = TypeVar("T")

Problems = Iterator[ConfigError]


class Context(Struct, frozen=True):
    machine: Machine
    host: Host
    board: Board
    drives: list[Placed]
    """Empty when they have no layout, which is then a problem of its own."""
    force: bool = False


_LONGEST_SOCKET = 107


def check_socket(name: str, path: str) -> Problems:
    """A path that no unix socket can have."""
    if len(path.encode(errors="surrogateescape")) > _LONGEST_SOCKET:
        yield ConfigError(f"{name}: a socket's path has at most {_LONGEST_SOCKET} bytes", path=path)


def attempt(make: Callable[[], T], problems: list[ConfigError]) -> T | None:
    """What `make` returns; None, and the error kept in `problems`, when it raises one."""
    try:
        return make()
    except ConfigError as error:
        problems.append(error)
    except UsageError as error:
        problems.append(ConfigError(error.message, hint=error.hint))
    return None
