"""`imgtool boot --machine help` and the like: what this QEMU has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from imgtool.cli.context import Context
from imgtool.cli.output import emit
from imgtool.qemu.capabilities import Capabilities, capabilities


def emit_help(context: Context, what: str) -> None:
    """The choices for the option `what`: machine, cpu or nic_model."""
    found = capabilities(context.programs.find("qemu-system-x86_64"))
    if what == "machine":
        emit(context, found.machines, _machines(found))
    elif what == "cpu":
        emit(context, {"models": found.cpu_models, "features": found.cpu_features}, _cpus(found))
    else:
        from imgtool.machine.compile.networks import NO_CARDS

        cards = [
            device
            for device in found.devices_in("Network")
            if device.user_creatable and device.name not in NO_CARDS and "-transitional" not in device.name
        ]
        emit(context, cards, (f"{card.name:34} {card.description}".rstrip() for card in cards))


def _machines(found: Capabilities) -> Iterator[str]:
    for machine in sorted(found.machines, key=lambda machine: (machine.alias is None, _natural(machine.name))):
        notes = [f"alias {machine.alias}"] if machine.alias else []
        notes += ["default"] if machine.is_default else []
        notes += ["deprecated"] if machine.deprecated else []
        note = f" ({', '.join(notes)})" if notes else ""
        most = f"at most {machine.cpu_max} CPU{'s' if machine.cpu_max > 1 else ''}"
        yield f"{machine.name:20} {machine.description}, {most}{note}"


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts 2.9 before 2.10."""
    import re

    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"(\d+)", name)]


def _cpus(found: Capabilities) -> Iterator[str]:
    for model in sorted(found.cpu_models, key=lambda model: model.name.lower()):
        notes = [f"alias of {model.alias_of}"] if model.alias_of else []
        notes += ["deprecated"] if model.deprecated else []
        yield model.name + (f" ({', '.join(notes)})" if notes else "")
    yield ""
    yield "Features, each as +name or -name:"
    yield from _filled(found.cpu_features)


def _filled(words: Iterable[str], width: int = 100) -> Iterator[str]:
    import textwrap

    return iter(
        textwrap.wrap(" ".join(words), width, break_on_hyphens=False, initial_indent="  ", subsequent_indent="  ")
    )
