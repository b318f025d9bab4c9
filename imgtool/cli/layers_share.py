"""`imgtool layers push|pull`: a build cache that several machines share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import click
import msgspec

from imgtool.cli.build import arg_option, arguments_of, layers_option
from imgtool.cli.context import Context, output_option, pass_context, quiet_option
from imgtool.cli.options import FILE_NAME, Word
from imgtool.cli.registry_options import LOGIN, connection_of, registry_options

if TYPE_CHECKING:
    from imgtool.build.keys import KeyDocument
    from imgtool.build.layers import Ground
    from imgtool.build.plan import Inputs
    from imgtool.build.recipe import Loaded
    from imgtool.build.store import Layer, Store
    from imgtool.publish.buildcache import Found
    from imgtool.publish.oci.connection import Connection
    from imgtool.publish.oci.reference import Reference
    from imgtool.qemu.qemu_img import QemuImg


class Shared(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """One layer of a push or pull."""

    name: str
    """`web@packages`"""
    key: str
    """The SHA-256, in hex, of everything that went into it."""
    state: Literal["present", "pushed", "pulled", "missing"]
    """missing: neither the store nor the repository has it."""
    bytes: int = 0
    """What was sent or fetched."""


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool layers push registry.example.org/cache/images\n"
    "  imgtool layers push localhost:5000/cache web@packages\n"
    f"\n{LOGIN}"
)
@click.argument("repository", metavar="REPOSITORY")
@click.argument("names", type=Word("layers"), metavar="[LAYER]…", nargs=-1)
@layers_option
@registry_options
@quiet_option
@output_option()
@pass_context
def push(
    context: Context,
    /,
    repository: str,
    names: tuple[str, ...],
    layers_: str | None,
    plain_http: bool,
    cert_dir: tuple[str, ...],
    jobs: int,
    retries: int,
) -> None:
    """Push layers of the store, all of them or those named, with what they stand on, to REPOSITORY, each under its
    key as the tag. Layers already there are left as they are.
    """
    from imgtool.build.store import Store
    from imgtool.cli.layers import _chosen
    from imgtool.cli.output import emit

    store = Store(layers_)
    with store.using():
        chosen = [_chosen(store, name) for name in names] or store.layers()
        found = push_layers(
            store, chosen, _repository(repository), connection_of(plain_http, cert_dir, jobs, retries)
        )
    emit(context, found, _lines(found))


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool layers pull registry.example.org/cache/images web.toml && imgtool build web.toml\n"
    f"\n{LOGIN}"
)
@click.argument("repository", metavar="REPOSITORY")
@click.argument("recipe", type=FILE_NAME, metavar="RECIPE")
@arg_option
@layers_option
@registry_options
@quiet_option
@output_option()
@pass_context
def pull(
    context: Context,
    /,
    repository: str,
    recipe: str,
    args_: tuple[str, ...],
    layers_: str | None,
    plain_http: bool,
    cert_dir: tuple[str, ...],
    jobs: int,
    retries: int,
) -> None:
    """Pull from REPOSITORY the layers that a build of RECIPE can use.

    The contents of each layer are verified against the repository's record, which anyone who may push there controls.
    """
    from imgtool.build.base import fetching, refuse_unknown
    from imgtool.build.engine import trusting
    from imgtool.build.recipe import load_recipe
    from imgtool.build.store import Store
    from imgtool.cli.fetching import fetcher
    from imgtool.cli.output import emit

    connection = connection_of(plain_http, cert_dir, jobs, retries)
    store, loaded = Store(layers_), load_recipe(recipe, arguments_of(args_))
    refuse_unknown(loaded)
    with fetching(fetcher(context, connection)), store.using(), trusting(store, loaded):
        found = pull_layers(store, loaded, _repository(repository), connection, context.qemu_img)
    emit(context, found, _lines(found))


def _repository(text: str) -> Reference:
    from imgtool.errors import UsageError
    from imgtool.publish.oci.reference import parse_reference

    found = parse_reference(text)
    if found.digest is not None or ":" in text.rpartition("/")[2]:
        raise UsageError("a repository has no tag here: layers go under their keys", hint="HOST[:PORT]/NAME")
    return found


def _lines(found: list[Shared]) -> Iterator[str]:
    for layer in found:
        yield f"{layer.state:<8} {layer.key[:12]}  {layer.name}"


def push_layers(store: Store, layers: list[Layer], repository: Reference, connection: Connection) -> list[Shared]:
    """Pushes `layers` and those that they stand on, these first. Layers made by hand are no one else's."""
    from imgtool.build.prune import name_of
    from imgtool.build.store import FETCHED, KEY_FILE, LOG
    from imgtool.publish.buildcache import CachedLayer, find, push_layer

    wanted = {one.folder: one for layer in layers for one in reversed(store.chain(layer))}
    found = []
    for layer in wanted.values():
        manifest = layer.manifest
        if manifest.by_hand or not store.is_whole(layer):
            continue
        if find(repository, manifest.key, connection) is not None:
            found.append(Shared(name=name_of(layer), key=manifest.key, state="present"))
            continue
        below = store.chain(layer)[1:2]
        cached = CachedLayer(
            key=manifest.key,
            below=below[0].manifest.key if below else manifest.base_content.partition(":")[2],
            content=manifest.content,
            virtual_size=manifest.virtual_size,
            document=msgspec.to_builtins(msgspec.structs.replace(manifest, base="", parent=None)),
        )
        sent = push_layer(
            repository, cached, layer.image, layer.path, [KEY_FILE, LOG, FETCHED], connection=connection
        )
        found.append(Shared(name=name_of(layer), key=manifest.key, state="pushed", bytes=sent))
    return found


