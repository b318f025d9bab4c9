"""The options that image commands share: qemu-img's own letters, with long names beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from imgtool.cli.context import Context
from imgtool.errors import UsageError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    StrType = click.ParamType[str]
    IntType = click.ParamType[int]
else:  # generic only in newer versions of click
    StrType = IntType = click.ParamType

F = TypeVar("F", bound="Callable[..., Any]")

CACHES = ("none", "writeback", "writethrough", "directsync", "unsafe")


class FileName(StrType):
    """A name of a file, any bytes: nothing is checked here, shells complete it as a file. Images may refer to it, as
    to everything that the user named."""

    name = "filename"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        name = str(value)
        if ctx is not None and name:
            ctx.ensure_object(Context).named.append(name)
        return name

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]


class Size(IntType):
    """A size in QEMU's notation, handed on as bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from imgtool.sizes import parse_size

        try:
            return value if isinstance(value, int) else parse_size(value)
        except UsageError as error:
            if ctx is not None and isinstance(param, click.Argument):
                form = " ".join([ctx.command_path, *ctx.command.collect_usage_pieces(ctx)])
                error.hint = f"{error.hint}; write `{form}`" if error.hint else f"write `{form}`"
            raise


class Word(StrType):
    """A word that shells complete by the function `words` of `imgtool.cli.words`. Any other word is taken, too."""

    name = "text"

    def __init__(self, words: str) -> None:
        self._words = words

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from imgtool.cli import words

        found: list[CompletionItem] = getattr(words, self._words)(ctx, incomplete)
        return found


FILE_NAME = FileName()
SIZE = Size()
FORMAT = Word("formats")
SNAPSHOT = Word("snapshots")


def file_argument(
    name: str = "image", *, metavar: str = "FILE", nargs: int = 1, required: bool = True
) -> Callable[[F], F]:
    """An image or more on the command line; with it the option --trust."""

    def decorate(command: F) -> F:
        argument = click.argument(name, type=FILE_NAME, metavar=metavar, nargs=nargs, required=required)
        return trust_option(argument(command))

    return decorate


def trust_option(command: F) -> F:
    """`--trust`, unless the command has it already."""
    if any(param.name == "trust" for param in getattr(command, "__click_params__", ())):
        return command
    return click.option(
        "--trust",
        type=Word("files"),
        multiple=True,
        metavar="WORD",
        expose_value=False,
        callback=_trust,
        help="Let images refer to this: a directory (written with a slash), a protocol such as nbd, or "
        "guessed-formats. May be repeated.",
    )(command)


def _trust(ctx: click.Context, _: click.Parameter, words: tuple[str, ...]) -> None:
    if words:
        from imgtool.image.policy import Policy

        Policy().trusting(words)  # what is no word is said at once
        ctx.ensure_object(Context).trusted.extend(words)


def format_option(text: str = "The image's format; without it, its header decides.") -> Callable[[F], F]:
    return click.option("-f", "--format", "format_", metavar="FORMAT", type=FORMAT, help=text)


def second_format_option(name: str, text: str) -> Callable[[F], F]:
    """-F: the format of the other image that a command is about, `--NAME` in full."""
    return click.option("-F", f"--{name}", type=FORMAT, metavar="FORMAT", help=text)


def image_opts_option(command: F) -> F:
    return click.option(
        "--image-opts", is_flag=True, help="FILE is a QEMU option string (driver=…,file.filename=…), not a file name."
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


def timeout_option(*, default: str) -> Callable[[F], F]:
    """`--timeout`, and with it the other limits on qemu-img; `default` is what --help says of this command's."""

    def added(command: F) -> F:
        for name, kind, metavar, text in reversed(_LIMITS):
            command = click.option(
                f"--{name}", type=kind, metavar=metavar, expose_value=False, callback=_limit, help=text
            )(command)
        return click.option(
            "--timeout",
            type=click.FloatRange(min=0, min_open=True),
            metavar="SECONDS",
            help=f"Stop qemu-img after this long.  [default: {default}]",
        )(command)

    return added


_LIMITS: tuple[tuple[str, click.ParamType[int], str, str], ...] = (
    ("limit-memory", SIZE, "SIZE", "Let qemu-img use this much address space.  [default: 2G]"),
    (
        "limit-cpu",
        click.IntRange(min=1),
        "SECONDS",
        "Let qemu-img use this much CPU time for quick commands.  [default: 30]",
    ),
)


def _limit(ctx: click.Context, param: click.Parameter, value: int | None) -> None:
    if value is not None:
        setattr(ctx.ensure_object(Context), str(param.name), value)


def cache_option(text: str) -> Callable[[F], F]:
    return click.option("-t", "--cache", type=click.Choice(CACHES), help=text)


def source_cache_option(command: F) -> F:
    return click.option(
        "-T", "--source-cache", type=click.Choice(CACHES), help="The cache mode for the images that are read."
    )(command)


def options_option(text: str, *, words: str = "created_options") -> Callable[[F], F]:
    """`-o`; shells complete it by the function `words` of `imgtool.cli.words`."""
    kind = Word(words)
    return click.option("-o", "--options", "options", type=kind, metavar="NAME=VALUE,…", multiple=True, help=text)


def store_option(text: str = "Also look for dependents in this directory and below.") -> Callable[[F], F]:
    return click.option(
        "--store", "stores", type=FILE_NAME, metavar="DIR", multiple=True, help=f"{text} May be repeated."
    )


def force_option(text: str) -> Callable[[F], F]:
    return click.option("--force", is_flag=True, help=text)


def rate_limit_option(command: F) -> F:
    return click.option("-r", "--rate-limit", type=SIZE, metavar="SIZE", help="At most this many bytes per second.")(
        command
    )


def option_map(given: tuple[str, ...]) -> dict[str, str]:
    """All `-o` of a command line as one mapping; a later one wins, as in qemu-img."""
    from imgtool.qemu.img_argv import parse_options

    merged: dict[str, str] = {}
    for text in given:
        merged.update(parse_options(text))
    return merged
