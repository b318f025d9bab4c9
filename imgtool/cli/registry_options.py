"""The options of all commands that talk to a registry."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from imgtool.cli.options import FILE_NAME

if TYPE_CHECKING:
    from imgtool.publish.oci.connection import Connection

F = TypeVar("F", bound="Callable[..., Any]")

LOGIN = (
    "Credentials are read from docker's configuration (written by `docker login`), CA and client certificates from "
    "/etc/docker/certs.d/HOST:PORT and ~/.config/docker/certs.d/HOST:PORT. HTTPS is used for all registries, except "
    "those on this machine that do not offer it."
)


def registry_options(command: F) -> F:
    """Adds `plain_http`, `cert_dir`, `jobs`, `retries`; `connection_of` makes a Connection of them."""
    options: list[Callable[[F], F]] = [
        click.option("--plain-http", is_flag=True, help="Use plain HTTP, wherever the registry is."),
        click.option(
            "--cert-dir",
            type=FILE_NAME,
            metavar="DIR",
            multiple=True,
            help="A directory with CA certificates (*.crt) and client certificates (*.cert and *.key) for "
            "the registry.",
        ),
        click.option(
            "-j",
            "--jobs",
            type=click.IntRange(1, 64),
            default=4,
            metavar="N",
            help="Number of parallel transfers.  [default: 4]",
        ),
        click.option(
            "--retries",
            type=click.IntRange(0),
            default=5,
            metavar="N",
            help="Resume a broken transfer at most N times in a row without progress.  [default: 5]",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def connection_of(plain_http: bool, cert_dir: tuple[str, ...], jobs: int, retries: int) -> Connection:
    from imgtool.errors import UsageError
    from imgtool.image.names import printable
    from imgtool.publish.oci.connection import Connection

    for folder in cert_dir:
        if not os.path.isdir(folder):
            raise UsageError(f"{printable(folder)} is no directory", hint="it holds *.crt, or *.cert and *.key")
    return Connection(plain_http=plain_http, certificates=cert_dir, jobs=jobs, retries=retries)
