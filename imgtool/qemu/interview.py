"""Asking a QEMU emulator what it can do, over QMP and by its `help` options; never guessed from its version."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from imgtool.errors import DecodeError, MachineError
from imgtool.qemu.capabilities import Capabilities, CpuModel, DeviceType, MachineType
from imgtool.qemu.process import Limits, Runner, run
from imgtool.qemu.programs import parse_version
from imgtool.qemu.qmp import Monitor, QmpCommandError, QmpUnreachable
from imgtool.qemu.system import start

if TYPE_CHECKING:
    from collections.abc import Iterator

_ASK_SECONDS = 30.0


class Property(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """A property of a device or machine. QAPI: ObjectPropertyInfo."""

    name: str
    type: str
    description: str | None = None


def none_argv(program: str, monitor_fd: int) -> list[str]:
    """A QEMU that is no machine, reads no file of the user's, and talks QMP on a connected socket."""
    return [
        program,
        *("-machine", "none"),
        "-nodefaults",
        "-no-user-config",
        *("-display", "none"),
        *("-chardev", f"socket,id=monitor,fd={monitor_fd}"),
        *("-mon", "chardev=monitor,mode=control"),
    ]


@contextmanager
def none_monitor(program: str) -> Iterator[Monitor]:
    """A QMP session with a QEMU started for it (`none_argv`), which ends with it."""
    import socket

    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = start(none_argv(program, theirs.fileno()), detached=False, pass_fds=[theirs.fileno()])
        theirs.close()
        try:
            try:
                monitor = Monitor.connect(ours, seconds=_ASK_SECONDS)
            except QmpUnreachable as error:
                if process.wait(1) is not None:
                    raise process.failure() from None
                raise MachineError(f"{program} does not answer: {error.message}") from None
            with monitor:
                yield monitor
        finally:
            process.end(grace=1.0)
            process.close()


_QUERIES = (
    "query-target",
    "query-machines",
    "query-cpu-definitions",
    "query-chardev-backends",
    "query-command-line-options",
    "query-commands",
)


class _Answers(NamedTuple):
    """What one emulator said over QMP, undecoded."""

    schema: dict[str, Any]
    """Its QAPI schema, by name."""
    queries: dict[str, Any]
    """What those of `_QUERIES` return that it has."""
    tpmdevs: Sequence[str]
    objects: list[dict[str, Any]]
    device_types: set[str]


def ask(program: str, *, runner: Runner = run) -> Capabilities:
    """The capabilities of `program`, asked of it now."""

    def help_of(option: str, word: str = "help") -> str:
        done = runner([program, option, word], limits=Limits(seconds=_ASK_SECONDS))
        return done.stdout.decode(errors="replace") if done.status == 0 else ""

    done = runner([program, "--version"], limits=Limits(seconds=_ASK_SECONDS))
    version = parse_version(os.path.basename(program), done.stdout.decode(errors="replace"))
    with none_monitor(program) as monitor:
        answers = _answers(monitor)
    schema, queries = answers.schema, answers.queries
    descriptions = parse_machine_help(help_of("-machine"))
    try:
        return Capabilities(
            program=program,
            version=version,
            target=queries["query-target"]["arch"],
            accelerators=parse_names(help_of("-accel")),
            machines=tuple(
                msgspec.convert({**item, "description": descriptions.get(item["name"], "")}, MachineType)
                for item in queries["query-machines"]
                if item["name"] != "none"
            ),
            cpu_models=tuple(msgspec.convert(item, CpuModel) for item in queries.get("query-cpu-definitions", ())),
            cpu_features=parse_cpu_features(help_of("-cpu")),
            devices=_devices(help_of("-device"), answers.device_types),
            objects=tuple(sorted(item["name"] for item in answers.objects if not item.get("abstract"))),
            netdevs=parse_names(help_of("-netdev")),
            netdev_keys=_variant_keys(schema, "netdev_add"),
            chardevs=tuple(item["name"] for item in queries["query-chardev-backends"]),
            displays=parse_names(help_of("-display")),
            audiodevs=parse_names(help_of("-audiodev")),
            tpmdevs=tuple(answers.tpmdevs),
            block_drivers=_variants(schema, "blockdev-add"),
            options={
                item["option"]: tuple(parameter["name"] for parameter in item["parameters"])
                for item in queries["query-command-line-options"]
            },
            commands={
                item["name"]: tuple(schema[item["name"]].get("features", ())) for item in queries["query-commands"]
            },
        )
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise DecodeError(f"{program} answers QMP in a shape that QAPI does not promise: {error}") from error


