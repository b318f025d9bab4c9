"""`imgtool layers`: what builds have left, who needs it, whether it is whole."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import click

from imgtool.cli.build import layers_option
from imgtool.cli.context import Context, dry_run_option, output_option, pass_context, progress_option, quiet_option
from imgtool.cli.lazy import Entry, LazyGroup
from imgtool.cli.options import FILE_NAME, SIZE, Word
from imgtool.errors import ImageNotFoundError, UsageError

if TYPE_CHECKING:
    from imgtool.build.prune import Kept, Pruned, Verified
    from imgtool.build.store import Layer, Store

SECTIONS = {
    "Commands": {
        "list": Entry("imgtool.cli.layers:list_", "List all layers."),
        "show": Entry("imgtool.cli.layers:show", "Show one layer: what went into it, and its log."),
        "tree": Entry("imgtool.cli.layers:tree", "Draw the layers as a tree."),
        "verify": Entry("imgtool.cli.layers:verify", "Verify that layers are as they were sealed."),
        "prune": Entry("imgtool.cli.layers:prune", "Remove the layers that nothing needs."),
        "push": Entry("imgtool.cli.layers_share:push", "Push layers to a registry, for other machines."),
        "pull": Entry("imgtool.cli.layers_share:pull", "Pull the layers of a recipe from a registry."),
    }
}


ELSEWHERE = {
    "ls": "imgtool layers list",
    "delete": "imgtool layers prune",
    "rm": "imgtool layers prune",
    "gc": "imgtool layers prune",
    "check": "imgtool layers verify",
}
"""What other programs say."""


@click.group(cls=LazyGroup, sections=SECTIONS, elsewhere=ELSEWHERE)
def layers() -> None:
    """List, verify, share and prune the layers of builds."""


def _store(directory: str | None) -> Store:
    """The store to look into. One that nobody has built into yet is empty; one that was named is there, or its name
    is wrong."""
    from imgtool.build.store import Store
    from imgtool.image.names import printable

    if directory is not None and not os.path.isdir(directory):
        raise ImageNotFoundError(
            f"there is no folder {printable(directory)}", hint="--layers names where layers are kept", path=directory
        )
    return Store(directory)


def _chosen(store: Store, name: str) -> Layer:
    """The layer of this name (`web@packages`, the newest) or key (its first digits)."""
    from imgtool.build.prune import name_of
    from imgtool.image.names import printable

    found = [layer for layer in store.layers() if layer.folder == name or name_of(layer) == name]
    if not found:
        found = [layer for layer in store.layers() if len(name) >= 4 and layer.folder.startswith(name)]
        if len({layer.manifest.key for layer in found}) > 1:
            raise UsageError(f"several layers begin with {printable(name)}", hint="give more digits of the key")
    if not found:
        raise ImageNotFoundError(
            f"there is no layer {printable(name)}", hint="`imgtool layers list` shows them; a name is IMAGE@LAYER"
        )
    return found[-1]


def chosen(store: Store, names: Sequence[str]) -> list[Layer]:
    """The layers of these names, of which a recipe's (.toml) stands for all that its last build used; all layers
    where there are no names."""
    if not names:
        return store.layers()
    return [
        layer
        for name in names
        for layer in (_built(store, name) if name.endswith(".toml") else [_chosen(store, name)])
    ]


def _built(store: Store, recipe: str) -> list[Layer]:
    from imgtool.build.records import last_record
    from imgtool.image.names import absolute, printable

    record = last_record(store, absolute(recipe))
    found = [store.layer(built.folder) for built in record.layers] if record is not None else []
    if not found:
        raise ImageNotFoundError(
            f"there are no layers of {printable(recipe)}", hint=f"`imgtool build {printable(recipe)}` makes them"
        )
    return [layer for layer in found if layer is not None]


@click.command("list", epilog="\b\nExample:\n  imgtool layers list --output json")
@layers_option
@quiet_option
@output_option()
@pass_context
def list_(context: Context, /, layers_: str | None) -> None:
    """List all layers, oldest first, and failures that were kept."""
    from imgtool.build.prune import needs
    from imgtool.cli.output import emit

    store = _store(layers_)
    found = needs(store)
    failed = store.failed()
    emit(context, {"layers": found, "failed": failed}, _list_lines(found, failed))


def _list_lines(found: Sequence[Kept], failed: Sequence[str]) -> Iterator[str]:
    from imgtool.cli.render import date, short_size, table
    from imgtool.image.names import printable

    rows = [
        (
            kept.name,
            _short(kept.folder),
            short_size(kept.size),
            date(int(kept.created)),
            kept.needed_by[0] if kept.needed_by else "nobody",
        )
        for kept in found
    ]
    if rows:
        yield from table(("LAYER", "KEY", "SIZE", "MADE", "NEEDED BY"), rows, right=(2,))
    else:
        yield "no layers"
    for path in failed:
        yield f"kept failure: {printable(path)}"


def _short(folder: str) -> str:
    key, dot, generation = folder.partition(".")
    return key[:12] + dot + generation


@click.command(epilog="\b\nExamples:\n  imgtool layers show web@packages\n  imgtool layers show 3f2a --log")
@click.argument("layer", type=Word("layers"))
@click.option("--log", is_flag=True, help="Print the output of its steps.")
@layers_option
@quiet_option
@output_option()
@pass_context
def show(context: Context, /, layer: str, log: bool, layers_: str | None) -> None:
    """Show LAYER: its manifest and the inputs of its key."""
    import json

    import msgspec

    from imgtool.build.store import KEY_FILE
    from imgtool.cli.output import emit, emit_lines
    from imgtool.cli.render import date, fields, short_size
    from imgtool.image.names import harmless, printable, printable_lines

    found = _chosen(_store(layers_), layer)
    with open(found.log, "rb") as file:
        said = printable_lines(file.read().decode(errors="replace"))
    if log and not context.json:
        emit_lines(context, [said])
        return
    with open(os.path.join(found.path, KEY_FILE), "rb") as file:
        document = json.load(file)
    manifest = msgspec.to_builtins(found.manifest)
    answer = {"path": found.path, "manifest": manifest, "key-document": document, "log": said}
    shown = {**manifest, "created": date(int(found.manifest.created)), "size": short_size(found.manifest.size)}
    shown = {key: value for key, value in shown.items() if key not in ("schema", "mtime-ns") and value is not None}
    pairs = [(key, printable(_word(value))) for key, value in shown.items()]
    step = [(key, harmless(json.dumps(value))) for key, value in document["step"].items() if value]
    emit(context, answer, [*fields([("path", printable(found.path)), *pairs]), "step:", *fields(step, indent="  ")])


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


@click.command(epilog="\b\nExample:\n  imgtool layers tree")
@layers_option
@quiet_option
@output_option()
@pass_context
def tree(context: Context, /, layers_: str | None) -> None:
    """Draw which layer stands on which, bases first."""
    from imgtool.cli.output import emit

    store = _store(layers_)
    found = store.layers()
    emit(context, [layer.manifest for layer in found], _tree_lines(found))


def _tree_lines(found: Sequence[Layer]) -> Iterator[str]:
    from imgtool.build.prune import name_of
    from imgtool.cli.chain import tree_style
    from imgtool.cli.render import short_size
    from imgtool.image.names import printable

    style = tree_style()
    children: dict[str, list[Layer]] = {}
    roots: dict[str, list[Layer]] = {}
    for layer in found:
        if layer.manifest.parent is None:
            roots.setdefault(layer.manifest.base, []).append(layer)
        else:
            children.setdefault(layer.manifest.parent, []).append(layer)

    def draw(here: Sequence[Layer], indent: str) -> Iterator[str]:
        for number, layer in enumerate(here):
            last = number == len(here) - 1
            size = short_size(layer.manifest.size)
            yield f"{indent}{style.last if last else style.branch}{name_of(layer)}  {_short(layer.folder)}  {size}"
            yield from draw(children.get(layer.folder, ()), indent + ("   " if last else style.through))

    if not found:
        yield "no layers"
    for base in sorted(roots):
        yield printable(base)
        yield from draw(roots[base], "")


@click.command(epilog="\b\nExamples:\n  imgtool layers verify\n  imgtool layers verify web@packages --quick")
@click.argument("names", type=Word("layers"), nargs=-1, metavar="[LAYER…]")
@click.option("--quick", is_flag=True, help="Check files and metadata only, not the contents a guest would read.")
@layers_option
@progress_option
@quiet_option
@output_option()
@pass_context
def verify(context: Context, /, names: tuple[str, ...], quick: bool, layers_: str | None) -> int:
    """Verify that layers are as they were sealed. The exit status is 3 if one is not. A recipe (.toml) stands for the
    layers of its last build."""
    from imgtool.build.prune import verify as verify_layers
    from imgtool.cli.output import emit
    from imgtool.cli.progress import progress

    store = _store(layers_)
    with store.using():
        task = partial(progress, context)
        found = verify_layers(store, chosen(store, names), context.qemu_img, quick=quick, task=task)
    emit(context, found, _verify_lines(found))
    return 3 if any(one.verdict != "whole" for one in found) else 0


def _verify_lines(found: Sequence[Verified]) -> Iterator[str]:
    from imgtool.cli.render import bad, good

    for one in found:
        verdict = good(one.verdict) if one.verdict == "whole" else bad(one.verdict)
        yield f"{one.name}  {_short(one.folder)}  {verdict}: {one.message}"
    if not found:
        yield "no layers"


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool layers prune --dry-run\n"
    "  imgtool layers prune --store /srv/images --older-than 30d\n"
    "  imgtool layers prune --all --keep-storage 20G",
)
@click.option("--all", "all_", is_flag=True, help="Also remove what only recipes need; it can be built again.")
@click.option("--older-than", metavar="AGE", help="Remove only what is older than AGE: 12h, 30d.")
@click.option(
    "--keep-storage",
    type=SIZE,
    metavar="SIZE",
    help="Remove only until what is left takes SIZE or less: kept failures first, then layers, least recently used "
    "first.",
)
@click.option(
    "--store",
    "stores",
    multiple=True,
    type=FILE_NAME,
    metavar="DIR",
    help="Look in this directory for images that need layers.",
)
@layers_option
@dry_run_option
@quiet_option
@output_option()
@pass_context
def prune(
    context: Context,
    /,
    all_: bool,
    older_than: str | None,
    keep_storage: int | None,
    stores: tuple[str, ...],
    layers_: str | None,
    dry_run: bool,
) -> None:
    """Remove kept failures, and the layers that no recipe, image or VM needs.

    A recipe needs the layers of its last build; an image needs those it stands on. Images are looked for where the
    layers are, where recipes put their outputs, where imgtool made some, and in --store.
    """
    from imgtool.build.prune import prune as prune_store
    from imgtool.build.recipe import seconds_of
    from imgtool.cli.output import emit
    from imgtool.image.names import absolute

    try:
        age = None if older_than is None else seconds_of(older_than)
    except ValueError:
        raise UsageError(f"{older_than!r} is not an age", hint="such as 90s, 30m, 12h, 7d, 2w") from None
    done = prune_store(
        _store(layers_),
        look_in=[absolute(place) for place in stores],
        older_than=age,
        keep_storage=keep_storage,
        all_recipes=all_,
        dry_run=dry_run,
    )
    emit(context, done, _prune_lines(done, dry_run=dry_run))


def _prune_lines(done: Pruned, *, dry_run: bool) -> Iterator[str]:
    from imgtool.cli.render import counted, short_size
    from imgtool.image.names import printable

    would = "would go" if dry_run else "gone"
    for kept in done.removed:
        yield f"{would}: {kept.name}  {_short(kept.folder)}  {short_size(kept.size)}"
    for path in done.failed:
        yield f"{would}: {printable(path)}"
    yield f"{counted(len(done.removed), 'layer')} {would}, {short_size(done.freed)}; {len(done.kept)} stay"
