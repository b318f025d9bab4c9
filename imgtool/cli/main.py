"""The `imgtool` command: its groups, its global options, and the one place that exits."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn

import click

from imgtool.cli.context import Context, pass_context
from imgtool.cli.lazy import Entry, LazyGroup
from imgtool.cli.options import Word
from imgtool.cli.output import report, tell_held, warn
from imgtool.errors import ImgtoolError, UsageError
from imgtool.image.names import printable
from imgtool.image.policy_source import deciding

SECTIONS = {
    "Images": {
        "create": Entry("imgtool.cli.create:create", "Create an image."),
        "info": Entry("imgtool.cli.info:info", "Show what an image is."),
        "inspect": Entry("imgtool.cli.inspect:inspect", "Tell whether an untrusted image is safe to open."),
        "check": Entry("imgtool.cli.check:check", "Check an image for internal damage."),
        "convert": Entry("imgtool.cli.convert:convert", "Copy an image into another format, all or nothing."),
        "compare": Entry("imgtool.cli.compare:compare", "Tell whether two images hold the same disk."),
        "resize": Entry("imgtool.cli.resize:resize", "Grow or shrink the disk."),
        "snapshot": Entry("imgtool.cli.snapshot:snapshot", "List, create, apply or delete internal snapshots."),
        "map": Entry("imgtool.cli.map:map_", "Show which parts of the disk hold data, and in which file."),
        "measure": Entry("imgtool.cli.measure:measure", "Show how large a new image would be."),
        "amend": Entry("imgtool.cli.amend:amend", "Change the options of an existing image."),
        "bitmap": Entry("imgtool.cli.bitmap:bitmap", "Change the dirty bitmaps of an image."),
    },
    "Chains": {
        "chain": Entry("imgtool.cli.chain:chain", "Show, verify and change the graph of images."),
        "overlay": Entry("imgtool.cli.overlay:overlay", "Create, list, commit, reset and delete overlays."),
        "commit": Entry("imgtool.cli.commit:commit", "Write an overlay's changes into its backing file."),
        "rebase": Entry("imgtool.cli.rebase:rebase", "Change an overlay's backing file."),
    },
    "Golden images": {
        "build": Entry("imgtool.cli.build:build", "Build a golden image in layers, from a recipe."),
        "layers": Entry("imgtool.cli.layers:layers", "List, verify, share and prune the layers of builds."),
    },
    "Machines": {
        "boot": Entry("imgtool.cli.boot:boot", "Start a virtual machine from an image."),
        "vm": Entry("imgtool.cli.vm:vm", "Inspect and control running VMs."),
        "net": Entry("imgtool.cli.net:net", "Create, show and delete networks for VMs."),
    },
    "Elsewhere": {
        "push": Entry("imgtool.cli.push:push", "Push an image with its chain to a registry."),
        "pull": Entry("imgtool.cli.pull:pull", "Pull an image with its chain from a registry."),
        "export": Entry("imgtool.cli.export:export", "Turn images and machines into what other engines take."),
        "serve": Entry("imgtool.cli.serve:serve", "Serve an image over NBD."),
        "mount": Entry("imgtool.cli.mount:mount", "Mount an image's file system on a directory."),
        "unmount": Entry("imgtool.cli.mount:unmount", "Unmount what `mount` has mounted."),
        "sync": Entry("imgtool.cli.sync:sync", "Copy chains to another host over ssh: only what it lacks."),
        "import": Entry("imgtool.cli.import_:import_", "Turn machines of other engines into profiles."),
    },
    "About imgtool": {
        "doctor": Entry(
            "imgtool.cli.doctor:doctor", "Show what this host has for virtual machines, and what it lacks."
        ),
        "schema": Entry("imgtool.cli.schema:schema", "Print the JSON Schema of a document imgtool reads or writes."),
        "completion": Entry("imgtool.cli.completion:completion", "Print the completion script for a shell."),
    },
}


ELSEWHERE = {
    "run": "imgtool boot",
    "start": "imgtool boot",
    "ps": "imgtool vm list",
    "ls": "imgtool chain show",
    "list": "imgtool chain show",
    "tree": "imgtool chain show",
    "show": "imgtool chain show",
    "clone": "imgtool overlay new",
    "delete": "imgtool overlay delete",
    "rm": "imgtool overlay delete",
    "copy": "imgtool convert",
    "dd": "imgtool convert",
    **{word: f"imgtool chain {word}" for word in ("diff", "flatten", "move", "repair", "shorten", "verify")},
    "mv": "imgtool chain move",
    **{word: f"imgtool vm {word}" for word in ("console", "exec", "log", "ssh", "stop")},
}
"""What other programs say, and commands without their group."""

OF_COMMANDS = ("--output", "-q", "--quiet", "--progress", "--dry-run", "--trust", "--store", "--force")
"""Options of many commands, which some programs have before the command."""


@click.group(
    cls=LazyGroup,
    sections=SECTIONS,
    elsewhere=ELSEWHERE,
)
@click.option(
    "--qemu-img",
    type=Word("files"),
    metavar="PROGRAM",
    is_eager=True,
    expose_value=False,
    callback=lambda ctx, _, value: _use_program(ctx, "qemu-img", value),
    help="The qemu-img to use.  [env: IMGTOOL_QEMU_IMG]",
)
@click.option(
    "--qemu-system",
    type=Word("files"),
    metavar="PROGRAM",
    is_eager=True,
    expose_value=False,
    callback=lambda ctx, _, value: _use_program(ctx, "qemu-system-x86_64", value),
    help="The qemu-system-x86_64 to use.  [env: IMGTOOL_QEMU_SYSTEM_X86_64]",
)
@click.option(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    help="Colour in the output.  [default: auto]",
)
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda ctx, _, wanted: _version(ctx, wanted),
    help="Show the versions of imgtool and of the QEMU programs it found.",
)
@pass_context
def cli(context: Context, color: str, debug: bool) -> None:
    """git and docker-build for virtual machine disks, over stock QEMU."""
    context.debug = debug
    context.color = {"auto": None, "always": True, "never": False}[color]


def _use_program(ctx: click.Context, name: str, program: str | None) -> None:
    if program:
        ctx.ensure_object(Context).given_programs[name] = program


def _version(ctx: click.Context, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from imgtool._version import __version__

    click.echo(f"imgtool {__version__}")
    programs = ctx.ensure_object(Context).programs
    for name in ("qemu-img", "qemu-system-x86_64"):
        try:
            click.echo(f"{name} {programs.version(name).text}  {programs.find(name)}")
        except ImgtoolError as error:
            click.echo(f"{name}: {error.message}")
    ctx.exit()


class _Terminated(BaseException):
    """SIGTERM or SIGHUP came: unwind, so that programs end and unfinished files go, then die of it."""

    def __init__(self, number: int) -> None:
        self.number = number


def _on_signal(number: int, _: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)
    raise _Terminated(number)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console script. Exits: 0 done, 1 failed or refused, 2 usage, 3 problems found, 128+N ended by signal N."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    _open_standard_streams()
    _escape_what_cannot_be_shown()
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        # Some services start programs so. The kernel would then not say how those ended that imgtool starts.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _on_signal)
    if "_IMGTOOL_COMPLETE" in os.environ:
        from imgtool.cli.completion import answer

        answer()
    context = Context()
    try:
        with deciding(lambda: context.policy):
            status = _run(words, context)
            if status == 0:
                _warn_of_what_is_forgotten(context)
            _warn_of_what_was_given_up(context)
            tell_held(context)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader of stdout left; nothing more can be said there, and Python must not try at exit.
        sys.stdout = None
        status = 128 + signal.SIGPIPE
    except OSError as error:
        sys.stdout = None
        _report(context, words, _from_os(error))
        status = ImgtoolError.exit_status
    if arguments is None:
        leave(status)
    sys.exit(status)


def _warn_of_what_is_forgotten(context: Context) -> None:
    """An overlay that was just made outside its base's directory, and that the next command will refuse to open."""
    if "imgtool.image.remembered" not in sys.modules:
        return
    from imgtool.image import remembered

    while remembered.unkept:
        (directory, file), error = remembered.unkept.popitem()
        place, beside = printable(directory), printable(os.path.dirname(file))
        why = f"{printable(remembered.path())}: {error.strerror}"
        warn(context, f"that images in {place} may refer to {beside} cannot be noted ({why}): use --trust {beside}")