def _answers(monitor: Monitor) -> _Answers:
    schema = {item["name"]: item for item in monitor.execute("query-qmp-schema")}
    devices = {"implements": "device", "abstract": False}
    return _Answers(
        schema=schema,
        queries={command: monitor.execute(command) for command in _QUERIES if command in schema},
        tpmdevs=_optional(monitor, "query-tpm-types"),
        objects=monitor.execute("qom-list-types", {"implements": "user-creatable"}),
        device_types={item["name"] for item in monitor.execute("qom-list-types", devices)},
    )


def properties(program: str, type_name: str) -> tuple[Property, ...]:
    """The properties that QEMU lets a user set on the device or QOM type `type_name` (a machine is
    `pc-q35-7.2-machine`). MachineError when there is no such type."""
    with none_monitor(program) as monitor:
        try:
            found = monitor.execute("device-list-properties", {"typename": type_name})
        except QmpCommandError:
            found = monitor.execute("qom-list-properties", {"typename": type_name})
    return tuple(msgspec.convert(item, Property) for item in found)


def parse_names(text: str) -> tuple[str, ...]:
    """The names in QEMU's plain lists (`-accel help`, `-netdev help`…): one per line, under a heading that ends in a
    colon. What a missing module says in between (`qemu: module … not found`) is passed over."""
    names = []
    for line in text.splitlines():
        word = line.strip()
        if re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", word):
            names.append(word)
    return tuple(names)


def parse_machine_help(text: str) -> dict[str, str]:
    """Descriptions by machine name from `-machine help`, without the notes about aliases and the default."""
    found = {}
    for line in text.splitlines()[1:]:
        name, _, description = line.partition(" ")
        found[name] = re.sub(r"( \((alias of [^)]*|default|deprecated)\))+$", "", description.strip())
    return found


def parse_cpu_features(text: str) -> tuple[str, ...]:
    """The words under `Recognized CPUID flags:` of `-cpu help`; none on targets that list none."""
    _, found, flags = text.partition("Recognized CPUID flags:")
    return tuple(flags.split()) if found else ()


_DEVICE = r'name "(?P<name>[^"]+)"(?:, bus (?P<bus>[^,]+))?(?P<rest>.*)'


def parse_device_help(text: str) -> dict[str, DeviceType]:
    """The drivers of `-device help` by name."""
    devices: dict[str, DeviceType] = {}
    category = ""
    for line in text.splitlines():
        if line.endswith(" devices:"):
            category = line.removesuffix(" devices:")
        elif match := re.fullmatch(_DEVICE, line.strip()):
            description = re.search(r', desc "(.*?)"', match["rest"])
            devices[match["name"]] = DeviceType(
                name=match["name"],
                category=category,
                bus=match["bus"],
                aliases=tuple(re.findall(r', alias "([^"]+)"', match["rest"])),
                description=description[1] if description else "",
                user_creatable=", no-user" not in match["rest"],
            )
    return devices


def _devices(text: str, types: set[str]) -> tuple[DeviceType, ...]:
    """What both lists agree on: `-device help` names CPUs twice, and QMP's list holds what no one can add."""
    return tuple(device for name, device in sorted(parse_device_help(text).items()) if name in types)


def _variants(schema: dict[str, Any], command: str) -> tuple[str, ...]:
    argument = schema[schema[command]["arg-type"]]
    return tuple(sorted(variant["case"] for variant in argument.get("variants", ())))


def _variant_keys(schema: dict[str, Any], command: str) -> dict[str, tuple[str, ...]]:
    argument = schema[schema[command]["arg-type"]]
    return {
        variant["case"]: tuple(member["name"] for member in schema[variant["type"]]["members"])
        for variant in argument.get("variants", ())
    }


def _optional(monitor: Monitor, command: str) -> Sequence[str]:
    try:
        answer: Sequence[str] = monitor.execute(command)
    except QmpCommandError:
        return ()  # a build without it
    return answer
