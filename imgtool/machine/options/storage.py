"""`--drive`."""

from __future__ import annotations

from imgtool.machine.compile.blocks import LIMITS
from imgtool.machine.options.fields import build, scalars
from imgtool.machine.options.text import once, pairs
from imgtool.machine.values.storage import Drive, Throttle

_THROTTLE = {key: key.replace("_", "-") for key in LIMITS}
_THROTTLE |= {f"throttling.{name}": key.replace("_", "-") for key, name in LIMITS.items()}
_THROTTLE |= {"group": "group", "throttling.group": "group"}
"""-drive's two spellings of a limit (`bps_rd`, `throttling.bps-read`), and the name it has here."""

_ALIASES = {"read-only": "readonly", "detect_zeroes": "detect-zeroes"}


def parse_drive(text: str) -> Drive:
    """`file=disk.qcow2,if=virtio,cache=none`, with every key that -drive has or once had."""
    own = scalars(Drive)
    found = pairs("--drive", text, first="file", keys=[*own, *_ALIASES, *_THROTTLE])
    words = once("--drive", [(_ALIASES.get(key, key), value) for key, value in found])
    limits = {_THROTTLE[key]: words.pop(key) for key in list(words) if key in _THROTTLE}
    if words.get("file") == "":
        del words["file"]
    throttling = build("--drive", Throttle, limits) if limits else None
    return build("--drive", Drive, words, throttling=throttling)