def _warn_of_what_was_given_up(context: Context) -> None:
    """Changes that were broken off some time, and that nobody will finish any more."""
    if "imgtool.operations.journal" not in sys.modules:
        return
    from imgtool.operations.journal import given_up

    while given_up:
        path, why = given_up.pop(0)
        warn(
            context,
            f"a change that was broken off earlier could not be finished: {printable(path)}: {why}. Every image "
            "reads as before it or as after; run that command again",
        )


def _open_standard_streams() -> None:
    """Standard streams that were closed (`>&-`) lead nowhere: else the next file or pipe that is opened gets their
    number, and answers are written into it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: this one
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115 - stays open


def _escape_what_cannot_be_shown() -> None:
    """In a locale that is not UTF-8 the characters it lacks, as the `…` of a help text may be, are escaped."""
    import io

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() != "utf-8":
            stream.reconfigure(errors="backslashreplace")


def leave(status: int) -> NoReturn:
    """Ends the process at once. All is done and written; that Python takes itself apart first is a tenth of the time
    that most commands take."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(status)


def _run(words: list[str], context: Context) -> int:
    stdout = sys.stdout
    try:
        result: Any = cli.main(args=words, prog_name="imgtool", standalone_mode=False, obj=context)
        return result if isinstance(result, int) else 0
    except ImgtoolError as error:
        _report(context, words, error)
        return error.exit_status
    except click.UsageError as error:
        return _misused(context, words, error)
    except click.exceptions.Exit as done:
        return done.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("imgtool: interrupted", err=True)
        return 128 + signal.SIGINT
    except _Terminated as terminated:
        return 128 + terminated.number
    except SystemExit:
        # Where a reader left, click puts something else there and ends with 1, by which `compare` says "different".
        if sys.stdout is not stdout:
            raise BrokenPipeError from None
        raise
    except BrokenPipeError:
        raise
    except OSError as error:
        _report(context, words, _from_os(error))
        _let_go_of_full_stdout()
        return ImgtoolError.exit_status
    except Exception as error:
        if context.debug or "--debug" in words:
            raise
        bug = ImgtoolError(
            f"imgtool itself failed: {type(error).__name__}: {error}",
            hint="this is a bug; run the command again as `imgtool --debug …` and report what it prints",
        )
        _report(context, words, bug)
        return ImgtoolError.exit_status


