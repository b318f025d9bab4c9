"""The words that shells complete besides commands, options and files: names and keys that imgtool knows."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from click import Argument, Context
from click.shell_completion import CompletionItem

from imgtool.image.names import printable

if TYPE_CHECKING:
    import msgspec

    from imgtool.chain.graph import Image
    from imgtool.qemu.option_words import Options

_WAITS = ("running", "ssh", "agent", "cloud-init", "serial:")

_PLAIN = re.compile(r"[A-Za-z0-9_@%+.,/][A-Za-z0-9_@%+.,/-]*")
"""What no shell divides or expands, and no command takes for an option."""

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


def accelerators(_: Context, incomplete: str) -> list[CompletionItem]:
    """`--accel`"""
    return _beginning(incomplete, ("auto", "kvm", "tcg", "hvf"))


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


def created_options(ctx: Context, incomplete: str) -> list[CompletionItem]:
    """`-o` of a command that makes an image in the format that it names."""
    from imgtool.qemu.option_words import CREATED

    name = "target_format" if "target_format" in ctx.params else "format_"
    return _options(CREATED.get(ctx.params.get(name) or "raw", {}), incomplete)


def flattened_options(ctx: Context, incomplete: str) -> list[CompletionItem]:
    """`-o` of `chain flatten --to`, whose format is the image's unless it names one."""
    from imgtool.qemu.option_words import CREATED

    return _options(CREATED.get(ctx.params.get("output_format") or _format_of(ctx) or "", {}), incomplete)


def overlay_options(_: Context, incomplete: str) -> list[CompletionItem]:
    """`-o` of `overlay new`"""
    from imgtool.qemu.option_words import CREATED

    return _options(CREATED["qcow2"], incomplete)


def amended_options(ctx: Context, incomplete: str) -> list[CompletionItem]:
    """`-o` of `amend`"""
    from imgtool.qemu.option_words import AMENDED

    return _options(AMENDED.get(ctx.params.get("format_") or _format_of(ctx) or "qcow2", {}), incomplete)


def snapshots(ctx: Context, incomplete: str) -> list[CompletionItem]:
    """The internal snapshots of the images before the cursor: by ID, where a shell would have to quote the name."""
    words = {}
    for image in _images(ctx):
        for one in image.snapshots:
            word = one.name if _PLAIN.fullmatch(one.name) else one.id
            if _PLAIN.fullmatch(word):
                words[word] = printable(one.name)
    return [CompletionItem(word, help=name) for word, name in words.items() if word.startswith(incomplete)]


def defects(_: Context, incomplete: str) -> list[CompletionItem]:
    """`chain repair --only`"""
    from imgtool.chain.findings import KINDS, MENDED

    return [CompletionItem(code, help=KINDS[code].meaning) for code in MENDED if code.startswith(incomplete)]


def recipe_layers(ctx: Context, incomplete: str) -> list[CompletionItem]:
    """`build --from-layer`"""
    names = [layer.get("name") for recipe in _recipes(ctx) for layer in recipe.get("layer", ())]
    return _beginning(incomplete, (name for name in names if isinstance(name, str)))


def recipe_arguments(ctx: Context, incomplete: str) -> list[CompletionItem]:
    """`build --arg NAME=VALUE`"""
    return _beginning(incomplete, (f"{name}=" for recipe in _recipes(ctx) for name in recipe.get("args", ())))


def _recipes(ctx: Context) -> Iterator[dict[str, Any]]:
    """The recipes on the line, as far as they can be read and look like some."""
    import tomllib

    for path in filter(os.path.isfile, _arguments(ctx)):
        try:
            with open(path, "rb") as file:
                found = tomllib.load(file)
        except (OSError, ValueError):
            continue
        layers, arguments = found.get("layer", []), found.get("args", {})
        if isinstance(arguments, dict) and isinstance(layers, list) and all(isinstance(one, dict) for one in layers):
            yield found


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


def _options(known: Options, incomplete: str) -> list[CompletionItem]:
    before, part = _last_part(incomplete)
    key, equals, value = part.partition("=")
    if equals:
        return _beginning(value, known.get(key, ()), f"{before}{key}=")
    return _beginning(part, [f"{name}=" for name in known] + ["help"] * (not before), before)


def _format_of(ctx: Context) -> str | None:
    return next((image.format for image in _images(ctx)), None)


def _images(ctx: Context) -> Iterator[Image]:
    """The images among the words before the cursor, by their headers alone."""
    from imgtool.chain.look import Looker

    looker = Looker()
    for word in _arguments(ctx):
        image, _ = looker.at(os.path.abspath(word))
        if image.format is not None:
            yield image


def _arguments(ctx: Context) -> list[str]:
    """The words before the cursor that are no options, as the shell will have them. click leaves them in `args` when
    the word at the cursor is the value of an option before it."""
    found = list(ctx.args)
    for param in ctx.command.params:
        if isinstance(param, Argument) and (value := ctx.params.get(param.name or "")) is not None:
            found += value if isinstance(value, tuple) else [value]
    return [os.path.expanduser(str(word)) for word in found]


def _network_names() -> list[str]:
    from imgtool.machine.nets.store import entries

    return [entry.name for entry in entries()]


def _last_part(text: str) -> tuple[str, str]:
    """What stands before the part of an option string that is being typed, and that part."""
    before, comma, part = text.rpartition(",")
    return before + comma, part


def _beginning(incomplete: str, words: Iterable[str], before: str = "") -> list[CompletionItem]:
    return [CompletionItem(before + word) for word in words if word.startswith(incomplete)]
