"""`imgtool layers push|pull`: a build cache that several machines share."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import click

from imgtool.cli.build import arg_option, arguments_of, layers_option
from imgtool.cli.context import Context, output_option, pass_context, progress_option, quiet_option
from imgtool.cli.options import FILE_NAME, Word
from imgtool.cli.registry_options import LOGIN, connection_of, registry_options

if TYPE_CHECKING:
    from imgtool.build.sharing import Shared


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool layers push registry.example.org/cache/images\n"
    "  imgtool layers push localhost:5000/cache web@packages\n"
    "  imgtool layers push localhost:5000/cache web.toml\n"
    f"\n{LOGIN}"
)
@click.argument("repository", metavar="REPOSITORY")
@click.argument("names", type=Word("layers"), metavar="[LAYER]…", nargs=-1)
@layers_option
@registry_options
@progress_option
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
    key as the tag. Layers already there are left as they are. A recipe (.toml) stands for the layers of its last
    build.
    """
    from imgtool.build.sharing import push_layers
    from imgtool.build.store import Store
    from imgtool.cli.layers import chosen
    from imgtool.cli.output import emit
    from imgtool.cli.progress import progress
    from imgtool.publish.buildcache import LayerCache

    cache = LayerCache(repository, connection=connection_of(plain_http, cert_dir, jobs, retries))
    store = Store(layers_)
    with store.using():
        found = push_layers(store, chosen(store, names), cache, partial(progress, context))
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
@progress_option
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
    from imgtool.build.sharing import pull_layers
    from imgtool.build.store import Store
    from imgtool.cli.fetching import fetcher
    from imgtool.cli.output import emit
    from imgtool.cli.progress import progress
    from imgtool.publish.buildcache import LayerCache

    connection = connection_of(plain_http, cert_dir, jobs, retries)
    store, loaded = Store(layers_), load_recipe(recipe, arguments_of(args_))
    refuse_unknown(loaded)
    with fetching(fetcher(context, connection)), store.using(), trusting(store, loaded):
        cache = LayerCache(repository, connection=connection)
        found = pull_layers(store, loaded, cache, context.qemu_img, partial(progress, context))
    emit(context, found, _lines(found))


def _lines(found: list[Shared]) -> Iterator[str]:
    for layer in found:
        yield f"{layer.state:<8} {layer.key[:12]}  {layer.name}"
