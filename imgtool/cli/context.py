"""What every command shares: how to answer, where the programs are, how loud to be."""

from __future__ import annotations

import os
import sys
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgtool.cli.settings import Settings
    from imgtool.image.policy import Policy
    from imgtool.qemu.process import Limits
    from imgtool.qemu.programs import Programs
    from imgtool.qemu.qemu_img import QemuImg

    class Bounds(TypedDict):
        """The limits of a QemuImg."""

        limits: Limits
        long_limits: Limits


Output = Literal["human", "json", "dot", "mermaid", "svg"]
ProgressMode = Literal["auto", "json", "none"]


class Context:
    """One run of imgtool. Commands get it with `@pass_context`."""

    def __init__(self) -> None:
        self.output: str = "human"
        self.quiet = False
        self.debug = False
        self.color: bool | None = None
        self.progress: ProgressMode = "auto"
        self.given_programs: dict[str, str] = {}
        self.trusted: list[str] = []
        """Words of --trust."""
        self.named: list[str] = []
        """Files and directories on the command line."""
        self.held: list[tuple[str, str]] = []
        """(label, text) of the warnings and notes that wait for the end of a command that answers in JSON: should it
        fail, its one error document is all that stderr gets."""
        self.limit_memory: int | None = None
        self.limit_cpu: int | None = None
        self._programs: Programs | None = None

    @property
    def json(self) -> bool:
        return self.output == "json"

    @property
    def programs(self) -> Programs:
        if self._programs is None:
            from imgtool.qemu.programs import Programs

            self._programs = Programs(self.given_programs)
        return self._programs

    @cached_property
    def settings(self) -> Settings | None:
        """The user's configuration, read when it is first asked for; None where there is none."""
        from imgtool.cli.config_path import config_path

        path = config_path()
        if path is None:
            return None
        from imgtool.cli.settings import read_settings

        return read_settings(path)

    @property
    def policy(self) -> Policy:
        """What images may refer to: what the configuration and --trust say, and what stands on the command line."""
        from imgtool.image.policy import Policy

        policy = Policy(own_references=True) if self.settings is None else self.settings.policy.policy()
        return policy.trusting(self.trusted).naming(*self.named)

    def limits(self, seconds: float | None = None) -> Bounds:
        """The bounds on qemu-img, as QemuImg takes them; `seconds` is what --timeout says."""
        from msgspec.structs import replace

        from imgtool.qemu.img_base import LONG_LIMITS, QUICK_LIMITS

        quick = QUICK_LIMITS if self.settings is None else self.settings.limits.on(QUICK_LIMITS)
        quick = replace(
            quick,
            seconds=seconds or quick.seconds,
            cpu_seconds=self.limit_cpu or quick.cpu_seconds,
            address_space=self.limit_memory or quick.address_space,
        )
        return {
            "limits": quick,
            "long_limits": replace(LONG_LIMITS, seconds=seconds, address_space=quick.address_space),
        }

    @property
    def qemu_img(self) -> QemuImg:
        from imgtool.qemu.qemu_img import QemuImg

        return QemuImg(self.programs, **self.limits())


pass_context = click.make_pass_decorator(Context, ensure=True)

F = TypeVar("F", bound="Callable[..., Any]")


def _store(name: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """An option that lands in the Context and is not handed to the command."""

    def callback(ctx: click.Context, _: click.Parameter, value: Any) -> Any:
        if value is not None and value is not False:
            setattr(ctx.ensure_object(Context), name, value)
        return value

    return callback


def output_option(*formats: Output) -> Callable[[F], F]:
    """`--output human|json` (and `formats` besides): how the answer on stdout is written."""
    return click.option(
        "--output",
        type=click.Choice(["human", "json", *formats]),
        is_eager=True,
        expose_value=False,
        callback=_store("output"),
        help="Output format.  [default: human]",
    )


def quiet_option(command: F) -> F:
    """`-q`: no progress, no remarks."""
    return click.option(
        "-q",
        "--quiet",
        is_flag=True,
        expose_value=False,
        callback=_store("quiet"),
        help="Show neither progress nor remarks.",
    )(command)


def progress_option(command: F) -> F:
    """`-p` and `--progress`: a bar is shown on a terminal anyway; `--progress json` is for programs."""
    command = click.option(
        "--progress",
        type=click.Choice(["auto", "json", "none"]),
        expose_value=False,
        callback=_store("progress"),
        help="On stderr: a bar on a terminal, one JSON object per line, or nothing.  [default: auto]",
    )(command)
    # qemu-img's -p asks for what imgtool does by itself; it is taken so that old command lines keep working.
    return click.option("-p", "_progress", is_flag=True, expose_value=False, hidden=True)(command)


def dry_run_option(command: F) -> F:
    return click.option(
        "--dry-run", is_flag=True, help="Print the plan (commands, images touched) without changing anything."
    )(command)


def want_color(context: Context, stream: Any) -> bool:
    """`--color` if given, else NO_COLOR (no-color.org), else whether `stream` is a terminal, and not a dumb one."""
    if context.color is not None:
        return context.color
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return bool(stream.isatty())


def is_terminal() -> bool:
    """Whether a person watches stderr, where progress and remarks go."""
    return sys.stderr is not None and sys.stderr.isatty()
