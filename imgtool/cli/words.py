"""The words that shells complete besides commands, options and files: names and keys that imgtool knows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from click import Context
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    import msgspec

_WAITS = ("running", "ssh", "agent", "cloud-init", "serial:")

FORMATS = ("qcow2", "raw", "vmdk", "vdi", "vhdx", "vpc", "qed", "qcow", "luks", "parallels")


def files(_: Context, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="file")]


def formats(_: Context, incomplete: str) -> list[CompletionItem]:
    return _beginning(incomplete, FORMATS)


def vms(_: Context, incomplete: str) -> list[CompletionItem]:
    from imgtool.machine.runtime import vms as running

    return _beginning(incomplete, (vm.name for vm, _ in running()))


def networks(_: Context, incomplete: str) -> list[CompletionItem]:
    return _beginning(incomplete, _network_names())


def layers(ctx: Context, incomplete: str) -> list[CompletionItem]:
    from imgtool.build.prune import name_of
    from imgtool.build.store import Store

    found = Store(ctx.params.get("layers_")).layers()
    return _beginning(incomplete, dict.fromkeys(name_of(layer) for layer in found))


def waits(_: Context, incomplete: str) -> list[CompletionItem]:
    """`--wait`"""
    return _beginning(incomplete, _WAITS)


def waits_and_end(_: Context, incomplete: str) -> list[CompletionItem]:
    """`vm wait --for`"""
    return _beginning(incomplete, (*_WAITS, "ended"))


def needs(_: Context, incomplete: str) -> list[CompletionItem]:
    """`doctor --need`"""
    from imgtool.machine.doctor import NAMES

    before, part = _last_part(incomplete)
    return _beginning(part, NAMES, before)


def drive(_: Context, incomplete: str) -> list[CompletionItem]:
    """`--drive`: its keys, and the values of those that have some."""
    from imgtool.machine.values.storage import Drive

    before, part = _last_part(incomplete)
    return _keys_and_values(Drive, before, part)


def network(_: Context, incomplete: str) -> list[CompletionItem]:
    """`--network`: its types, then the keys of the type that stands first."""
    from imgtool.machine.options.network import TYPES

    before, part = _last_part(incomplete)
    if not before:
        return _beginning(part, [*TYPES, "none"])
    kind = TYPES.get(before.partition(",")[0])
    return _keys_and_values(kind, before, part) if kind is not None else []


def secret(_: Context, incomplete: str) -> list[CompletionItem]:
    """`--secret NAME=FILE`"""
    name, equals, file = incomplete.partition("=")
    return [CompletionItem(file, type="file", prefix=name + equals)] if equals else []


def _keys_and_values(struct: type[msgspec.Struct], before: str, part: str) -> list[CompletionItem]:
    from imgtool.machine.options.fields import kinds, scalars

    key, equals, value = part.partition("=")
    if not equals:
        return _beginning(part, (f"{name}=" for name in scalars(struct)), before)
    kind = kinds(struct).get(key)
    if kind is None:
        return []
    before = f"{before}{key}="
    if kind.unit == "path":
        return [CompletionItem(value, type="file", prefix=before)]
    return _beginning(value, _values(key, kind.type), before)


def _values(key: str, kind: Any) -> Iterable[str]:
    from msgspec import inspect

    if isinstance(kind, inspect.LiteralType):
        return [str(value) for value in kind.values]
    if isinstance(kind, inspect.BoolType):
        return ("on", "off")
    known = {"format": lambda: FORMATS, "net": _network_names}.get(key, tuple)
    return known()


def _network_names() -> list[str]:
    from imgtool.machine.nets.store import entries

    return [entry.name for entry in entries()]


def _last_part(text: str) -> tuple[str, str]:
    """What stands before the part of an option string that is being typed, and that part."""
    before, comma, part = text.rpartition(",")
    return before + comma, part


def _beginning(incomplete: str, words: Iterable[str], before: str = "") -> list[CompletionItem]:
    return [CompletionItem(before + word) for word in words if word.startswith(incomplete)]