def _let_go_of_full_stdout() -> None:
    """Where the error that was just reported is that of stdout, it is not to be met again at the end."""
    try:
        sys.stdout.flush()
    except OSError:
        sys.stdout = None


def _report(context: Context, words: list[str], error: ImgtoolError) -> None:
    if context.debug or "--debug" in words:
        import traceback

        traceback.print_exc()
    # An error in the words themselves comes before --output was looked at.
    if "--output=json" in words or ("--output", "json") in itertools.pairwise(words):
        context.output = "json"
    _warn_of_what_was_given_up(context)
    report(context, error)


def _misused(context: Context, words: list[str], error: click.UsageError) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
    else:
        _report(context, words, _from_click(error))
    return UsageError.exit_status


def _from_click(error: click.UsageError) -> UsageError:
    return UsageError(" ".join(error.format_message().split()), hint=_usage_hint(error))


def _usage_hint(error: click.UsageError) -> str:
    path = error.ctx.command_path if error.ctx else "imgtool"
    hint = f"`{path} --help` shows how it is used"
    in_group = error.ctx is None or isinstance(error.ctx.command, click.Group)
    if isinstance(error, click.NoSuchOption):
        if in_group and error.option_name in OF_COMMANDS:
            return f"it stands behind the command: `{path} COMMAND {error.option_name} …`"
        if error.option_name == "--json":
            return "write `--output json`"
        if error.possibilities:
            return hint
    elif isinstance(error, click.BadParameter) and not isinstance(error, click.MissingParameter):
        return hint  # the words stand where they should
    if error.ctx is None or in_group:
        return hint
    return f"write `{path} {' '.join(error.ctx.command.collect_usage_pieces(error.ctx))}`; {hint}"


def _from_os(error: OSError) -> ImgtoolError:
    try:
        os.getcwd()
    except OSError:
        return ImgtoolError("the current directory no longer exists", hint="change to another directory first")
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else None
    return ImgtoolError(error.strerror or str(error), path=name)
