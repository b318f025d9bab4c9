"""PCI slots that two devices want."""

from __future__ import annotations

import re

from imgtool.errors import ConfigError
from imgtool.image.names import printable
from imgtool.machine.checks.context import Context, Problems
from imgtool.machine.compile.display import vga_model
from imgtool.machine.compile.networks import networks

_OWN = {"pc": {0: "the host bridge", 1: "the PIIX3"}, "q35": {0: "the host bridge", 31: "the ICH9"}}
_SLOTS = 32


def check_slots(context: Context) -> Problems:
    taken: dict[tuple[int, int], str] = {}
    wanted = [(item.source, item.drive.addr) for item in context.drives]
    wanted += [(f"--network #{at + 1}", network.addr) for at, network in enumerate(networks(context.machine))]
    for source, text in wanted:
        if text is None:
            continue
        place = parse_slot(text)
        if place is None:
            yield ConfigError(
                f"{source}: addr={printable(text)} is not a PCI slot", hint="in hexadecimal, 0x1 to 0x1f, or 0x5.0x1"
            )
            continue
        own = _own_slots(context).get(place[0])
        if own is not None:
            yield ConfigError(f"{source}: PCI slot {text} is {own}'s", hint="0x3 to 0x1e are free for you")
        other = taken.setdefault(place, source)
        if other != source:
            yield ConfigError(f"{other} and {source} are both in PCI slot {text}", hint="leave addr= out of one")


def _own_slots(context: Context) -> dict[int, str]:
    """The slots that the board has filled before any -device."""
    own = dict(_OWN.get(context.board.family, {}))
    if own and vga_model(context.machine, context.board, context.host) != "none":
        own[max(slot for slot in own if slot < _SLOTS - 1) + 1] = "the VGA card"
    return own


def parse_slot(text: str) -> tuple[int, int] | None:
    """Slot and function of `5`, `0x5` or `05.1`: hexadecimal, as QEMU reads it. None when it is no slot."""
    match = re.fullmatch(r"(?:0x)?([0-9a-fA-F]+)(?:\.(?:0x)?([0-7]))?", text)
    if match is None or int(match[1], 16) >= _SLOTS:
        return None
    return int(match[1], 16), int(match[2] or "0", 16)
