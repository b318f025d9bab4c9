"""References that imgtool itself made for this user and that lead out of an image's directory: `overlay new BASE
elsewhere/OVERLAY` said that images of `elsewhere` may stand on BASE, and nobody should be asked again. Whoever is
about to change BASE learns where to look for what stands on it.

One line of JSON a pair in the user's state directory, with the file systems that both lay on: what is gone from there
is forgotten some time, what lies on a disk that is not mounted now is not. Only what a user asked for is kept here,
never what images say.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import IO

import msgspec

from imgtool.image.links import is_below
from imgtool.image.names import HIDDEN
from imgtool.image.userdirs import user_dir

Pair = tuple[str, str]
"""A directory, and a file not in it that images in it were made to refer to; both without symlinks."""

Devices = tuple[int, int]
"""The device numbers (st_dev) of the file systems that the directory and the file of a pair lay on."""


class _Line(msgspec.Struct, array_like=True):
    directory: str
    file: str
    devices: Devices | None = None


_DECODER: msgspec.json.Decoder[_Line] = msgspec.json.Decoder(_Line)

_FULL = 500
"""Each time so many pairs have come, those whose directory or file is gone for good are dropped."""

_MOST = 64 << 20
"""Bytes that are read: some 400,000 pairs."""


def path() -> str:
    """Where it is kept."""
    return os.path.join(user_dir("state"), "references")


_here: set[Pair] = set()
"""What this process has noted, should the state directory not be writable."""

unkept: dict[Pair, OSError] = {}
"""What could not be written down, and why: later runs of imgtool will not know it."""


def knows(directory: str, file: str) -> bool:
    """Whether imgtool made an image in `directory` refer to `file`."""
    pair = (os.path.realpath(directory), os.path.realpath(file))
    return pair in _here or pair in _read()


def remember(image: str, file: str) -> None:
    """Notes that the image at `image` is made to refer to `file`, unless that lies in its own directory, or is a new
    version that is still to take a file's place. To be called before it does: whoever changes `file` does not see an
    image that is there and not noted. A state directory that cannot be written is no error: later runs of imgtool
    then need --trust (see `unkept`), unless the file lies below the image's directory."""
    pair = (os.path.realpath(os.path.dirname(image)), os.path.realpath(file))
    directory = pair[0]
    if os.path.dirname(pair[1]) == directory or os.path.basename(pair[1]).startswith(HIDDEN):
        return
    _here.add(pair)
    try:
        _write(pair)
    except OSError as error:
        if not is_below(file, directory):
            unkept[pair] = error


def directories() -> dict[str, list[str]]:
    """For each file, the directories in which imgtool made images refer to it."""
    found: dict[str, list[str]] = {}
    for directory, file in {**_read(), **dict.fromkeys(_here.copy())}:
        found.setdefault(file, []).append(directory)
    return found


def _write(pair: Pair) -> None:
    place = path()
    os.makedirs(os.path.dirname(place), mode=0o700, exist_ok=True)
    with _locked(place) as held:
        text = held.read(_MOST)
        pairs = _pairs(text)
        if pair in pairs:
            return
        pairs[pair] = (_device(pair[0]), _device(pair[1]))
        if len(pairs) > _FULL and len(pairs) % _FULL == 1:
            _replace(place, {one: on for one, on in pairs.items() if one == pair or not _is_gone(one, on)})
        else:
            held.seek(0, os.SEEK_END)
            held.write(b"\n" * (text[-1:] not in (b"", b"\n")) + _lines({pair: pairs[pair]}))
            held.flush()
            os.fsync(held.fileno())


@contextlib.contextmanager
def _locked(place: str) -> Iterator[IO[bytes]]:
    """The file at `place`, which nobody else writes until the end."""
    import fcntl

    while True:
        with os.fdopen(os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(held.fileno()), os.stat(place)):  # nobody has replaced it meanwhile
                    yield held
                    return


def _is_gone(pair: Pair, devices: Devices | None) -> bool:
    """Whether the directory or the file is no longer on the file system that it was on. Of one that is not mounted
    now nothing is known."""
    return devices is not None and any(
        not os.path.lexists(place) and _device(place) == device for place, device in zip(pair, devices, strict=True)
    )


def _device(place: str) -> int:
    """The file system that `place` is on, or would be."""
    while True:
        try:
            return os.stat(place).st_dev
        except FileNotFoundError:
            place = os.path.dirname(place)


def _replace(place: str, pairs: Mapping[Pair, Devices | None]) -> None:
    """Whole or not at all: whoever dies here leaves the file as it was."""
    with open(f"{place}.new", "wb") as new:
        new.write(_lines(pairs))
        new.flush()
        os.fsync(new.fileno())
    os.rename(new.name, place)


_last: tuple[tuple[str, int, int, int], dict[Pair, Devices | None]] | None = None


def _read() -> dict[Pair, Devices | None]:
    """All pairs; the file is read again when it has changed."""
    global _last
    import fcntl

    place = path()
    try:
        with open(place, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            status = os.fstat(file.fileno())
            key = (place, status.st_ino, status.st_mtime_ns, status.st_size)
            if _last is None or _last[0] != key:
                _last = (key, _pairs(file.read(_MOST)))
            return _last[1]
    except OSError:
        return {}


def _lines(pairs: Mapping[Pair, Devices | None]) -> bytes:
    import json

    return "".join(json.dumps([*pair, devices]) + "\n" for pair, devices in pairs.items()).encode()


def _pairs(text: bytes) -> dict[Pair, Devices | None]:
    """The oldest stay first. A line that was cut off by a crash is none."""
    found: dict[Pair, Devices | None] = {}
    for line in text.splitlines():
        with contextlib.suppress(ValueError):  # of which msgspec's are
            one = _line(line)
            found[one.directory, one.file] = one.devices
    return found


def _line(line: bytes) -> _Line:
    """ValueError when the line is no pair. Names that are not UTF-8 have lone surrogates, which only `json` reads;
    its import takes longer than all the rest here."""
    try:
        return _DECODER.decode(line)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        import json

        return msgspec.convert(json.loads(line), _Line)
