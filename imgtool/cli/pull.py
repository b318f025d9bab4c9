"""`imgtool pull REF [PATH]`"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from imgtool.cli.context import Context, dry_run_option, output_option, pass_context, progress_option, quiet_option
from imgtool.cli.options import FILE_NAME
from imgtool.cli.registry_options import LOGIN, connection_of, registry_options

if TYPE_CHECKING:
    from imgtool.publish.oci.pull import Pulled


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool pull registry.example.org/images/web:1.4\n"
    "  imgtool pull registry.example.org/images/web:1.4 /var/lib/images/\n"
    "  imgtool pull localhost:5000/web@sha256:… web.qcow2\n"
    f"\n{LOGIN}",
)
@click.argument("reference", metavar="REF")
@click.argument("path", type=FILE_NAME, metavar="[PATH]", required=False)
@click.option("--read-only", is_flag=True, help="Make the image read-only, as those it stands on always are.")
@click.option(
    "--deep", is_flag=True, help="Read the whole disk, and verify it against the registry's content digest."
)
@registry_options
@progress_option
@quiet_option
@dry_run_option
@output_option()
@pass_context
def pull(
    context: Context,
    reference: str,
    path: str | None,
    read_only: bool,
    deep: bool,
    plain_http: bool,
    cert_dir: tuple[str, ...],
    jobs: int,
    retries: int,
    dry_run: bool,
) -> None:
    """Pull the image REF (HOST[:PORT]/NAME[:TAG][@DIGEST]) to PATH, a file or directory; by default the current
    directory.

    The images it stands on go beside it. Those already there, under any name, are used; an interrupted pull resumes
    where it stopped.
    """
    from imgtool.cli.images import qemu_img
    from imgtool.cli.output import emit
    from imgtool.cli.plan import emit_plan
    from imgtool.cli.progress import progress
    from imgtool.publish.oci.pull import PullRequest

    request = PullRequest(
        reference,
        path,
        read_only=read_only,
        deep=deep,
        connection=connection_of(plain_http, cert_dir, jobs, retries),
    )
    if dry_run:
        emit_plan(context, request.plan())
        return
    with progress(context, "pull") as show:
        pulled = request.make(qemu_img(context), progress=show)
    emit(context, pulled, pull_lines(pulled))


def pull_lines(pulled: Pulled) -> Iterator[str]:
    from imgtool.cli.render import short_size
    from imgtool.image.names import printable

    for layer in pulled.layers:
        yield f"{layer.state:<8} {layer.digest}  {short_size(layer.size):>10}  {printable(layer.path)}"
    yield f"{printable(pulled.path)} is {pulled.reference} ({pulled.digest})"
