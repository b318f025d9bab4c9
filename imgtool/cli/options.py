"""The options that image commands share: qemu-img's own letters, with long names beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    StrType = click.ParamType[str]
    IntType = click.ParamType[int]
else:  # generic only in newer versions of click
    StrType = IntType = click.ParamType

F = TypeVar("F", bound="Callable[..., Any]")

CACHES = ("none", "writeback", "writethrough", "directsync", "unsafe")


class FileName(StrType):
    """A name of a file, any bytes: nothing is checked here, shells complete it as a file."""

    name = "filename"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]


class Size(IntType):
    """A size in QEMU's notation, handed on as bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from imgtool.sizes import parse_size

        return value if isinstance(value, int) else parse_size(value)


FILE_NAME = FileName()
SIZE = Size()


def file_argument(
    name: str = "image", *, metavar: str = "FILE", nargs: int = 1, required: bool = True
) -> Callable[[F], F]:
    return click.argument(name, type=FILE_NAME, metavar=metavar, nargs=nargs, required=required)


def format_option(text: str = "The image's format; without it, its header decides.") -> Callable[[F], F]:
    return click.option("-f", "--format", "format_", metavar="FORMAT", help=text)


def image_opts_option(command: F) -> F:
    return click.option(
        "--image-opts", is_flag=True, help="FILE is QEMU's driver=…,file.filename=… instead of a file's name."
    )(command)


def object_option(command: F) -> F:
    return click.option(
        "--object",
        "objects",
        metavar="DEFINITION",
        multiple=True,
        help="A QEMU object, such as a secret: secret,id=s0,file=PATH. May be repeated.",
    )(command)


def force_share_option(text: str = "Read it even while a virtual machine writes it.") -> Callable[[F], F]:
    return click.option("-U", "--force-share", is_flag=True, help=text)


def timeout_option(command: F) -> F:
    return click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="Stop qemu-img after so long.",
    )(command)


def cache_option(text: str) -> Callable[[F], F]:
    return click.option("-t", "--cache", type=click.Choice(CACHES), help=text)


def source_cache_option(command: F) -> F:
    return click.option(
        "-T", "--source-cache", type=click.Choice(CACHES), help="The cache mode for the images that are read."
    )(command)


def options_option(text: str) -> Callable[[F], F]:
    return click.option("-o", "--options", "options", metavar="NAME=VALUE,…", multiple=True, help=text)


def force_option(text: str) -> Callable[[F], F]:
    return click.option("--force", is_flag=True, help=text)


def rate_limit_option(command: F) -> F:
    return click.option("-r", "--rate-limit", type=SIZE, metavar="SIZE", help="At most so many bytes a second.")(
        command
    )


def option_map(given: tuple[str, ...]) -> dict[str, str]:
    """All `-o` of a command line as one mapping; a later one wins, as in qemu-img."""
    from imgtool.qemu.img_argv import parse_options

    merged: dict[str, str] = {}
    for text in given:
        merged.update(parse_options(text))
    return merged
