"""`imgtool push IMAGE REF`"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from imgtool.cli.context import Context, dry_run_option, output_option, pass_context, progress_option, quiet_option
from imgtool.cli.options import file_argument, force_option, format_option
from imgtool.cli.publishing import annotation_map, annotation_option, publish
from imgtool.cli.registry_options import LOGIN, connection_of, registry_options

if TYPE_CHECKING:
    from imgtool.publish.oci.push import Pushed


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool push web.qcow2 registry.example.org/images/web:1.4\n"
    "  imgtool push web.qcow2 localhost:5000/web --flatten -c\n"
    "  imgtool push web.qcow2 localhost:5000/web --annotation org.opencontainers.image.version=1.4\n"
    f"\n{LOGIN}",
)
@file_argument(metavar="IMAGE")
@click.argument("reference", metavar="REF")
@format_option("The format of IMAGE; without it, its header decides.")
@click.option("--flatten", is_flag=True, help="Push one layer: the whole disk as a standalone qcow2.")
@click.option("-c", "--compress", is_flag=True, help="With --flatten: compress it.")
@click.option("--no-content-digest", is_flag=True, help="Leave out the digest of the disk's contents.")
@click.option(
    "--recipe-digest",
    metavar="DIGEST",
    help="The digest of the recipe the image was built from.  [default: what `build` wrote beside it]",
)
@annotation_option
@force_option("Even if an image of the chain is damaged, or its parent has changed since it was made.")
@registry_options
@progress_option
@quiet_option
@dry_run_option
@output_option()
@pass_context
def push(
    context: Context,
    image: str,
    reference: str,
    format_: str | None,
    flatten: bool,
    compress: bool,
    no_content_digest: bool,
    recipe_digest: str | None,
    annotations: tuple[str, ...],
    force: bool,
    plain_http: bool,
    cert_dir: tuple[str, ...],
    jobs: int,
    retries: int,
    dry_run: bool,
) -> None:
    """Push IMAGE with its chain, one layer per image, as REF (HOST[:PORT]/NAME[:TAG]).

    Layers that the registry has are not sent again; an interrupted push resumes where it stopped. The labels of the
    recipe that an image was built from become annotations.
    """
    from imgtool.publish.oci.push import PushRequest

    request = PushRequest(
        image,
        reference,
        format=format_,
        flatten=flatten,
        compress=compress,
        content=not no_content_digest,
        recipe_digest=recipe_digest,
        annotations=annotation_map(annotations),
        force=force,
        connection=connection_of(plain_http, cert_dir, jobs, retries),
    )
    publish(context, request, "push", _lines, dry_run=dry_run)


def _lines(pushed: Pushed) -> Iterator[str]:
    from imgtool.cli.render import short_size
    from imgtool.image.names import printable

    for layer in pushed.layers:
        yield f"{layer.state:<8} {layer.digest}  {short_size(layer.size):>10}  {printable(layer.path)}"
    yield f"{pushed.reference} is {pushed.digest}"
