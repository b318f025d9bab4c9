"""`imgtool vm …`: VMs that run."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from imgtool.cli.context import Context, output_option, pass_context, quiet_option
from imgtool.cli.lazy import Entry, LazyGroup
from imgtool.cli.options import FILE_NAME, Word, force_option

if TYPE_CHECKING:
    from imgtool.machine.control import Steering
    from imgtool.machine.serial import Follower

_LONGEST_LINE = 1 << 20
"""Bytes of the log after which it is taken for one, wherever it ends."""

SECTIONS = {
    "Commands": {
        "list": Entry("imgtool.cli.vm_show:list_", "List running VMs."),
        "show": Entry("imgtool.cli.vm_show:show", "Show the state, parts and files of a VM."),
        "wait": Entry("imgtool.cli.vm:wait", "Wait until a guest is ready."),
        "console": Entry("imgtool.cli.vm:console", "Connect to a VM's serial console."),
        "ssh": Entry("imgtool.cli.vm:ssh", "Log in to a guest, or run a command there."),
        "exec": Entry("imgtool.cli.vm:exec_", "Run a command in a guest through its agent."),
        "log": Entry("imgtool.cli.vm:log", "Show the output of a VM's serial console."),
        "screenshot": Entry("imgtool.cli.vm:screenshot", "Save a VM's screen to a file."),
        "stop": Entry("imgtool.cli.vm:stop", "Ask a guest to power off, and make sure that it does."),
        "kill": Entry("imgtool.cli.vm:kill", "End a VM at once."),
        "reset": Entry("imgtool.cli.vm:reset", "Press the reset button."),
        "pause": Entry("imgtool.cli.vm:pause", "Pause a VM's CPUs."),
        "resume": Entry("imgtool.cli.vm:resume", "Resume a paused VM."),
        "set-cpus": Entry("imgtool.cli.vm_plug:set_cpus", "Hot-plug CPUs."),
        "set-memory": Entry("imgtool.cli.vm_plug:set_memory", "Hot-plug memory."),
        "change": Entry("imgtool.cli.vm_media:change", "Put another image into a CD-ROM or floppy drive."),
        "eject": Entry("imgtool.cli.vm_media:eject", "Empty a CD-ROM or floppy drive."),
        "monitor": Entry("imgtool.cli.vm_monitor:monitor", "Talk to QEMU's monitor, as Ctrl-A C does."),
        "qmp": Entry("imgtool.cli.vm_monitor:qmp", "Send a QMP command, and print the answer."),
    },
}


ELSEWHERE = {
    "ps": "imgtool vm list",
    "ls": "imgtool vm list",
    "start": "imgtool boot -d IMAGE",
    "run": "imgtool boot IMAGE",
    "create": "imgtool boot -d IMAGE",
    "dominfo": "imgtool vm show",
    "shutdown": "imgtool vm stop",
    "poweroff": "imgtool vm stop",
    "destroy": "imgtool vm kill",
    "delete": "imgtool vm kill",
    "reboot": "imgtool vm reset",
    "suspend": "imgtool vm pause",
    "logs": "imgtool vm log",
    "attach": "imgtool vm console",
    "setvcpus": "imgtool vm set-cpus",
    "setmem": "imgtool vm set-memory",
    "qemu-monitor-command": "imgtool vm qmp",
    "hmp": "imgtool vm monitor",
    "snapshot": "imgtool vm monitor NAME savevm TAG",
    "snapshot-list": "imgtool vm monitor NAME info snapshots",
    "snapshot-revert": "imgtool vm monitor NAME loadvm TAG",
    "save": "imgtool vm monitor NAME savevm TAG",
    "migrate": "imgtool vm qmp NAME migrate uri=unix:PATH",
    "change-media": "imgtool vm change",
    "send-key": "imgtool vm monitor NAME sendkey ctrl-alt-f1",
    "attach-device": "imgtool vm qmp NAME device_add driver=…",
}
"""What virsh and docker say."""


@click.group(cls=LazyGroup, sections=SECTIONS, elsewhere=ELSEWHERE)
def vm() -> None:
    """Inspect and control running VMs."""


name_argument = click.argument("name", type=Word("vms"))


@click.command(
    epilog="\b\nExamples:\n"
    "  imgtool vm wait web --for ssh\n"
    "  imgtool vm wait web --for 'serial:login: $' --timeout 60"
)
@name_argument
@click.option(
    "--for",
    "what",
    type=Word("waits_and_end"),
    default="running",
    metavar="WHAT",
    help="running, serial:REGEX, ssh, agent, cloud-init, ended.  [default: running]",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=300,
    metavar="SECONDS",
    help="How long to wait.  [default: 300]",
)
@output_option()
@pass_context
def wait(context: Context, /, name: str, what: str, timeout: float) -> None:
    """Wait until the guest of NAME is ready, or has ended.

    The guest itself must say that it is ready: an open port proves nothing. On a timeout the error says how far the
    guest got and shows the end of its serial console.
    """
    import time

    from imgtool.machine.readiness import NotReady, Reached, parse_wait, wait_until
    from imgtool.machine.runtime import find, find_logs

    if what != "ended":
        condition = parse_wait(what, "--for", besides=("ended",))
        wait_until(find(name)[0], condition, seconds=timeout)
    else:
        one = find_logs(name)  # that it has ended already is what was waited for
        deadline = time.monotonic() + timeout
        while one.running:
            if time.monotonic() >= deadline:
                raise NotReady(f"{name} still runs after {timeout:g} s")
            time.sleep(0.05)
    _tell(context, Reached(name=name, reached=what))


@click.command(epilog="\b\nExamples:\n  imgtool vm console web\n  echo 'uname -a' | imgtool vm console web")
@name_argument
@pass_context
def console(context: Context, /, name: str) -> None:
    """Connect to the serial console of NAME. Ctrl-A X disconnects; the VM keeps running.

    When input ends, the guest's output is still shown until it has been silent for two seconds.
    """
    from imgtool.cli.output import remark
    from imgtool.errors import MachineError
    from imgtool.machine.console import attach
    from imgtool.machine.control import console_is_free
    from imgtool.machine.runtime import find

    one, state = find(name)
    if not state.detached:
        raise MachineError(f"the console of {name} is the terminal where it was started")
    if not console_is_free(one, "serial0"):
        raise MachineError(f"someone is at the console of {name} already")
    remark(context, f"at the console of {name}; Ctrl-A X leaves it")
    how = attach(one.file("serial0.sock"))
    words = {
        "left": f"left the console of {name}",
        "ended": f"{name} has ended",
        "quiet": f"left the console of {name}: input has ended and the guest is quiet; `imgtool vm log` shows more",
    }
    remark(context, words[how])


@click.command(
    epilog="\b\nExamples:\n  imgtool vm ssh web\n  imgtool vm ssh web --user debian -- uname -a",
)
@name_argument
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND…]")
@click.option(
    "-l", "--user", metavar="USER", help="The user to log in as.  [default: the one created by the cloud-init seed]"
)
@click.option(
    "-i",
    "--identity",
    type=FILE_NAME,
    metavar="FILE",
    help="The private key to log in with.  [default: the one next to --ssh-key's]",
)
@click.option("-o", "options", multiple=True, metavar="OPTION", help="An option for OpenSSH.")
@click.option("--print", "only_print", is_flag=True, help="Print the command without running it.")
@pass_context
def ssh(
    _: Context,
    /,
    name: str,
    command: tuple[str, ...],
    user: str | None,
    identity: str | None,
    options: tuple[str, ...],
    only_print: bool,
) -> None:
    """Log in to the guest of NAME by SSH, or run COMMAND there and exit with its status."""
    from imgtool.cli.render import shell
    from imgtool.machine.runtime import find
    from imgtool.machine.ssh import command_line

    one, state = find(name)
    argv = command_line(one, state, command, user=user, identity=identity, options=options)
    if only_print:
        click.echo(shell(argv))
        return
    sys.stdout.flush()
    os.execv(argv[0], argv)


@click.command("exec", epilog="\b\nExample:\n  imgtool vm exec web -- cat /etc/os-release")
@name_argument
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND…")
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="How long it may take.")
@click.option("-i", "--stdin", "with_stdin", is_flag=True, help="Pass this command's stdin to it.")
@output_option()
@pass_context
def exec_(context: Context, /, name: str, command: tuple[str, ...], timeout: float | None, with_stdin: bool) -> int:
    """Run COMMAND in the guest of NAME through its agent, with the same output and exit status.

    No shell is involved; use `-- sh -c '…'` for one. Where the guest has no such program, the exit status is 127.
    With --output json, one document holds stdout, stderr and the exit status.
    """
    from imgtool.cli.output import to_json, warn
    from imgtool.machine import agent
    from imgtool.machine.host import AGENT_SOCKET
    from imgtool.machine.runtime import find

    one, _ = find(name)
    stdin = sys.stdin.buffer.read() if with_stdin else b""
    with agent.session(one.file(AGENT_SOCKET)) as guest:
        done = guest.execute(command, stdin=stdin, seconds=timeout)
    if done.truncated:
        warn(context, "the agent cut the output off")
    if context.json:
        words = {"stdout": done.stdout.decode(errors="replace"), "stderr": done.stderr.decode(errors="replace")}
        click.echo(to_json({"exit-status": done.status, **words, "truncated": done.truncated}))
    else:
        sys.stdout.buffer.write(done.stdout)
        sys.stdout.flush()
        sys.stderr.buffer.write(done.stderr)
        sys.stderr.flush()
    return done.status


@click.command(epilog="\b\nExamples:\n  imgtool vm log web -n 20\n  imgtool vm log web --follow")
@name_argument
@click.option("-f", "--follow", is_flag=True, help="Keep showing output until the VM ends.")
@click.option("-n", "--lines", type=click.IntRange(min=1), metavar="N", help="Show only the last N lines.")
@click.option("--raw", is_flag=True, help="Do not strip escape sequences.")
@click.option("--qemu", is_flag=True, help="QEMU's own output, not the guest's.")
@pass_context
def log(_: Context, /, name: str, follow: bool, lines: int | None, raw: bool, qemu: bool) -> None:
    """Show the output of the serial console of NAME, even after the VM has ended.

    Of more than 64 MiB only the last 16 MiB are kept.
    """
    import time

    from imgtool.errors import MachineError
    from imgtool.machine.runtime import find_logs
    from imgtool.machine.serial import Follower
    from imgtool.machine.vm import QEMU_LOG

    one = find_logs(name)
    path = one.file(QEMU_LOG) if qemu else one.serial_log
    if not os.path.exists(path) and not (follow and one.running):
        hint = None if qemu else f"`imgtool vm log {name} --qemu` shows what QEMU said"
        raise MachineError(f"{name} has no such log", hint=hint)
    follower = Follower(path)
    most = lines
    while True:
        alive = follow and one.running
        for said in _new_output(follower, raw=raw, most=most, over=not alive):
            click.echo(said, nl=not raw)
        if not alive:
            return
        most = None
        time.sleep(0.1)


def _new_output(follower: Follower, *, raw: bool, most: int | None, over: bool) -> Iterable[str | bytes]:
    """What has come, its `most` last lines; the line that is being written, too, when it is `over`."""
    if raw:
        return follower.pieces() if most is None else deque(_raw_lines(follower.pieces()), maxlen=most)
    texts = _texts(follower, over=over)
    return texts if most is None else deque((text.rstrip() for text in texts if text.strip()), maxlen=most)


def _texts(follower: Follower, *, over: bool) -> Iterator[str]:
    yield from (line.text for line in follower.lines() if line.complete)
    if over and follower.unfinished:
        yield follower.unfinished


def _raw_lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from (line + b"\n" for line in whole)
        if len(rest) > _LONGEST_LINE:
            yield rest
            rest = b""
    if rest:
        yield rest


@click.command(epilog="\b\nExample:\n  imgtool vm screenshot web screen.png")
@name_argument
@click.argument("target", type=FILE_NAME, metavar="FILE")
@output_option()
@pass_context
def screenshot(context: Context, /, name: str, target: str) -> None:
    """Save the screen of NAME to FILE as PNG, or as PPM if FILE ends in .ppm."""
    from imgtool.machine import control
    from imgtool.machine.runtime import find

    _tell(context, control.screenshot(find(name)[0], target))


@click.command(epilog="\b\nExamples:\n  imgtool vm stop web\n  imgtool vm stop web --timeout 300")
@name_argument
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=60,
    metavar="SECONDS",
    help="How long the guest may take.  [default: 60]",
)
@force_option("Even if a disk was deleted that the guest has written to: what is on it is lost then.")
@quiet_option
@output_option()
@pass_context
def stop(context: Context, /, name: str, timeout: float, force: bool) -> None:
    """Ask the guest of NAME to power off; end the VM if it has not done so after SECONDS."""
    from imgtool.cli.output import emit, warn
    from imgtool.machine.ending import Ended, stop
    from imgtool.machine.lost import refuse_loss
    from imgtool.machine.runtime import find

    one, state = find(name)
    qemu = one.qemu()
    if qemu is not None and not force:
        refuse_loss(name, qemu.pid, state)
    how = stop(one, state, seconds=timeout, on_step=lambda text: warn(context, text))
    emit(context, Ended(name=name, how=how), [f"{name}: {how.replace('-', ' ')}"])


@click.command(epilog="\b\nExample:\n  imgtool vm kill web")
@name_argument
@output_option()
@pass_context
def kill(context: Context, /, name: str) -> None:
    """End NAME at once, like pulling the plug. What the guest had not yet written is lost."""
    from imgtool.machine.ending import Ended, kill
    from imgtool.machine.runtime import find

    kill(find(name)[0])
    _tell(context, Ended(name=name, how="killed"))


@click.command(epilog="\b\nExample:\n  imgtool vm reset web")
@name_argument
@output_option()
@pass_context
def reset(context: Context, /, name: str) -> None:
    """Press the reset button of NAME: the guest restarts without being asked."""
    _steer(context, name, "system_reset")


@click.command(epilog="\b\nExample:\n  imgtool vm pause web && imgtool vm resume web")
@name_argument
@output_option()
@pass_context
def pause(context: Context, /, name: str) -> None:
    """Pause the CPUs of NAME until it is resumed."""
    _steer(context, name, "stop")


@click.command(epilog="\b\nExample:\n  imgtool vm resume web")
@name_argument
@output_option()
@pass_context
def resume(context: Context, /, name: str) -> None:
    """Resume NAME after a pause."""
    _steer(context, name, "cont")


def _steer(context: Context, name: str, command: Steering) -> None:
    from imgtool.machine.control import steer
    from imgtool.machine.runtime import find

    _tell(context, steer(find(name)[0], command))


def _tell(context: Context, value: Any) -> None:
    """The answer of a command that has done what it was told: a document for programs, nothing for people."""
    from imgtool.cli.output import emit

    if context.json:
        emit(context, value, ())