def pull_layers(
    store: Store, loaded: Loaded, repository: Reference, connection: Connection, qemu_img: QemuImg
) -> list[Shared]:
    """Brings the recipe's layers into the store, one after the other, until one is missing: only then is known what
    the next one is called."""
    from imgtool.build.layers import Ground
    from imgtool.build.memory import Memory
    from imgtool.build.plan import gather
    from imgtool.publish.buildcache import find

    memory = Memory()
    store.prepare()
    inputs = gather(loaded, store, memory, qemu_img)
    ground = Ground.of_base(inputs.base)
    shared = []
    for number, wanted in enumerate(loaded.recipe.layers):
        document = inputs.document(number, ground.content, memory)
        key, name = document.key(), f"{loaded.recipe.image.name}@{wanted.name}"
        with store.claim(key):
            layer = store.find(key)
            fetched = None if layer is not None else find(repository, key, connection)
            if layer is None and fetched is None:
                shared.append(Shared(name=name, key=key, state="missing"))
                break
            size = 0
            if layer is None:
                assert fetched is not None
                layer = _bring(
                    store, inputs, document, wanted.name, ground, fetched, repository, connection, qemu_img
                )
                size = fetched.image.size + fetched.files.size
        shared.append(Shared(name=name, key=key, state="pulled" if size else "present", bytes=size))
        ground = Ground.of_layer(layer)
    return shared


def _bring(
    store: Store,
    inputs: Inputs,
    document: KeyDocument,
    name: str,
    ground: Ground,
    found: Found,
    repository: Reference,
    connection: Connection,
    qemu_img: QemuImg,
) -> Layer:
    """Fetches a layer into the store and puts it on `ground`. DigestError when it is not what is said of it."""
    from imgtool.build.keys import canonical
    from imgtool.build.layers import image_name, stand_on
    from imgtool.build.store import FETCHED, KEY_FILE, LOG, MANIFEST, Manifest, encode, write_file
    from imgtool.chain.content import digest_of
    from imgtool.image import remembered
    from imgtool.publish.archive import unpack
    from imgtool.publish.buildcache import fetch_layer
    from imgtool.publish.oci.errors import DigestError, RegistryError
    from imgtool.publish.oci.transfer import downloading

    below = ground.layer
    expected = below.manifest.key if below is not None else inputs.base.content.partition(":")[2]
    if found.layer.below != expected:
        raise RegistryError(f"the layer {found.layer.key} stands on another than its key says")
    if below is not None:
        stand_on(store, below, inputs.base)
    parts = [store.path(f".imgtool-{one.digest.replace(':', '-')[:48]}.part") for one in (found.image, found.files)]
    work = store.work()
    try:
        with contextlib.ExitStack() as stack:
            image, files = (stack.enter_context(downloading(part)) for part in parts)
            fetch_layer(repository, found, image, files, connection)
            unpack(parts[1], work.path, [KEY_FILE, LOG, FETCHED])
            os.unlink(parts[1])
            overlay = os.path.join(work.path, image_name(name))
            os.rename(parts[0], overlay)
            _stand_on(image, ground)
            os.fchmod(image, 0o444)
            os.fsync(image)
        content = digest_of(overlay, format="qcow2", qemu_img=qemu_img)
        if content != found.layer.content:
            raise DigestError(f"a guest would read another disk of the layer {name} than the repository says")
        status = os.stat(overlay)
        try:
            manifest = msgspec.convert(found.layer.document, Manifest)
        except msgspec.ValidationError as error:
            raise RegistryError(f"the layer {found.layer.key} cannot be understood: {error}") from error
        manifest = msgspec.structs.replace(
            manifest,
            recipe=inputs.loaded.recipe.image.name,
            layer=name,
            key=found.layer.key,
            parent=None if below is None else below.folder,
            base=inputs.base.path,
            base_format=inputs.base.format,
            base_content=inputs.base.content,
            content=content,
            image=image_name(name),
            virtual_size=document.disk.size,
            size=status.st_size,
            mtime_ns=status.st_mtime_ns,
            by_hand=False,
        )
        write_file(os.path.join(work.path, KEY_FILE), canonical(document))
        write_file(os.path.join(work.path, MANIFEST), encode(manifest))
        layer = store.publish(work, store.free_name(found.layer.key))
    except BaseException:
        store.drop(work)
        raise
    remembered.remember(layer.image, ground.image)
    return layer


def _stand_on(fd: int, ground: Ground) -> None:
    """Has the overlay open at `fd`, in a folder of the store, name what it stands on there, and remember it."""
    from imgtool.build.layers import reference_to
    from imgtool.image.anchor import edited_head, write_anchor
    from imgtool.image.header import read_header
    from imgtool.operations.anchoring import anchor_to

    os.pwrite(fd, edited_head(fd, anchor=None, backing=(os.fsencode(reference_to(ground)), ground.format)), 0)
    write_anchor(fd, anchor_to(ground.image, read_header(fd, format="qcow2"), content=ground.content))
