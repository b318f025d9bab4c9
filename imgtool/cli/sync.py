"""`imgtool sync IMAGE|DIR HOST:DIR`"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from imgtool.cli.context import Context, dry_run_option, output_option, pass_context, progress_option, quiet_option
from imgtool.cli.options import FILE_NAME, file_argument, force_option, format_option

if TYPE_CHECKING:
    from imgtool.publish.sync.request import Synced


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool sync web.qcow2 root@host:/var/lib/images\n"
    "  imgtool sync --dry-run images/ host:images\n"
    "  imgtool sync --port 2222 -i key images/ me@127.0.0.1:images",
)
@file_argument("source", metavar="IMAGE|DIR")
@click.argument("place", metavar="HOST:DIR")
@format_option("The format of IMAGE; without it, its header decides.")
@click.option("--port", type=click.IntRange(1, 65535), metavar="N", help="The ssh port of the other host.")
@click.option("-i", "--identity", type=FILE_NAME, metavar="FILE", help="The ssh key to use.")
@click.option("-F", "--ssh-config", type=FILE_NAME, metavar="FILE", help="The ssh configuration file to use.")
@click.option(
    "--ssh-option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="An ssh option, as for ssh -o. May be repeated.",
)
@force_option("Even if the parent of an image has changed since it was made.")
@progress_option
@quiet_option
@dry_run_option
@output_option()
@pass_context
def sync(
    context: Context,
    source: str,
    place: str,
    format_: str | None,
    port: int | None,
    identity: str | None,
    ssh_config: str | None,
    options: tuple[str, ...],
    force: bool,
    dry_run: bool,
) -> None:
    """Copy IMAGE with all it stands on, or all images of the directory DIR, to another host over ssh. Only what is
    not there yet, by digest, is sent.

    An image gets its name on the other host only once sha256sum has verified it there, and it names its parent as it
    is stored there. If interrupted, run it again: it resumes where it stopped.
    """
    from imgtool.cli.output import emit, remark
    from imgtool.cli.plan import emit_plan
    from imgtool.cli.progress import progress
    from imgtool.publish.sync.request import SyncRequest
    from imgtool.publish.sync.ssh import Ssh

    ssh = Ssh(port=port, identity=identity, config=ssh_config, options=options)
    request = SyncRequest(source, place, format=format_, ssh=ssh, force=force)
    if dry_run:
        emit_plan(context, request.plan())
        return
    for note in request.notes:
        remark(context, note)
    with progress(context, "sync") as show:
        done = request.make(progress=show)
    emit(context, done, _lines(done))


def _lines(done: Synced) -> Iterator[str]:
    from imgtool.cli.render import counted, short_size
    from imgtool.image.names import printable

    for image in done.images:
        yield f"{image.state:7}  {short_size(image.size):>9}  {printable(image.name)}"
    where = f"{printable(done.host)}:{printable(done.folder)}"
    yield f"{where} has {counted(len(done.images), 'image')}; {short_size(done.sent_bytes)} sent"
