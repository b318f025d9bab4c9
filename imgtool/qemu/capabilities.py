"""What a QEMU system emulator can do: asked of the emulator, never assumed from its version.

One start with `-M none` answers over QMP, and its `help` options list what QMP has no query for. The answer is kept
on disk under the identity of the binary, so that it is asked once per upgrade.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from imgtool.errors import DecodeError, MachineError
from imgtool.qemu.learned import place
from imgtool.qemu.process import Limits, Runner, run
from imgtool.qemu.programs import Version, parse_version
from imgtool.qemu.qmp import Monitor, QmpCommandError, QmpUnreachable
from imgtool.qemu.system import start

if TYPE_CHECKING:
    from collections.abc import Iterator

_CACHE_FORMAT = 3
"""Raised whenever the structs below change, so that an older imgtool's answers are asked again."""

_ASK_SECONDS = 30.0


class MachineType(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """One value of `--machine`. QAPI: MachineInfo."""

    name: str
    alias: str | None = None
    description: str = ""
    """As `-machine help` says it."""
    is_default: bool = False
    cpu_max: int = 1
    hotpluggable_cpus: bool = False
    numa_mem_supported: bool = False
    deprecated: bool = False
    default_cpu_type: str | None = None
    default_ram_id: str | None = None


class CpuModel(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """One value of `--cpu`. QAPI: CpuDefinitionInfo. `unavailable_features` holds for TCG."""

    name: str
    alias_of: str | None = None
    deprecated: bool = False
    unavailable_features: tuple[str, ...] = ()


class DeviceType(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """One driver of `-device`. `category` is the heading it has in `-device help`: Network, Storage, Display…"""

    name: str
    category: str = ""
    bus: str | None = None
    aliases: tuple[str, ...] = ()
    description: str = ""
    user_creatable: bool = True


class Capabilities(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """All of it. Names are QEMU's own."""

    program: str
    version: Version
    target: str
    """QAPI SysEmuTarget: x86_64, aarch64…"""
    accelerators: tuple[str, ...]
    """Compiled in; whether one works is for `imgtool.machine.accelerator` to prove."""
    machines: tuple[MachineType, ...]
    cpu_models: tuple[CpuModel, ...]
    cpu_features: tuple[str, ...]
    devices: tuple[DeviceType, ...]
    objects: tuple[str, ...]
    netdevs: tuple[str, ...]
    netdev_keys: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    """The keys that each kind of -netdev takes."""
    chardevs: tuple[str, ...]
    displays: tuple[str, ...]
    audiodevs: tuple[str, ...]
    """Empty where this QEMU has no `-audiodev help`."""
    tpmdevs: tuple[str, ...]
    block_drivers: tuple[str, ...]
    options: dict[str, tuple[str, ...]]
    """Options of the command line (no dash) with the keys each takes, as far as query-command-line-options knows."""
    commands: dict[str, tuple[str, ...]]
    """QMP commands with their `features`, such as device_add's `json-cli`."""

    def machine(self, name: str | None = None) -> MachineType | None:
        """The machine of this name or alias; without one, QEMU's default."""
        for machine in self.machines:
            if machine.is_default if name is None else name in (machine.name, machine.alias):
                return machine
        return None

    def device(self, name: str) -> DeviceType | None:
        """The driver of this name or alias."""
        for device in self.devices:
            if name == device.name or name in device.aliases:
                return device
        return None

    def devices_in(self, category: str) -> tuple[DeviceType, ...]:
        return tuple(device for device in self.devices if device.category == category)

    def cpu_model(self, name: str) -> CpuModel | None:
        return next((model for model in self.cpu_models if model.name == name), None)

    @property
    def device_json(self) -> bool:
        """Whether `-device` takes JSON."""
        return "json-cli" in self.commands.get("device_add", ())


class Property(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """A property of a device or machine. QAPI: ObjectPropertyInfo."""

    name: str
    type: str
    description: str | None = None


def capabilities(program: str, *, cache_dir: str | None = None, runner: Runner = run) -> Capabilities:
    """What the QEMU at the absolute path `program` can do: from the cache, else asked now and kept there.

    `cache_dir` None is the user's cache folder; that nothing can be written there is no error. ProgramError when the
    program is no QEMU, MachineError when it does not answer.
    """
    kept = place("capabilities", program, format=_CACHE_FORMAT, cache_dir=cache_dir)
    answer = kept.recall(Capabilities)
    if answer is None:
        answer = ask(program, runner=runner)
        kept.keep(answer)
    return answer


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


def ask(program: str, *, runner: Runner = run) -> Capabilities:
    """The capabilities of `program`, asked of it now."""

    def help_of(option: str, word: str = "help") -> str:
        done = runner([program, option, word], limits=Limits(seconds=_ASK_SECONDS))
        return done.stdout.decode(errors="replace") if done.status == 0 else ""

    done = runner([program, "--version"], limits=Limits(seconds=_ASK_SECONDS))
    version = parse_version(os.path.basename(program), done.stdout.decode(errors="replace"))
    with none_monitor(program) as monitor:
        schema = {item["name"]: item for item in monitor.execute("query-qmp-schema")}
        answers = {
            command: monitor.execute(command)
            for command in (
                "query-target",
                "query-machines",
                "query-cpu-definitions",
                "query-chardev-backends",
                "query-command-line-options",
                "query-commands",
            )
            if command in schema
        }
        tpmdevs = _optional(monitor, "query-tpm-types")
        creatable = monitor.execute("qom-list-types", {"implements": "user-creatable"})
        device_types = {
            item["name"] for item in monitor.execute("qom-list-types", {"implements": "device", "abstract": False})
        }
    descriptions = parse_machine_help(help_of("-machine"))
    try:
        return Capabilities(
            program=program,
            version=version,
            target=answers["query-target"]["arch"],
            accelerators=parse_names(help_of("-accel")),
            machines=tuple(
                msgspec.convert({**item, "description": descriptions.get(item["name"], "")}, MachineType)
                for item in answers["query-machines"]
                if item["name"] != "none"
            ),
            cpu_models=tuple(msgspec.convert(item, CpuModel) for item in answers.get("query-cpu-definitions", ())),
            cpu_features=parse_cpu_features(help_of("-cpu")),
            devices=_devices(help_of("-device"), device_types),
            objects=tuple(sorted(item["name"] for item in creatable if not item.get("abstract"))),
            netdevs=parse_names(help_of("-netdev")),
            netdev_keys=_variant_keys(schema, "netdev_add"),
            chardevs=tuple(item["name"] for item in answers["query-chardev-backends"]),
            displays=parse_names(help_of("-display")),
            audiodevs=parse_names(help_of("-audiodev")),
            tpmdevs=tuple(tpmdevs),
            block_drivers=_variants(schema, "blockdev-add"),
            options={
                item["option"]: tuple(parameter["name"] for parameter in item["parameters"])
                for item in answers["query-command-line-options"]
            },
            commands={
                item["name"]: tuple(schema[item["name"]].get("features", ())) for item in answers["query-commands"]
            },
        )
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise DecodeError(f"{program} answers QMP in a shape that QAPI does not promise: {error}") from error


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
    """The names in QEMU's plain lists (`-accel help`, `-netdev help`…): one a line under a heading that ends in a
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
