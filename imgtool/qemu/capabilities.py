"""What a QEMU system emulator can do. One start with `-M none` answers over QMP, and its `help` options list what QMP
has no query for (`imgtool.qemu.interview`). The answer is kept on disk under the identity of the binary, so that it
is asked once per upgrade."""

import msgspec

from imgtool.qemu.learned import place
from imgtool.qemu.process import Runner, run
from imgtool.qemu.programs import Version

_CACHE_FORMAT = 3
"""Raised whenever the structs below change, so that an older imgtool's answers are asked again."""


class MachineType(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """One value of `--machine`. QAPI: MachineInfo."""

    name: str
    """`pc-q35-7.2`, …"""
    alias: str | None = None
    """Its short name: `q35`; None when it has none."""
    description: str = ""
    """As `-machine help` says it."""
    is_default: bool = False
    """What QEMU takes when none is named."""
    cpu_max: int = 1
    """How many CPUs it can have."""
    hotpluggable_cpus: bool = False
    """Whether CPUs can be plugged in while it runs."""
    numa_mem_supported: bool = False
    """Whether `-numa node,mem=` is still allowed."""
    deprecated: bool = False
    """Whether QEMU's makers advise against it."""
    default_cpu_type: str | None = None
    """The QOM type of its CPU when none is named."""
    default_ram_id: str | None = None
    """What its memory backend is called."""


class CpuModel(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """One value of `--cpu`. QAPI: CpuDefinitionInfo. `unavailable_features` holds for TCG."""

    name: str
    """`host`, `max`, `EPYC-v4`, …"""
    alias_of: str | None = None
    """The model that this name stands for; None when it stands for itself."""
    deprecated: bool = False
    """Whether QEMU's makers advise against it."""
    unavailable_features: tuple[str, ...] = ()
    """What the model has and TCG on this host cannot give it."""


class DeviceType(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """One driver of `-device`. `category` is the heading it has in `-device help`: Network, Storage, Display…"""

    name: str
    """What `-device` calls it."""
    category: str = ""
    """Its heading in `-device help`."""
    bus: str | None = None
    """The kind of bus it is plugged into: `PCI`, …; None is none."""
    aliases: tuple[str, ...] = ()
    """Other names that `-device` takes."""
    description: str = ""
    """In QEMU's words; empty when it has none."""
    user_creatable: bool = True
    """Whether `-device` can make one."""


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


def capabilities(program: str, *, cache_dir: str | None = None, runner: Runner = run) -> Capabilities:
    """What the QEMU at the absolute path `program` can do: from the cache, else asked now and kept there.

    `cache_dir` None is the user's cache folder; that nothing can be written there is no error. ProgramError when the
    program is no QEMU, MachineError when it does not answer.
    """
    kept = place("capabilities", program, format=_CACHE_FORMAT, cache_dir=cache_dir)
    answer = kept.recall(Capabilities)
    if answer is None:
        from imgtool.qemu.interview import ask

        answer = ask(program, runner=runner)
        kept.keep(answer)
    return answer
