"""`imgtool serve IMAGE`"""

from __future__ import annotations

import click

from imgtool.cli.context import Context, dry_run_option, output_option, pass_context, quiet_option
from imgtool.cli.options import FILE_NAME, file_argument, force_option, format_option


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool serve web.qcow2  # until Ctrl-C; prints nbd+unix:///?socket=…\n"
    "  imgtool serve web.qcow2 --socket web.sock --once & nbdcopy 'nbd+unix:///?socket=web.sock' web.raw\n"
    "  imgtool serve disk.qcow2 --port 10809 --name disk --bitmap nightly\n"
    "  imgtool serve disk.qcow2 --writable --address 0.0.0.0 --port 10809 --tls-creds /etc/pki/qemu",
)
@file_argument(metavar="IMAGE")
@format_option("The format of IMAGE; without it, its header decides.")
@click.option("-w", "--writable", is_flag=True, help="Let clients write to it.")
@click.option("-k", "--socket", type=FILE_NAME, metavar="PATH", help="The unix socket.  [default: one of imgtool's]")
@click.option("--port", type=click.IntRange(0, 65535), metavar="N", help="Listen on TCP instead; 0 is any free port.")
@click.option("--address", metavar="ADDRESS", help="Listen on this address.  [default: 127.0.0.1]")
@click.option("-x", "--name", default="", metavar="NAME", help="The export's name.  [default: nothing]")
@click.option("-B", "--bitmap", metavar="NAME", help="Also export this dirty bitmap of the chain.")
@click.option(
    "--tls-creds",
    type=FILE_NAME,
    metavar="DIR",
    help="Use TLS, with ca-cert.pem, server-cert.pem and server-key.pem from this directory.",
)
@click.option("--tls-any-client", is_flag=True, help="With --tls-creds: do not require client certificates.")
@click.option(
    "-e",
    "--shared",
    "clients",
    metavar="N",
    type=click.IntRange(min=1),
    default=16,
    help="How many clients may connect at once.  [default: 16]",
)
@click.option("--once", is_flag=True, help="Exit when the last client has disconnected.")
@force_option("Even if others stand on IMAGE, its parent has changed since it was made, or anybody can connect.")
@quiet_option
@dry_run_option
@output_option()
@pass_context
def serve(
    context: Context,
    image: str,
    format_: str | None,
    writable: bool,
    socket: str | None,
    port: int | None,
    address: str | None,
    name: str,
    bitmap: str | None,
    tls_creds: str | None,
    tls_any_client: bool,
    clients: int,
    once: bool,
    force: bool,
    dry_run: bool,
) -> None:
    """Serve the disk of IMAGE, with all it stands on, over NBD until imgtool ends; read-only unless --writable is
    given.

    The URI is printed once the server answers. When imgtool ends, even if it is killed, no process and no socket stay
    behind.
    """
    import sys

    from imgtool.cli.output import emit, remark
    from imgtool.cli.plan import emit_plan
    from imgtool.publish.serve import ServeRequest

    request = ServeRequest(
        image,
        context.programs,
        format=format_,
        writable=writable,
        socket=socket,
        address=address,
        port=port,
        name=name,
        bitmap=bitmap,
        tls_creds=tls_creds,
        verify_peer=not tls_any_client,
        clients=clients,
        once=once,
        force=force,
    )
    if dry_run:
        emit_plan(context, request.plan())
        return
    server = request.start()
    try:
        emit(context, server.export, [server.export.uri])
        sys.stdout.flush()
        if sys.stderr.isatty():
            remark(context, "Ctrl-C ends it")
        server.wait()
    except KeyboardInterrupt:
        pass  # what it is told to end by
    finally:
        server.end()
